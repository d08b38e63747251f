"""Laws that every pattern sits, over every backend, and what each reads in an example of its own."""

from __future__ import annotations

from itertools import pairwise
from typing import get_args

import pytest
import torch
from torch import Tensor

from configs import methods
from configs.methods import (
    BigBirdPattern,
    DensePattern,
    LongformerPattern,
    RoutingPattern,
    SlidingWindowPattern,
    TopBlocksPattern,
    TriShapePattern,
)
from tests.workers.attention.conftest import Sitting
from tests.workers.attention.ragged import assert_close
from tests.workers.attention.sparse import SCALE, Layer, Recorder, allowed_by_plan, make_layer, masked64
from workers.attention.base import Partial
from workers.attention.patterns import pattern_of
from workers.attention.patterns.top_blocks import TopBlocks
from workers.attention.plan import BlockGrid, BlockPlan, Pattern, attend_plan

Sparse = SlidingWindowPattern | LongformerPattern | BigBirdPattern | TriShapePattern | RoutingPattern | TopBlocksPattern

BLOCK = 16
SPARSE: list[Sparse] = [
    SlidingWindowPattern(block_tokens=BLOCK, window_tokens=24),
    LongformerPattern(block_tokens=BLOCK, window_tokens=16, global_tokens=10),
    BigBirdPattern(block_tokens=BLOCK, window_blocks=2, random_blocks=2, global_blocks=1, seed=-3),
    TriShapePattern(block_tokens=BLOCK, sink_tokens=4, window_tokens=16, last_tokens=20),
    RoutingPattern(block_tokens=BLOCK, clusters=3),
    RoutingPattern(block_tokens=BLOCK),
    TopBlocksPattern(block_tokens=BLOCK, mass=0.5, min_blocks=1),
    TopBlocksPattern(block_tokens=24, mass=0.1, min_blocks=4),
]
FULL: list[Sparse] = [
    SlidingWindowPattern(block_tokens=BLOCK, window_tokens=10_000),
    LongformerPattern(block_tokens=BLOCK, window_tokens=1, global_tokens=10_000),
    BigBirdPattern(block_tokens=BLOCK, window_blocks=1, random_blocks=10_000, global_blocks=0),
    TriShapePattern(block_tokens=BLOCK, last_tokens=10_000),
    RoutingPattern(block_tokens=BLOCK, clusters=1),
    TopBlocksPattern(block_tokens=BLOCK, mass=0.1, min_blocks=10_000),
]


def name(settings: Sparse) -> str:
    return settings.kind


def opened(settings: Sparse) -> Pattern:
    pattern = pattern_of(settings)
    assert pattern is not None and pattern.block_tokens == settings.block_tokens
    return pattern


def plan_of(settings: Sparse, layer: Layer) -> BlockPlan:
    return opened(settings).plan(layer.grid(settings.block_tokens), layer.q_THD, layer.k_SGD, SCALE)


def attend(settings: Sparse, layer: Layer, sitting: Sitting) -> Partial:
    return attend_plan(sitting.backend, *layer.tensors, plan_of(settings, layer), SCALE)


def reads(plan: BlockPlan) -> list[list[list[int]]]:
    return [[blocks.tolist() for blocks in head] for head in plan.reads]


every_pattern = pytest.mark.parametrize("settings", SPARSE, ids=name)
alone_and_carried = pytest.mark.parametrize("before", [0, 40])


def test_every_kind_is_in_the_table_and_sits_the_laws() -> None:
    kinds = {model.model_fields["kind"].default for model in get_args(get_args(methods.Pattern)[0])}
    assert kinds - {"dense"} == {settings.kind for settings in SPARSE} == {settings.kind for settings in FULL}
    assert pattern_of(DensePattern()) is None


@every_pattern
@alone_and_carried
def test_equals_softmax_over_what_the_plan_allows(sitting: Sitting, settings: Sparse, before: int) -> None:
    layer = make_layer(sitting, 150, 150 + before)
    allowed = allowed_by_plan(plan_of(settings, layer), layer.k_SGD.shape[1])
    assert_close(attend(settings, layer, sitting), masked64(layer, allowed), sitting, slack=2)


