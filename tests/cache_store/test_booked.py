"""What tiers that share a medium with other processes know of entries that they did not write, over every medium."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cache_store.tiers.base import Tier
from tests.cache_store.blocks import make_block, make_key, same
from tests.cache_store.tiers import OPENERS


@pytest.fixture(params=["files", "objects"])
def opener(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Tier]:
    """Opens the same place again and again, as processes do."""
    return lambda: OPENERS[request.param](tmp_path, 2**20)


CHEAP, DEAR = make_block(0, cost=1), make_block(1, cost=1000)


@pytest.mark.parametrize("opened", ["before it was written", "after it was written"])
def test_what_others_wrote_is_worth_what_it_costs_once_it_was_read(opener: Callable[[], Tier], opened: str) -> None:
    """By their names alone both are worth the same, and the one that was used first would leave first."""
    early, theirs = opener(), opener()
    for block in (CHEAP, DEAR):
        assert theirs.put(block) == ()
    mine = early if opened == "before it was written" else opener()
    for block in (DEAR, CHEAP):
        assert same(mine.get(block.key), block)
    assert list(mine.keys()) == [CHEAP.key, DEAR.key]


def test_what_others_removed_is_forgotten_once_it_is_missed(opener: Callable[[], Tier]) -> None:
    mine, theirs = opener(), opener()
    for block in (CHEAP, DEAR):
        assert mine.put(block) == ()
    theirs.discard(CHEAP.key)
    assert mine.get(CHEAP.key) is None and mine.get(make_key(9)) is None
    assert list(mine.keys()) == [DEAR.key] and mine.num_bytes == opener().num_bytes
