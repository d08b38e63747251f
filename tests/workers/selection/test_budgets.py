"""Laws of budgets: never more than allowed, never outside the offer, the best first."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.selection.budgets import BlockTable, Interval, UniformBudget


@st.composite
def tables(draw: st.DrawFn) -> BlockTable:
    block = draw(st.integers(1, 8))
    lengths = draw(st.lists(st.integers(1, 40), min_size=1, max_size=5))
    stops = np.cumsum(lengths).tolist()
    extents = list(zip([0, *stops[:-1]], stops, strict=True))
    shares = [
        np.array(draw(st.lists(st.sampled_from([0.0, 0.1, 0.2, 0.9]), min_size=n, max_size=n)))
        for n in (-(-length // block) for length in lengths)
    ]
    offered = draw(st.none() | st.just(tuple((start, (start + stop + 1) // 2) for start, stop in extents)))
    return BlockTable.of_chunks(extents, shares, block, offered)


budgets = st.builds(
    UniformBudget, tokens=st.integers(1, 120), widen_tokens=st.integers(0, 6), min_blocks_per_chunk=st.integers(0, 2)
)


def positions(intervals: list[Interval]) -> set[int]:
    return {place for start, stop in intervals for place in range(start, stop)}


@settings(deadline=None)
@given(tables(), budgets)
def test_what_is_kept_is_sorted_disjoint_inside_the_offer_and_within_the_budget(
    table: BlockTable, budget: UniformBudget
) -> None:
    kept = budget.choose(table)
    assert all(start < stop for start, stop in kept)
    assert all(stop < start for (_, stop), (start, _) in pairwise(kept))
    assert len(positions(kept)) <= budget.tokens
    allowed = positions(list(table.offered)) if table.offered is not None else set(range(int(table.stops_B[-1])))
    assert positions(kept) <= allowed
    assert budget.choose(table) == kept


@settings(deadline=None)
@given(tables())
def test_a_budget_of_everything_keeps_everything_offered(table: BlockTable) -> None:
    whole = set(range(int(table.stops_B[-1])))
    allowed = positions(list(table.offered)) if table.offered is not None else whole
    assert positions(UniformBudget(10**6, 0).choose(table)) == allowed


@settings(deadline=None)
@given(tables(), budgets)
def test_relevance_is_additive_over_what_is_kept(table: BlockTable, budget: UniformBudget) -> None:
    whole = (0, int(table.stops_B[-1]))
    assert table.relevance_of(whole) == pytest.approx(table.share_B.sum())
    kept = budget.choose(table)
    assert sum(map(table.relevance_of, kept)) <= table.relevance_of(whole) + 1e-9


def test_a_fact_on_a_block_border_is_not_cut() -> None:
    """The prototype answered 4694 for 46941: its digits lay on both sides of a border."""
    table = BlockTable.of_chunks([(0, 96)], [np.array([0.0, 1.0, 0.0])], 32)
    assert UniformBudget(64, 16).choose(table) == [(16, 80)]
    assert UniformBudget(64, 0).choose(table)[0] == (0, 64)


def test_widening_gives_way_before_a_block_does() -> None:
    table = BlockTable.of_chunks([(0, 96)], [np.array([0.0, 1.0, 0.0])], 32)
    assert UniformBudget(40, 16).choose(table) == [(32, 64)]


def test_every_chunk_keeps_its_floor_while_the_budget_lasts() -> None:
    shares = [np.array([0.9, 0.8]), np.array([0.0, 0.1]), np.array([0.02, 0.01])]
    table = BlockTable.of_chunks([(0, 64), (64, 128), (128, 192)], shares, 32)
    assert UniformBudget(64, 0).choose(table) == [(0, 64)]
    assert UniformBudget(96, 0, min_blocks_per_chunk=1).choose(table) == [(0, 32), (96, 160)]


def test_ties_fall_to_the_earlier_block() -> None:
    table = BlockTable.of_chunks([(0, 128)], [np.full(4, 0.25)], 32)
    assert UniformBudget(64, 0).choose(table) == [(0, 64)]


def test_a_document_shorter_than_a_block_is_kept_whole() -> None:
    table = BlockTable.of_chunks([(0, 5)], [np.array([1.0])], 32)
    assert UniformBudget(32, 16).choose(table) == [(0, 5)]