@pytest.mark.parametrize("settings", FULL, ids=name)
@alone_and_carried
def test_one_that_allows_everything_is_dense(sitting: Sitting, settings: Sparse, before: int) -> None:
    layer = make_layer(sitting, 150, 150 + before)
    plan = plan_of(settings, layer)
    assert plan.blocks_read == plan.blocks_dense
    dense = sitting.backend.attend(*layer.tensors, [0, 150], [0, 150 + before], causal=True, scale=SCALE)
    assert_close(attend(settings, layer, sitting), dense, sitting, slack=2)


@every_pattern
@alone_and_carried
def test_a_block_reads_itself_and_only_what_is_before(settings: Sparse, before: int) -> None:
    layer = make_layer(None, 150, 150 + before)
    plan = plan_of(settings, layer)
    assert len(plan.reads) in (1, layer.k_SGD.shape[1])
    assert plan.blocks_read < plan.blocks_dense
    for head in reads(plan):
        assert len(head) == plan.grid.num_row_blocks
        for i, blocks in enumerate(head):
            assert blocks[-1] == plan.grid.own(i) and blocks[0] >= 0
            assert all(first < second for first, second in pairwise(blocks))


@every_pattern
def test_unread_blocks_are_never_touched(sitting: Sitting, settings: Sparse) -> None:
    """NaN in every key and value that a block of rows does not read, a block of rows at a time."""
    layer = make_layer(sitting, 96, 136)
    plan = plan_of(settings, layer)
    want = attend_plan(sitting.backend, *layer.tensors, plan, SCALE)
    bounds = plan.grid.key_bounds
    for i, (start, stop) in enumerate(pairwise(plan.grid.row_bounds)):
        unread = torch.ones(layer.k_SGD.shape[:2], dtype=torch.bool)
        for g in range(layer.k_SGD.shape[1]):
            for block in plan.reads[g % len(plan.reads)][i].tolist():
                unread[bounds[block] : bounds[block + 1], g] = False
        got = attend_plan(sitting.backend, *layer.poisoned(unread).tensors, plan, SCALE)
        rows = slice(start - bounds[plan.grid.own(0)], stop - bounds[plan.grid.own(0)])
        assert got.out_THD[rows].isfinite().all()
        assert torch.equal(got.out_THD[rows], want.out_THD[rows])
        assert torch.equal(got.lse_TH[rows], want.lse_TH[rows])


