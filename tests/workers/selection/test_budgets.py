"""Laws of budgets, sat by all of them: never more than granted, never outside the offer, the best first, and chunks
that were read apart offer whatever the whole document will want."""

from __future__ import annotations

import json
import typing
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydantic import TypeAdapter

from configs import methods
from configs.stages import Keep
from workers.errors import ModelError
from workers.hf import ModelShape
from workers.messages import Interval
from workers.selection.budgets import budget_of
from workers.selection.budgets.adaptive import AdaptiveBudget
from workers.selection.budgets.base import BlockTable, Budget, Choice
from workers.selection.budgets.heads import HeadsBudget
from workers.selection.budgets.min_p import MinPBudget
from workers.selection.budgets.pyramid import PyramidBudget
from workers.selection.budgets.threshold import ThresholdBudget
from workers.selection.budgets.uniform import UniformBudget
from workers.selection.headmap import HeadMap, Role, head_map_path

L, G = 3, 2
ROLES = st.sampled_from(typing.get_args(Role))
HEAD_MAPS = st.lists(ROLES, min_size=L * G, max_size=L * G).map(
    lambda roles: HeadMap("w", tuple(tuple(roles[layer * G : layer * G + G]) for layer in range(L)))
)
WIDEN = st.integers(0, 6)

# One line per budget; ``test_every_kind_of_a_job_sits_these_laws`` fails for one that is missing here.
BUDGETS: dict[str, st.SearchStrategy[Budget]] = {
    "uniform": st.builds(UniformBudget, WIDEN, st.integers(0, 2)),
    "pyramid": st.builds(PyramidBudget, st.just(L), st.sampled_from([1.0, 2.5, 7.0, 39.0]), WIDEN),
    "adaptive": st.builds(AdaptiveBudget, st.just(G), st.sampled_from([0.0, 0.2, 1.0]), WIDEN),
    "heads": st.builds(HeadsBudget, HEAD_MAPS, st.integers(0, 9), st.integers(0, 20), WIDEN),
    "threshold": st.builds(ThresholdBudget, st.sampled_from([0.5, 1.0, 2.0, 50.0]), WIDEN),
    "min_p": st.builds(MinPBudget, st.sampled_from([0.05, 0.1, 0.2, 0.9, 1.0]), WIDEN),
}
SHAPE = ModelShape(num_layers=L, num_heads=4, num_kv_heads=G, head_dim=8, window=2048, windows=(None,) * L)
SETTINGS: TypeAdapter[methods.Budget] = TypeAdapter(methods.Budget)
each_kind = pytest.mark.parametrize("kind", list(BUDGETS))


