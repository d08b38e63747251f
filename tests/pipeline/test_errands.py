"""What drivers set out to do: alone, or each with a share."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.directory import open_directory
from pipeline.errands import Extent, FreshParts, Share
from tests.pipeline import killed
from tests.pipeline.killed import plan_of


class NoCorpus:
    """Of rows that nobody asks for."""

    def rows(self, run: object, places: object) -> list[object]:
        return []


@given(st.integers(1, 12), st.integers(1, 5))
def test_every_driver_would_do_every_part_once_and_begins_with_its_own(num_parts: int, of: int) -> None:
    parts = plan_of(num_parts).parts
    begun = []
    for number in range(1, of + 1):
        share = Share(number, of)
        order = [*share.own(parts), *share.others(parts)]
        assert sorted(part.index for part in order) == list(range(num_parts))
        begun += [part.index for part in share.own(parts)]
    assert sorted(begun) == list(range(num_parts))


@given(st.integers(2, 12), st.integers(2, 4))
def test_drivers_of_one_speed_do_little_twice(num_parts: int, of: int) -> None:
    """In step, each part takes one turn: at the end no more than one part for each driver was in vain."""
    parts = plan_of(num_parts).parts
    todo = [iter([*Share(n, of).own(parts), *Share(n, of).others(parts)]) for n in range(1, of + 1)]
    committed: set[int] = set()
    num_done = 0
    while len(committed) < num_parts:
        turn = [next((part.index for part in own if part.index not in committed), None) for own in todo]
        num_done += sum(part is not None for part in turn)
        committed.update(part for part in turn if part is not None)
    assert num_done - num_parts < of


@pytest.mark.parametrize("text", ["", "1", "0/2", "3/2", "1/0", "a/b", "1/2/3", "-1/2", "1.0/2"])
def test_a_share_that_is_none_is_refused_with_what_is_allowed(text: str) -> None:
    with pytest.raises(ValueError, match="allowed: NUMBER/OF"):
        Share.parse(text)


def test_a_share_is_read_as_it_is_written() -> None:
    assert Share.parse("2/4") == Share(2, 4)


def test_what_others_commit_meanwhile_is_not_done_again_and_counted(tmp_path: Path) -> None:
    directory = open_directory(str(tmp_path / "run"))
    mine, other = killed.start(directory, plan_of(4)), killed.start(directory, plan_of(4))
    killed.commit_part(mine, 0)
    errand = FreshParts(mine, NoCorpus(), keep=False)  # type: ignore[arg-type]
    rows = errand.rows()
    assert next(rows).part == 1
    killed.commit_part(other, 1)
    killed.commit_part(other, 2)
    assert next(rows).part == 3
    assert list(rows) == []
    record = mine.committed()[2]
    assert errand.elsewhere == Extent(1, killed.ROWS, 25, record.failed, record.document_tokens)