@every_pattern
@alone_and_carried
def test_blocks_read_is_what_reaches_the_backend(settings: Sparse, before: int) -> None:
    size = settings.block_tokens
    layer, recorder = make_layer(None, 7 * size, 7 * size + before // 16 * size), Recorder()
    plan = plan_of(settings, layer)
    attend_plan(recorder, *layer.tensors, plan, SCALE)
    [(lengths_q, lengths_k)] = recorder.calls
    assert set(lengths_q) == {size} and len(lengths_q) == 7 * len(plan.reads)
    assert plan.blocks_read == round(sum(lengths_k) / size / len(plan.reads))


@every_pattern
def test_the_same_again(sitting: Sitting, settings: Sparse) -> None:
    layer = make_layer(sitting, 150, 190)
    assert reads(plan_of(settings, layer)) == reads(plan_of(settings, layer))
    first, second = attend(settings, layer, sitting), attend(settings, layer, sitting)
    assert torch.equal(first.out_THD, second.out_THD) and torch.equal(first.lse_TH, second.lse_TH)


@every_pattern
def test_rows_may_be_read_in_two_calls(sitting: Sitting, settings: Sparse) -> None:
    """The last rows alone, the others being keys before them, read what they read together with them."""
    size = settings.block_tokens
    cut, before = 3 * size, 2 * size
    layer = make_layer(sitting, 7 * size, 7 * size + before)
    last = Layer(layer.q_THD[cut:], layer.k_SGD, layer.v_SGD)
    assert reads(plan_of(settings, last)) == [head[3:] for head in reads(plan_of(settings, layer))]
    whole, part = attend(settings, layer, sitting), attend(settings, last, sitting)
    assert_close(part, Partial(whole.out_THD[cut:], whole.lse_TH[cut:]), sitting)
    if settings.kind != "tri_shape":  # knows where a chunk ends
        first = Layer(layer.q_THD[:cut], layer.k_SGD[: before + cut], layer.v_SGD[: before + cut])
        assert reads(plan_of(settings, first)) == [head[:3] for head in reads(plan_of(settings, layer))]
        part = attend(settings, first, sitting)
        assert_close(part, Partial(whole.out_THD[:cut], whole.lse_TH[:cut]), sitting)


@every_pattern
@pytest.mark.parametrize("row_block", [1, 4, 6])
def test_what_comes_later_changes_nothing(settings: Sparse, row_block: int) -> None:
    layer = make_layer(None, 150, 190)
    other = layer.changed_from(row_block * settings.block_tokens)
    before = [head[:row_block] for head in reads(plan_of(settings, layer))]
    assert [head[:row_block] for head in reads(plan_of(settings, other))] == before


@pytest.mark.parametrize("settings", SPARSE, ids=name)
@pytest.mark.parametrize(("num_rows", "num_keys"), [(0, 40), (1, 1), (5, 5), (1, 60), (16, 16)])
def test_small_sizes(sitting: Sitting, settings: Sparse, num_rows: int, num_keys: int) -> None:
    layer = make_layer(sitting, num_rows, num_keys)
    allowed = allowed_by_plan(plan_of(settings, layer), layer.k_SGD.shape[1])
    assert_close(attend(settings, layer, sitting), masked64(layer, allowed), sitting, slack=2)


# -- what each one reads ------------------------------------------------------------------------------------


def of_last(settings: Sparse, layer: Layer) -> list[list[int]]:
    """For each key list the blocks of the last block of rows."""
    return [head[-1] for head in reads(plan_of(settings, layer))]


@pytest.mark.parametrize(
    ("settings", "last_of_8", "last_of_2"),
    [
        (SlidingWindowPattern(block_tokens=16, window_tokens=32), [5, 6, 7], [0, 1]),
        (SlidingWindowPattern(block_tokens=16, window_tokens=33), [4, 5, 6, 7], [0, 1]),
        (LongformerPattern(block_tokens=16, window_tokens=16, global_tokens=17), [0, 1, 6, 7], [0, 1]),
        (BigBirdPattern(block_tokens=16, random_blocks=0), [0, 1, 5, 6, 7], [0, 1]),
        (TriShapePattern(block_tokens=16, last_tokens=1), list(range(8)), [0, 1]),
    ],
    ids=lambda value: getattr(value, "kind", None),
)
def test_shapes_that_do_not_look_at_content(settings: Sparse, last_of_8: list[int], last_of_2: list[int]) -> None:
    assert of_last(settings, make_layer(None, 128, 128)) == [last_of_8]
    assert of_last(settings, make_layer(None, 32, 32)) == [last_of_2]
    assert of_last(settings, make_layer(None, 16, 128)) == [last_of_8]  # carried keys count like read ones


@pytest.mark.parametrize(("last_tokens", "second_last"), [(16, [0, 5, 6]), (17, list(range(7)))])
def test_tri_shape_is_dense_at_the_end_only(last_tokens: int, second_last: list[int]) -> None:
    settings = TriShapePattern(block_tokens=16, sink_tokens=16, window_tokens=16, last_tokens=last_tokens)
    [head] = reads(plan_of(settings, make_layer(None, 128, 128)))
    assert head[5:] == [[0, 4, 5], second_last, list(range(8))]


def test_bigbird_draws_other_blocks_by_seed_and_place() -> None:
    layer = make_layer(None, 640, 640)
    [one], [other] = (reads(plan_of(BigBirdPattern(block_tokens=16, seed=seed), layer)) for seed in (0, 1))
    assert one != other
    drawn = [set(blocks) - {0, 1, own - 2, own - 1, own} for own, blocks in enumerate(one)]
    assert [len(blocks) for blocks in drawn[:8]] == [0, 0, 0, 0, 0, 1, 2, 3]
    assert {len(blocks) for blocks in drawn[8:]} == {3} and len(set(map(frozenset, drawn[8:]))) > 20


def planted(directions_KD: Tensor, wanted_D: Tensor) -> Layer:
    """Blocks of 16 keys near ``directions_KD``; the queries of the last block look for ``wanted_D``."""
    layer = make_layer(None, 16 * len(directions_KD), 16 * len(directions_KD))
    k_SGD = 0.1 * layer.k_SGD + directions_KD.repeat_interleave(16, 0)[:, None]
    q_THD = layer.q_THD.clone()
    q_THD[-16:] = 0.1 * q_THD[-16:] + wanted_D
    return Layer(q_THD, k_SGD, layer.v_SGD)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("seed", range(4))
def test_routing_reads_the_blocks_of_the_nearest_cluster(sign: int, seed: int) -> None:
    signs = [1, -1, -1, 1, -1, 1, 1, -1, 1, -1]
    axis = torch.eye(16)[0]
    layer = planted(torch.tensor(signs)[:, None] * axis, sign * axis)
    mine = {block for block in range(9) if signs[block] == sign}
    settings = RoutingPattern(block_tokens=16, clusters=2, seed=seed)
    assert of_last(settings, layer) == [sorted({*mine, 8, 9})] * 2


@pytest.mark.parametrize("settings", [TopBlocksPattern(block_tokens=16, mass=0.5, min_blocks=m) for m in (1, 6)])
def test_top_blocks_finds_what_the_queries_look_for(settings: TopBlocksPattern) -> None:
    directions = torch.zeros(10, 16)
    directions[3] = 4.0
    [first, second] = of_last(settings, planted(directions, torch.full((16,), 2.0)))
    assert {0, 3, 9} <= set(first) & set(second)
    wanted = max(3, settings.min_blocks)
    assert len(first) == len(second) == wanted


def test_top_blocks_reads_more_for_more_mass() -> None:
    layer = make_layer(None, 150, 150)
    counts = [
        plan_of(TopBlocksPattern(block_tokens=16, mass=m, min_blocks=1), layer).blocks_read for m in (0.1, 0.6, 0.95)
    ]
    assert counts[0] < counts[1] < counts[2]


def test_top_blocks_estimates_by_antidiagonals() -> None:
    """The estimate by its definition, a tile at a time, for uneven blocks."""
    layer = make_layer(None, 40, 76)
    grid = BlockGrid((0, 24, 36, 60, 76), 2)
    got_GQK = TopBlocks(24, 0.9, 1)._estimate(grid, layer.q_THD.view(40, 2, 2, 16), layer.k_SGD, SCALE)
    tiles = [range(0, 16), range(16, 24), range(24, 36), range(36, 52), range(52, 60), range(60, 76)]
    owner = [0, 0, 1, 2, 2, 3]
    full = [[*tile, *[tile[-1]] * (16 - len(tile))] for tile in tiles]
    for g in range(2):
        want_QK = torch.zeros(2, 4)
        for q_tile, q_rows in enumerate(full[3:], start=3):
            for head in (2 * g, 2 * g + 1):
                logits = torch.stack(
                    [
                        (layer.q_THD[[row - 36 for row in q_rows[::-1]], head] * layer.k_SGD[k_rows, g]).sum()
                        for k_rows in full[: q_tile + 1]
                    ]
                ) * (SCALE / 16)
                for tile, share in enumerate(logits.softmax(0)):
                    want_QK[owner[q_tile] - 2, owner[tile]] += share / 2 / (2 if owner[q_tile] == 2 else 1)
        torch.testing.assert_close(got_GQK[g], want_QK)