@st.composite
def documents(draw: st.DrawFn) -> tuple[list[Interval], list[NDArray[np.float64]], int]:
    """Extents of chunks, their shares (many of them equal, some 0), and block tokens."""
    block = draw(st.integers(1, 8))
    lengths = draw(st.lists(st.integers(1, 40), min_size=1, max_size=5))
    stops = np.cumsum(lengths).tolist()
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shape = draw(st.sampled_from([(1, 1), (L, 1), (L, G)]))
    masses = [rng.choice([0.0, 1.0, 2.0, 9.0, 10.0], size=(*shape, -(-length // block))) for length in lengths]
    masses[0][..., 0] += 1.0
    totals_LG1 = sum(mass.sum(axis=2, keepdims=True) for mass in masses)
    return list(zip([0, *stops[:-1]], stops, strict=True)), [mass / totals_LG1 for mass in masses], block


def positions(intervals: typing.Iterable[Interval]) -> set[int]:
    return {place for start, stop in intervals for place in range(start, stop)}


def intervals_of(places: set[int]) -> tuple[Interval, ...]:
    return tuple((place, place + 1) for place in sorted(places))


def per_head(choice: Choice) -> list[set[int]]:
    """What each kv head of the model keeps."""
    return [positions(choice.of(layer, head)) for layer in range(L) for head in range(G)]


def one(share_B: list[float], block: int = 32) -> BlockTable:
    return BlockTable.of_chunks([(0, block * len(share_B))], [np.array(share_B)[None, None]], block)


def test_every_kind_of_a_job_sits_these_laws() -> None:
    union = typing.get_args(methods.Budget)[0]
    kinds = [
        kind for model in typing.get_args(union) for kind in typing.get_args(model.model_fields["kind"].annotation)
    ]
    assert sorted(kinds) == sorted(BUDGETS)


@each_kind
@given(data=st.data(), document=documents(), tokens=st.integers(1, 120))
def test_what_is_kept_is_in_order_offered_and_granted(
    kind: str, data: st.DataObject, document: tuple[list[Interval], list[NDArray[np.float64]], int], tokens: int
) -> None:
    budget = data.draw(BUDGETS[kind])
    extents, shares, block = document
    everything = range(extents[-1][1])
    offers = data.draw(st.none() | st.lists(st.sets(st.sampled_from(everything)), min_size=L * G, max_size=L * G))
    one_offer = data.draw(st.booleans()) or shares[0].shape[:2] != (L, G)
    offered = offers and tuple(intervals_of(places) for places in (offers[:1] if one_offer else offers))
    table = BlockTable.of_chunks(extents, shares, block, offered or None)
    choice = budget.choose(table, tokens)
    assert len(choice.kept) == choice.shape[0] * choice.shape[1]
    for kept in choice.kept:
        assert all(start < stop for start, stop in kept)
        assert all(stop < start for (_, stop), (start, _) in pairwise(kept))
        assert len(positions(kept)) <= budget.most(tokens)
    if offers:
        for places, allowed in zip(per_head(choice), offers[:1] * (L * G) if one_offer else offers, strict=True):
            assert places <= allowed
    assert choice.tokens <= tokens
    assert sum(map(len, per_head(choice))) <= tokens * L * G
    assert budget.choose(table, tokens) == choice


@each_kind
@given(data=st.data(), document=documents(), tokens=st.integers(1, 120))
def test_chunks_read_apart_offer_whatever_the_document_wants(
    kind: str, data: st.DataObject, document: tuple[list[Interval], list[NDArray[np.float64]], int], tokens: int
) -> None:
    """The law of offers. A chunk sees its own shares only, on a scale of its own for each layer and head (a power of
    two: rounding must not make ties), and holds besides its offer as much of its edges as blocks are widened by."""
    budget = data.draw(BUDGETS[kind])
    extents, shares, block = document
    whole = BlockTable.of_chunks(extents, shares, block)
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    widen = budget.record["widen_tokens"]
    assert isinstance(widen, int)
    held: list[set[int]] = [set() for _ in range(L * G)]
    for (start, stop), share in zip(extents, shares, strict=True):
        factors_LG1 = 2.0 ** rng.integers(-3, 4, size=(*share.shape[:2], 1))
        alone = BlockTable.of_chunks([(0, stop - start)], [share * factors_LG1], block)
        edges = {*range(start, min(stop, start + widen)), *range(max(start, stop - widen), stop)}
        for mine, places in zip(held, per_head(budget.offer(alone, tokens)), strict=True):
            mine |= {place + start for place in places} | edges
    offered = tuple(map(intervals_of, held))
    got = budget.choose(BlockTable.of_chunks(extents, shares, block, offered), tokens)
    assert got == budget.choose(whole, tokens)


@each_kind
@given(data=st.data(), document=documents())
def test_a_grant_of_everything_keeps_all_that_the_method_ever_keeps(
    kind: str, data: st.DataObject, document: tuple[list[Interval], list[NDArray[np.float64]], int]
) -> None:
    budget = data.draw(BUDGETS[kind])
    extents, shares, block = document
    everything = set(range(extents[-1][1]))
    kept = per_head(budget.choose(BlockTable.of_chunks(extents, shares, block), 10**6))
    if isinstance(budget, HeadsBudget):
        roles = [role for row in budget.head_map.roles_LG for role in row]
        assert all(places == everything for places, role in zip(kept, roles, strict=True) if role == "retrieval")
        assert not any(places for places, role in zip(kept, roles, strict=True) if role == "pruned")
    elif not isinstance(budget, ThresholdBudget | MinPBudget):
        assert all(places == everything for places in kept)
    else:
        assert all(kept)


@each_kind
@given(data=st.data())
def test_a_record_is_json_and_tells_settings_apart(kind: str, data: st.DataObject) -> None:
    one, other = data.draw(BUDGETS[kind]), data.draw(BUDGETS[kind])
    assert one.record["kind"] == kind
    assert (json.dumps(one.record) == json.dumps(other.record)) == (one == other)


@each_kind
def test_a_job_gets_the_budget_it_names(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOVEATE_CACHE", str(tmp_path))
    keep = Keep(widen_tokens=5, budget=SETTINGS.validate_python({"kind": kind}))
    if kind == "heads":
        with pytest.raises(ModelError, match=r"keep\.budget\.map: auto: .*foveate calibrate --heads"):
            budget_of(keep, shape=SHAPE, weights="w")
        HeadMap.from_scores("w", np.arange(L * G).reshape(L, G), 0.5).save(head_map_path("w"))
    record = budget_of(keep, shape=SHAPE, weights="w").record
    told = keep.budget.model_dump(exclude={"tokens", "fraction", "map"}) | {"widen_tokens": 5}
    assert told.items() <= record.items()


@given(documents(), st.integers(1, 120), WIDEN)
def test_relevance_is_additive_over_what_is_kept(
    document: tuple[list[Interval], list[NDArray[np.float64]], int], tokens: int, widen: int
) -> None:
    table = BlockTable.of_chunks(*document).joint()
    whole = (0, int(table.stops_B[-1]))
    assert table.relevance_of(whole) == pytest.approx(1.0)
    [kept] = UniformBudget(widen).choose(table, tokens).kept
    left_out = positions([whole]) - positions(kept)
    assert sum(map(table.relevance_of, [*kept, *intervals_of(left_out)])) == pytest.approx(1.0)


# -- filling: what every budget does with its best blocks ----------------------------------------------------


def test_a_fact_on_a_block_border_is_not_cut() -> None:
    """The prototype answered 4694 for 46941: its digits lay on both sides of a border."""
    table = one([0.0, 1.0, 0.0])
    assert UniformBudget(16).choose(table, 64).kept == (((16, 80),),)
    assert UniformBudget(0).choose(table, 64).kept == (((0, 64),),)


def test_widening_gives_way_before_a_block_does() -> None:
    assert UniformBudget(16).choose(one([0.0, 1.0, 0.0]), 40).kept == (((28, 68),),)


def test_ties_fall_to_the_earlier_block() -> None:
    assert UniformBudget(0).choose(one([0.25] * 4), 64).kept == (((0, 64),),)


def test_a_document_shorter_than_a_block_is_kept_whole() -> None:
    table = BlockTable.of_chunks([(0, 5)], [np.ones((1, 1, 1))], 32)
    assert UniformBudget(16).choose(table, 32).kept == (((0, 5),),)


def test_filling_ends_at_the_first_block_that_is_not_widened_in_full() -> None:
    """Going on with smaller ones would let a document keep what a chunk, with more room for wide blocks, had not."""
    table = BlockTable.of_chunks([(0, 161)], [np.array([[[0.0, 0.5, 0.0, 0.3, 0.0, 0.2]]])], 32)
    assert UniformBudget(16).choose(table, 97).kept == (((16, 80), (96, 128)),), "one token is left, and one would fit"


def test_what_is_gone_costs_nothing() -> None:
    """Carried reading chooses again among what it still holds: blocks dropped earlier do not eat the budget."""
    table = BlockTable.of_chunks([(0, 128)], [np.array([[[0.4, 0.3, 0.2, 0.1]]])], 32, (((64, 128),),))
    assert UniformBudget(0).choose(table, 64).kept == (((64, 128),),)


# -- what each budget does of its own ------------------------------------------------------------------------


def test_uniform_gives_every_chunk_its_floor_while_the_budget_lasts() -> None:
    shares = [np.array([[[0.9, 0.8]]]), np.array([[[0.0, 0.1]]]), np.array([[[0.02, 0.01]]])]
    table = BlockTable.of_chunks([(0, 64), (64, 128), (128, 192)], shares, 32)
    assert UniformBudget(0).choose(table, 64).kept == (((0, 64),),)
    assert UniformBudget(0, min_blocks_per_chunk=1).choose(table, 96).kept == (((0, 32), (96, 160)),)


@given(st.integers(1, 40), st.floats(1.0, 60.0), st.integers(1, 5000))
def test_pyramid_falls_in_a_line_and_spends_what_uniform_spends(layers: int, slope: float, tokens: int) -> None:
    tokens_L = PyramidBudget(layers, slope, 0).tokens_of_layers(tokens)
    assert tokens_L.sum() == layers * tokens
    assert all(higher <= lower for lower, higher in pairwise(tokens_L))
    if layers > 1:
        line_L = np.linspace(slope, 1, layers) * 2 * tokens / (slope + 1)
        assert np.abs(tokens_L - line_L).max() <= 1 + 1e-5


def test_pyramid_has_one_entry_per_layer_where_heads_share_a_scale() -> None:
    table = one([0.1, 0.2, 0.3, 0.4])
    choice = PyramidBudget(3, 3.0, 0).choose(table, 64)
    assert choice.shape == (3, 1)
    assert [sum(stop - start for start, stop in kept) for kept in choice.kept] == [96, 64, 32]


@given(documents(), st.integers(1, 120), WIDEN, st.sampled_from([0.0, 0.2, 1.0]))
def test_adaptive_is_uniform_where_heads_share_a_scale_or_each_is_sure_of_all(
    document: tuple[list[Interval], list[NDArray[np.float64]], int], tokens: int, widen: int, safeguard: float
) -> None:
    extents, shares, block = document
    table = BlockTable.of_chunks(extents, shares, block)
    for budget, same in ((AdaptiveBudget(G, safeguard, widen), table.joint()), (AdaptiveBudget(G, 1.0, widen), table)):
        assert budget.choose(same, tokens) == UniformBudget(widen).choose(same, tokens)


def test_adaptive_gives_more_to_the_head_that_attends_widely() -> None:
    wide, narrow = [0.25] * 4, [0.97, 0.01, 0.01, 0.01]
    table = BlockTable.of_chunks([(0, 128)], [np.array([[wide, narrow]])], 32)
    assert AdaptiveBudget(2, 0.0, 0).choose(table, 64).kept == (((0, 96),), ((0, 32),))
    assert AdaptiveBudget(2, 1.0, 0).choose(table, 64).kept == (((0, 64),), ((0, 64),))


def test_adaptive_leaves_every_head_what_it_is_sure_of() -> None:
    loud, silent = [0.5, 0.5, 0.0, 0.0], [0.4, 0.3, 0.2, 0.1]
    table = BlockTable.of_chunks([(0, 128)], [np.array([[loud, silent]])], 32)
    assert AdaptiveBudget(2, 0.0, 0).choose(table, 32).kept == (((0, 64),), ())
    assert AdaptiveBudget(2, 1.0, 0).choose(table, 32).kept == (((0, 32),), ((0, 32),))


def test_a_chunk_offers_a_head_all_that_adaptive_could_give_it() -> None:
    """Alone, two heads look alike; the other chunk shows that one of them cares only for this one."""
    alone = BlockTable.of_chunks([(0, 128)], [np.full((1, 2, 4), 0.25)], 32)
    elsewhere = np.array([[[0.0] * 4, [0.96, 0.01, 0.01, 0.01]]])
    whole = BlockTable.of_chunks([(0, 128), (128, 256)], [np.array([[[0.25] * 4, [0.0025] * 4]]), elsewhere], 32)
    budget = AdaptiveBudget(2, 0.0, 0)
    wanted = budget.choose(whole, 80)
    assert wanted.kept == (((0, 128),), ((128, 160),))
    assert budget.offer(alone, 80).kept == (((0, 128),), ((0, 128),))
    assert budget.choose(alone, 80).kept == (((0, 96),), ((0, 64),)), "which is why an offer is more than a choice"


def test_heads_keep_what_their_role_needs() -> None:
    head_map = HeadMap("w", (("retrieval", "streaming"), ("pruned", "streaming")))
    table = one([0.0, 0.2, 0.3, 0.5])
    choice = HeadsBudget(head_map, 4, 8, 0).choose(table, 32)
    assert choice.shape == (2, 2)
    assert choice.of(0, 0) == ((32, 128),), "4 * 32 - 2 * 12 = 104 tokens: three blocks"
    assert choice.of(0, 1) == choice.of(1, 1) == ((0, 4), (120, 128))
    assert choice.of(1, 0) == ()
    assert HeadsBudget(head_map, 4, 8, 0).most(32) == 104


def test_a_threshold_keeps_what_stands_out_up_to_the_grant() -> None:
    table = one([0.05, 0.4, 0.05, 0.3, 0.2])
    assert ThresholdBudget(1.0, 0).choose(table, 160).kept == (((32, 64), (96, 160)),)
    assert ThresholdBudget(1.4, 0).choose(table, 160).kept == (((32, 64), (96, 128)),)
    assert ThresholdBudget(1.4, 0).choose(table, 32).kept == (((32, 64),),)
    assert ThresholdBudget(4.0, 0).choose(table, 160).kept == (((32, 64),),), "nothing passes: the best is kept"


def test_min_p_keeps_what_comes_near_the_best_up_to_the_grant() -> None:
    table = one([0.05, 0.4, 0.05, 0.3, 0.2])
    assert MinPBudget(0.5, 0).choose(table, 160).kept == (((32, 64), (96, 160)),)
    assert MinPBudget(0.7, 0).choose(table, 160).kept == (((32, 64), (96, 128)),)
    assert MinPBudget(0.5, 0).choose(table, 64).kept == (((32, 64), (96, 128)),)
    assert MinPBudget(1.0, 0).choose(table, 160).kept == (((32, 64),),)


def test_min_p_keeps_the_same_however_much_else_a_document_says() -> None:
    few, many = [0.5, 0.3, 0.2], [0.5, 0.3, 0.2] + 97 * [0.01]
    budgets: list[tuple[Budget, bool]] = [(MinPBudget(0.5, 0), True), (ThresholdBudget(1.2, 0), False)]
    for budget, is_same in budgets:
        short, long = (budget.choose(one([x / sum(shares) for x in shares]), 3200) for shares in (few, many))
        assert (short == long) is is_same
