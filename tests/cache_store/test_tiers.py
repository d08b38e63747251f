"""The law of ``Tier``, sat by every implementation."""

from __future__ import annotations

import random
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cache_store import store
from cache_store.block import KVBlock
from cache_store.pairs import PAIR_DTYPES
from cache_store.tiers.base import Tier
from configs import schema
from tests.cache_store.blocks import make_block, make_identity, make_key, said_of, same
from tests.cache_store.tiers import OPENERS, cost

every_tier = pytest.mark.parametrize("kind", OPENERS)
Opener = Callable[..., Tier]


@pytest.fixture
def fits(tmp_path: Path, kind: str) -> Opener:
    """Opens an empty tier whose budget is exactly so many blocks of ``make_block()``'s size."""

    def opener(blocks: int) -> Tier:
        return OPENERS[kind](tmp_path / "tier", blocks * cost(kind, tmp_path, make_block()))

    return opener


def held(tier: Tier) -> set[int]:
    """Which of the first keys ``tier`` gives back; each must be the right block."""
    found = set()
    for number in range(10):
        block = tier.get(make_key(number))
        if block is not None:
            assert same(block, make_block(number))
            found.add(number)
    return found


def test_every_kind_of_a_job_is_built_and_sits_the_laws() -> None:
    kinds = {model.model_fields["kind"].default for model in get_args(get_args(schema.Tier)[0])}
    assert kinds == set(store._TIERS) == {name.partition(",")[0] for name in OPENERS}


@every_tier
@pytest.mark.parametrize("dtype", PAIR_DTYPES)
@pytest.mark.parametrize("layers", [0, 2])
def test_get_gives_what_was_put(fits: Opener, dtype: torch.dtype, layers: int) -> None:
    tier = fits(10)
    block = make_block(dtype=dtype, layers=layers)
    assert tier.get(block.key) is None and block.key not in tier
    assert tier.put(block) == ()
    assert block.key in tier and list(tier.keys()) == [block.key]
    assert same(tier.get(block.key), block)
    assert tier.get(make_key(1)) is None


@every_tier
def test_the_last_put_of_a_key_counts(fits: Opener) -> None:
    tier = fits(2)
    for version in range(4):
        assert tier.put(make_block(0, version)) == ()
        assert same(tier.get(make_key(0)), make_block(0, version))
    assert len(list(tier.keys())) == 1


@every_tier
def test_an_entry_of_another_size_takes_the_place_of_its_key(fits: Opener) -> None:
    tier = fits(3)
    sizes = set()
    for tokens in (1, 5, 2):
        tier.put(make_block(0, tokens=tokens))
        assert same(tier.get(make_key(0)), make_block(0, tokens=tokens))
        sizes.add(tier.num_bytes)
    assert len(sizes) == 3


@every_tier
def test_a_discarded_entry_is_gone_and_its_bytes_too(fits: Opener) -> None:
    tier = fits(3)
    tier.put(make_block(0))
    tier.put(make_block(1))
    tier.discard(make_key(0))
    tier.discard(make_key(2))
    assert held(tier) == {1}
    tier.discard(make_key(1))
    assert tier.num_bytes == 0 and not list(tier.keys())


@every_tier
def test_the_least_recently_used_entries_make_room(fits: Opener) -> None:
    tier = fits(3)
    for number in range(3):
        tier.put(make_block(number))
    tier.get(make_key(0))
    pushed = tier.put(make_block(3))
    assert tier.num_bytes == tier.max_bytes
    assert tier.shared or [block.key for block in pushed] == [make_key(1)]
    assert held(tier) == {0, 2, 3}
    assert tier.counters.evictions == 1


@every_tier
def test_what_a_private_tier_pushes_out_is_given_back_whole(fits: Opener) -> None:
    tier = fits(2)
    pushed = [block for number in range(6) for block in tier.put(make_block(number))]
    assert all(same(block, make_block(number)) for number, block in enumerate(pushed))
    assert len(pushed) == (0 if tier.shared else 4)


@every_tier
def test_a_block_beyond_the_budget_is_refused_without_harm(fits: Opener) -> None:
    tier = fits(2)
    tier.put(make_block(0))
    tier.put(make_block(1))
    large = make_block(2, tokens=5000)
    assert tier.put(large) == (large,)
    assert held(tier) == {0, 1}
    assert tier.counters.refused == 1 and tier.counters.evictions == 0


@every_tier
def test_a_refused_block_leaves_no_former_entry_to_answer_for_it(fits: Opener) -> None:
    tier = fits(2)
    tier.put(make_block(0))
    tier.put(make_block(0, tokens=5000))
    assert tier.get(make_key(0)) is None and tier.num_bytes == 0


@every_tier
def test_a_tier_of_no_bytes_keeps_nothing(fits: Opener) -> None:
    tier = fits(0)
    block = make_block()
    assert tier.put(block) == (block,)
    assert tier.get(block.key) is None


