"""Grids and plans, and the laws of their execution, for any picks whatever."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.workers.attention.conftest import Sitting
from tests.workers.attention.ragged import assert_close
from tests.workers.attention.sparse import SCALE, Layer, Recorder, make_layer, masked64
from workers.attention import plan as plans
from workers.attention.base import resolve
from workers.attention.plan import BlockGrid, Picks, attend_picks, attend_plan, full_plan, masked_plan

few = settings(max_examples=8, deadline=None)


def random_picks(layer: Layer, row_bounds: Sequence[int], num_lists: int, seed: int) -> Picks:
    """Any keys before each block: none, single ones, all."""
    generator, before = np.random.default_rng(seed), layer.num_keys - layer.num_rows
    return Picks(
        tuple(row_bounds),
        tuple(
            tuple(
                np.flatnonzero(generator.random(before + start) < generator.choice([0, 0.1, 0.5, 1]))
                for start, _ in pairwise(row_bounds)
            )
            for _ in range(num_lists)
        ),
    )


def allowed_by(picks: Picks, layer: Layer) -> Tensor:
    """Picks as a mask [G, T, S], written out."""
    allowed = torch.ones(layer.num_rows, layer.num_keys).tril(layer.num_keys - layer.num_rows).bool()
    masks = []
    for head in picks.rows:
        mask = torch.zeros_like(allowed)
        for (start, stop), earlier in zip(pairwise(picks.row_bounds), head, strict=True):
            mask[start:stop, torch.from_numpy(earlier)] = True
            mask[start:stop, layer.num_keys - layer.num_rows + start : layer.num_keys] = True
            mask[start:stop] &= allowed[start:stop]
        masks.append(mask)
    return torch.stack(masks).expand(layer.k_SGD.shape[1], -1, -1)


cuts = st.lists(st.integers(1, 20), min_size=1, max_size=5).map(lambda lengths: [0, *np.cumsum(lengths).tolist()])


@few
@given(row_bounds=cuts, before=st.integers(0, 30), per_head=st.booleans(), seed=st.integers(0, 99))
def test_picks_equal_softmax_over_the_picked(
    sitting: Sitting, row_bounds: list[int], before: int, per_head: bool, seed: int
) -> None:
    layer = make_layer(sitting, row_bounds[-1], row_bounds[-1] + before, seed=seed)
    picks = random_picks(layer, row_bounds, layer.k_SGD.shape[1] if per_head else 1, seed)
    got = attend_picks(sitting.backend, *layer.tensors, picks, SCALE)
    assert_close(got, masked64(layer, allowed_by(picks, layer)), sitting, slack=2)


@pytest.mark.parametrize("per_head", [False, True])
def test_keys_that_were_not_picked_are_never_touched(sitting: Sitting, per_head: bool) -> None:
    layer = make_layer(sitting, 40, 70)
    picks = random_picks(layer, [0, 13, 40], layer.k_SGD.shape[1] if per_head else 1, seed=3)
    want = attend_picks(sitting.backend, *layer.tensors, picks, SCALE)
    for i, (start, stop) in enumerate(pairwise(picks.row_bounds)):
        used = torch.zeros(layer.k_SGD.shape[:2], dtype=torch.bool)
        used[30 + start : 30 + stop] = True
        for g in range(layer.k_SGD.shape[1]):
            used[torch.from_numpy(picks.rows[g % len(picks.rows)][i]), g] = True
        assert not used.all()
        got = attend_picks(sitting.backend, *layer.poisoned(~used).tensors, picks, SCALE)
        assert got.out_THD[start:stop].isfinite().all()
        assert torch.equal(got.out_THD[start:stop], want.out_THD[start:stop])
        assert torch.equal(got.lse_TH[start:stop], want.lse_TH[start:stop])


@pytest.mark.parametrize("most", [1, 3000])
@pytest.mark.parametrize("per_head", [False, True])
def test_several_calls_give_what_one_gives(
    sitting: Sitting, per_head: bool, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = make_layer(sitting, 50, 60)
    picks = random_picks(layer, [0, 7, 20, 50], layer.k_SGD.shape[1] if per_head else 1, seed=1)
    once = attend_picks(sitting.backend, *layer.tensors, picks, SCALE)
    monkeypatch.setitem(plans._GATHER_BYTES, sitting.device.type, most)
    assert_close(attend_picks(sitting.backend, *layer.tensors, picks, SCALE), once, sitting)


@pytest.mark.parametrize(("most", "num_calls"), [(2**24, 1), (1, 6)])
def test_what_fits_is_one_call(most: int, num_calls: int, monkeypatch: pytest.MonkeyPatch) -> None:
    layer, recorder = make_layer(None, 50, 60), Recorder()
    picks = random_picks(layer, [0, 7, 20, 50], 2, seed=1)
    monkeypatch.setitem(plans._GATHER_BYTES, "cpu", most)
    attend_picks(recorder, *layer.tensors, picks, SCALE)
    assert len(recorder.calls) == num_calls
    assert [length for lengths_q, _ in recorder.calls for length in lengths_q] == [7, 13, 30] * 2
    assert [length for _, lengths_k in recorder.calls for length in lengths_k] == [
        len(rows) + own for head in picks.rows for rows, own in zip(head, [7, 13, 30], strict=True)
    ]


def test_strides_do_not_matter() -> None:
    """Heads before rows in memory, as a model hands them over."""
    layer = make_layer(None, 50, 60)
    other = Layer(*(x.transpose(0, 1).contiguous().transpose(0, 1) for x in layer.tensors))
    for num_lists in (1, 2):
        picks = random_picks(layer, [0, 7, 20, 50], num_lists, seed=1)
        cpu = resolve("cpu", torch.device("cpu"))
        want, got = (attend_picks(cpu, *each.tensors, picks, SCALE) for each in (layer, other))
        torch.testing.assert_close(got, want)


def test_no_rows_see_nothing() -> None:
    layer = make_layer(None, 0, 40)
    plan = full_plan(BlockGrid.of(0, 40, 16))
    out_THD, lse_TH = attend_plan(resolve("cpu", torch.device("cpu")), *layer.tensors, plan, SCALE)
    assert out_THD.shape == layer.q_THD.shape and lse_TH.shape == layer.q_THD.shape[:2]


@pytest.mark.parametrize(
    ("num_rows", "num_keys", "bounds", "rows"),
    [
        (40, 40, (0, 16, 32, 40), (0, 16, 32, 40)),
        (32, 60, (0, 16, 28, 44, 60), (28, 44, 60)),
        (3, 35, (0, 16, 32, 35), (32, 35)),
        (0, 20, (0, 16, 20), (20,)),
    ],
)
def test_a_grid_cuts_rows_and_what_is_before_them_apart(
    num_rows: int, num_keys: int, bounds: tuple[int, ...], rows: tuple[int, ...]
) -> None:
    grid = BlockGrid.of(num_rows, num_keys, 16)
    assert grid.key_bounds == bounds and grid.row_bounds == rows
    assert [grid.key_bounds[grid.own(i)] for i in range(grid.num_row_blocks)] == list(rows[:-1])


@given(num_rows=st.integers(1, 90), before=st.integers(0, 60), tokens=st.integers(1, 120))
def test_windows_and_fronts_are_the_blocks_that_hold_their_keys(num_rows: int, before: int, tokens: int) -> None:
    grid = BlockGrid.of(num_rows, num_rows + before, 16)
    blocks = list(enumerate(pairwise(grid.key_bounds)))
    assert list(grid.front(tokens)) == [block for block, (start, _) in blocks if start < tokens]
    for i in range(grid.num_row_blocks):
        low, high = grid.row_bounds[i] - tokens, grid.row_bounds[i]
        assert list(grid.window(i, tokens)) == [b for b, (start, stop) in blocks if stop > low and start < high]


def test_plans_add_own_blocks_and_drop_later_ones() -> None:
    grid = BlockGrid.of(48, 80, 16)
    shared = full_plan(grid, [[4, 1, 1], [], [0, 3]])
    assert [blocks.tolist() for blocks in shared.reads[0]] == [[1, 2], [3], [0, 3, 4]]
    assert (shared.blocks_read, shared.blocks_dense) == (6, 12)
    allowed = np.zeros((2, 3, 5), dtype=bool)
    allowed[0, 0, [1, 4]], allowed[1, 2, 0] = True, True
    by_head = masked_plan(grid, allowed)
    assert [[blocks.tolist() for blocks in head] for head in by_head.reads] == [
        [[1, 2], [3], [4]],
        [[2], [3], [0, 4]],
    ]