@every_tier
def test_the_caller_may_write_into_its_tensors_after_a_put(fits: Opener) -> None:
    tier = fits(2)
    buffer = torch.zeros(100, 4)
    counts, positions = torch.tensor([[2, 1]], dtype=torch.int32), torch.arange(3, dtype=torch.int32)
    rows, no_scales = buffer[7:10], torch.empty(0, 4)
    block = KVBlock(make_identity(0), 3, 1, counts, positions, rows, rows, no_scales, no_scales, torch.ones(1, 3, 2))
    tier.put(block)
    for tensor in (buffer, block.counts_LG, block.scores_RHB):
        tensor.fill_(9)
    kept = tier.get(make_key(0))
    assert kept is not None
    assert kept.counts_LG.tolist() == [[2, 1]] and kept.rows(0, 1) == slice(2, 3)
    assert not kept.keys_ND.any() and not kept.values_ND.any() and bool((kept.scores_RHB == 1).all())
    assert kept.keys_ND.untyped_storage().nbytes() == kept.keys_ND.nbytes


@every_tier
def test_pinned_entries_stay_until_the_last_pin_is_gone(fits: Opener) -> None:
    tier = fits(2)
    tier.pin([make_key(0), make_key(1)])
    tier.pin([make_key(0)])
    tier.put(make_block(0))
    tier.put(make_block(1))
    assert tier.put(make_block(2)) != ()
    assert set(tier.keys()) == {make_key(0), make_key(1)}
    tier.unpin([make_key(0), make_key(1)])
    tier.put(make_block(2))
    assert set(tier.keys()) == {make_key(0), make_key(2)}
    tier.unpin([make_key(0)])
    tier.put(make_block(3))
    assert set(tier.keys()) == {make_key(2), make_key(3)}


@every_tier
def test_a_pinned_entry_can_be_discarded(fits: Opener) -> None:
    tier = fits(2)
    tier.put(make_block(0))
    tier.pin([make_key(0)])
    tier.discard(make_key(0))
    assert held(tier) == set()


steps = st.lists(
    st.tuples(st.sampled_from(["put", "get", "discard"]), st.integers(0, 4), st.integers(0, 6)), max_size=25
)


@every_tier
@settings(max_examples=40, deadline=None)
@given(steps)
def test_any_history_gives_the_last_put_or_none_within_the_budget(
    kind: str, history: list[tuple[str, int, int]]
) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        tier = OPENERS[kind](Path(scratch), 2500)
        last: dict[int, KVBlock] = {}
        for verb, key, tokens in history:
            if verb == "put":
                last[key] = make_block(key, tokens=4 * tokens)
                tier.put(last[key])
            elif verb == "discard":
                last.pop(key, None)
                tier.discard(make_key(key))
            found = tier.get(make_key(key))
            assert found is None or same(found, last.get(key))
            assert (found is not None) == (make_key(key) in tier)
            assert tier.num_bytes <= tier.max_bytes


@every_tier
def test_many_threads_at_once_see_whole_blocks_within_the_budget(fits: Opener) -> None:
    tier = fits(4)
    wrong: list[str] = []
    start = threading.Barrier(6)

    def work(seed: int) -> None:
        chance = random.Random(seed)
        start.wait()
        for _ in range(40):
            number = chance.randrange(8)
            verb = chance.choice(["put", "put", "get", "get", "discard", "pin"])
            if verb == "put":
                tier.put(make_block(number))
            elif verb == "discard":
                tier.discard(make_key(number))
            elif verb == "pin":
                tier.pin([make_key(number)])
                tier.unpin([make_key(number)])
            found = tier.get(make_key(number))
            if found is not None and not same(found, make_block(number)):
                wrong.append(f"key {number}")
            if tier.num_bytes > tier.max_bytes:
                wrong.append(f"{tier.num_bytes} bytes")

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    each = cost_of_one(tier)
    assert len(held(tier)) * each == tier.num_bytes
    counters = tier.counters
    assert counters.corrupt == counters.read_errors == counters.write_errors == 0


def cost_of_one(tier: Tier) -> int:
    """The fixture's budget is four blocks."""
    return tier.max_bytes // 4


@every_tier
def test_of_a_few_layers_at_least_these_come_back(fits: Opener) -> None:
    tier = fits(2)
    block = make_block(layers=2)
    tier.put(block)
    some = tier.get(block.key, range(1, 2))
    assert some is not None and said_of(some) == said_of(block)
    for head in range(2):
        for mine, whole in ((some.keys(1, head), block.keys(1, head)), (some.values(1, head), block.values(1, head))):
            assert torch.equal(mine.view(torch.uint8), whole.view(torch.uint8))
    assert same(tier.get(block.key), block), "and the entry is still whole"
