"""The laws of the attention primitive, sat by every backend in every dtype."""

from __future__ import annotations

from functools import reduce
from itertools import pairwise, permutations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.workers.attention.conftest import Sitting
from tests.workers.attention.ragged import Ragged, Shape, assert_close, make, shapes, softmax64
from workers.attention.base import Partial, empty, merge

few = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])

FIXED = [
    pytest.param(Shape(((40, 700),), (4, 2), 64), id="past-longer-than-kernel-blocks"),
    pytest.param(Shape(((130, 130),), (2, 1), 128), id="square"),
    pytest.param(Shape(((1, 600), (1, 3), (1, 90)), (9, 3), 64), id="decode"),
    pytest.param(Shape(((1, 30), (0, 5), (1, 9))), id="decode-with-an-idle-sequence"),
    pytest.param(Shape(((1, 0), (1, 4))), id="decode-over-nothing"),
    pytest.param(Shape(((16, 20), (17, 20))), id="either-side-of-folding"),
    pytest.param(Shape(((9, 4), (3, 0), (0, 3), (0, 0), (5, 5))), id="more-queries-than-keys"),
    pytest.param(Shape(((3, 0), (2, 0))), id="no-keys"),
    pytest.param(Shape(((0, 3), (0, 2))), id="no-queries"),
    pytest.param(Shape(()), id="no-sequences"),
]


@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("shape", FIXED)
def test_equals_softmax(sitting: Sitting, shape: Shape, causal: bool) -> None:
    ragged = make(shape, sitting)
    assert_close(ragged.attend(sitting, causal=causal), softmax64(ragged, causal=causal), sitting)


@few
@given(shape=shapes(), causal=st.booleans(), seed=st.integers(0, 99))
def test_equals_softmax_on_any_ragged_shape(sitting: Sitting, shape: Shape, causal: bool, seed: int) -> None:
    ragged = make(shape, sitting, seed)
    assert_close(ragged.attend(sitting, causal=causal), softmax64(ragged, causal=causal), sitting)


@pytest.mark.parametrize("num_keys", [4, 7, 12, 300])
def test_causal_is_aligned_bottom_right(sitting: Sitting, num_keys: int) -> None:
    """Row r of n over m keys is the same as that row alone over the first m - n + r + 1 keys."""
    n, ragged = 7, make(Shape(((7, num_keys),)), sitting)
    got = ragged.attend(sitting, causal=True)
    for row in range(n):
        seen = max(0, num_keys - n + row + 1)
        k, v = ragged.k_SGD[:seen], ragged.v_SGD[:seen]
        alone = Ragged(ragged.q_THD[row : row + 1], k, v, [0, 1], [0, seen], ragged.scale)
        rows = Partial(got.out_THD[row : row + 1], got.lse_TH[row : row + 1])
        assert_close(rows, alone.attend(sitting, causal=False), sitting, slack=2)


@pytest.mark.parametrize("window", [1, 5, 40, 100, 10**6])
@pytest.mark.parametrize("shape", FIXED)
def test_a_window_equals_softmax_over_the_last_keys(sitting: Sitting, shape: Shape, window: int) -> None:
    ragged = make(shape, sitting)
    got = ragged.attend(sitting, causal=True, window=window)
    assert_close(got, softmax64(ragged, causal=True, window=window), sitting)


@few
@given(shape=shapes(), window=st.integers(1, 26), seed=st.integers(0, 99))
def test_a_window_equals_softmax_on_any_ragged_shape(sitting: Sitting, shape: Shape, window: int, seed: int) -> None:
    ragged = make(shape, sitting, seed)
    got = ragged.attend(sitting, causal=True, window=window)
    assert_close(got, softmax64(ragged, causal=True, window=window), sitting)


def test_a_windowed_chunk_needs_only_the_last_keys_before_it(sitting: Sitting) -> None:
    """What a reader may drop: all but the window - 1 keys before the rows."""
    window, ragged = 20, make(Shape(((70, 170),)), sitting)
    kept = ragged.keys([slice(100 - (window - 1), 170)], [0, 70 + window - 1])
    got = kept.attend(sitting, causal=True, window=window)
    assert_close(got, ragged.attend(sitting, causal=True, window=window), sitting, slack=2)


@few
@given(shape=shapes(), cuts=st.tuples(st.floats(0, 1), st.floats(0, 1)), seed=st.integers(0, 99))
def test_keys_in_pieces_merge_to_the_whole(
    sitting: Sitting, shape: Shape, cuts: tuple[float, float], seed: int
) -> None:
    """Every sequence's keys in three runs (some empty), merged in any order and bracketing."""
    ragged = make(shape, sitting, seed)
    whole = softmax64(ragged, causal=False)
    marks = [0.0, *sorted(cuts), 1.0]
    pieces = []
    for low, high in pairwise(marks):
        runs, cu_k = [], [0]
        for start, stop in pairwise(ragged.cu_k):
            runs.append(slice(start + round(low * (stop - start)), start + round(high * (stop - start))))
            cu_k.append(cu_k[-1] + runs[-1].stop - runs[-1].start)
        pieces.append(ragged.keys(runs, cu_k).attend(sitting, causal=False))
    for order in permutations(pieces):
        assert_close(reduce(merge, order), whole, sitting, slack=2)
    first, second, third = pieces
    assert_close(merge(first, merge(second, third)), whole, sitting, slack=2)


def test_a_chunk_after_a_past_is_past_in_full_and_self_causal(sitting: Sitting) -> None:
    ragged = make(Shape(((20, 53),)), sitting)
    past = ragged.keys([slice(0, 33)], [0, 33]).attend(sitting, causal=False)
    own = ragged.keys([slice(33, 53)], [0, 20]).attend(sitting, causal=True)
    assert_close(merge(past, own), softmax64(ragged, causal=True), sitting, slack=2)


@few
@given(shape=shapes(), causal=st.booleans())
def test_sequences_together_equal_one_by_one(sitting: Sitting, shape: Shape, causal: bool) -> None:
    ragged = make(shape, sitting)
    together = ragged.attend(sitting, causal=causal)
    alone = [ragged.sequence(index).attend(sitting, causal=causal) for index in range(len(shape.lengths))]
    joined = Partial(torch.cat([one.out_THD for one in alone]), torch.cat([one.lse_TH for one in alone]))
    assert_close(together, joined, sitting, slack=2)


def test_heads_as_sequences_keep_different_lengths(sitting: Sitting) -> None:
    """Each kv head with its own kept set is one sequence: 2 query heads, one kv head, its own keys."""
    n, G, R, kept = 3, 4, 2, [11, 0, 64, 5]
    dense = make(Shape(((n, 64),), (G * R, G), 16), sitting)
    chosen = [torch.randperm(64, generator=torch.Generator().manual_seed(g))[:m] for g, m in enumerate(kept)]
    as_sequences = Ragged(
        dense.q_THD.view(n, G, R, -1).transpose(0, 1).reshape(G * n, R, -1),
        *(torch.cat([x[chosen[g].to(x.device), g] for g in range(G)])[:, None] for x in (dense.k_SGD, dense.v_SGD)),
        cu_q=[n * g for g in range(G + 1)],
        cu_k=[sum(kept[:g]) for g in range(G + 1)],
        scale=dense.scale,
    )
    got = as_sequences.attend(sitting, causal=False)
    for g in range(G):
        rows = chosen[g].to(sitting.device)
        q = dense.q_THD[:, g * R : (g + 1) * R]
        head = Ragged(q, dense.k_SGD[rows, g : g + 1], dense.v_SGD[rows, g : g + 1], [0, n], [0, kept[g]], dense.scale)
        mine = Partial(got.out_THD[g * n : (g + 1) * n], got.lse_TH[g * n : (g + 1) * n])
        assert_close(mine, softmax64(head, causal=False), sitting)


def test_strides_do_not_matter(sitting: Sitting) -> None:
    """Heads before rows, rows that skip, and neighbours in D that are not neighbours in memory."""
    ragged = make(Shape(((5, 9), (20, 31))), sitting)
    want = softmax64(ragged, causal=True)
    heads_first = [x.transpose(0, 1).contiguous().transpose(0, 1) for x in (ragged.q_THD, ragged.k_SGD, ragged.v_SGD)]
    skipping = [torch.stack([x, x], 1).flatten(0, 1)[::2] for x in (ragged.q_THD, ragged.k_SGD, ragged.v_SGD)]
    depth_first = [x.mT.contiguous().mT for x in (ragged.q_THD, ragged.k_SGD, ragged.v_SGD)]
    for q, k, v in (heads_first, skipping, depth_first):
        strided = Ragged(q, k, v, ragged.cu_q, ragged.cu_k, ragged.scale)
        assert_close(strided.attend(sitting, causal=True), want, sitting)


def test_inputs_are_left_alone(sitting: Sitting) -> None:
    ragged = make(Shape(((5, 9), (1, 3))), sitting)
    before = [x.clone() for x in (ragged.q_THD, ragged.k_SGD, ragged.v_SGD)]
    ragged.attend(sitting, causal=True)
    assert all(map(torch.equal, before, (ragged.q_THD, ragged.k_SGD, ragged.v_SGD)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cu_q": [0, 4]}, "cu_q.*want 0 first and 5 last"),
        ({"cu_k": [1, 9]}, "cu_k.*want 0 first and 9 last"),
        ({"cu_k": []}, "as many of both"),
        ({"cu_q": [0, 6, 5], "cu_k": [0, 4, 9]}, "cu_q falls"),
        ({"q_THD": torch.zeros(5, 5, 16)}, "multiple of the number of kv heads"),
        ({"k_SGD": torch.zeros(9, 2, 8), "v_SGD": torch.zeros(9, 2, 8)}, "same head dimension"),
        ({"v_SGD": torch.zeros(8, 2, 16)}, "want THD, SGD, SGD"),
        ({"q_THD": torch.zeros(5, 6, 16, dtype=torch.float64)}, "one dtype"),
    ],
    ids=["short-q", "late-k", "no-k", "falling", "heads", "depth", "values", "dtype"],
)
def test_a_call_that_does_not_fit_is_refused(sitting: Sitting, change: dict[str, object], message: str) -> None:
    fits = vars(make(Shape(((5, 9),)), sitting))
    keep_dtype = {
        name: value.to(sitting.dtype) if isinstance(value, torch.Tensor) and value.dtype == torch.float32 else value
        for name, value in change.items()
    }
    with pytest.raises(ValueError, match=message):
        Ragged(**(fits | keep_dtype)).attend(sitting, causal=False)


def test_a_dtype_that_the_kernel_lacks_is_refused(sitting: Sitting) -> None:
    wrong = torch.float64 if sitting.backend.name == "cpu" else torch.float32
    ragged = make(Shape(((5, 9),)), Sitting(sitting.backend, sitting.device, wrong))
    with pytest.raises(ValueError, match=rf"q is {wrong}: the {sitting.backend.name} backend takes"):
        ragged.attend(sitting, causal=False)


@pytest.mark.parametrize(("window", "causal"), [(0, True), (-1, True), (4, False)])
def test_a_window_that_means_nothing_is_refused(sitting: Sitting, window: int, causal: bool) -> None:
    with pytest.raises(ValueError, match=f"window {window} with causal={causal}: want 1 or more, in a causal call"):
        make(Shape(((5, 9),)), sitting).attend(sitting, causal=causal, window=window)


def _partial(lse: list[float], seed: int) -> Partial:
    """Rows of one head with these log-sum-exps; rows that saw nothing have out 0, as attend leaves them."""
    lse_TH = torch.tensor(lse)[:, None]
    out_THD = torch.randn(len(lse), 1, 4, generator=torch.Generator().manual_seed(seed))
    return Partial(out_THD.masked_fill(torch.isneginf(lse_TH)[..., None], 0.0), lse_TH)


lses = st.lists(st.tuples(*[st.just(float("-inf")) | st.floats(-1e4, 1e4, width=32)] * 3), min_size=1, max_size=6)


@few
@given(rows=lses)
def test_merge_is_commutative_associative_and_has_a_neutral(rows: list[tuple[float, float, float]]) -> None:
    """For any log-sum-exps, near or far apart and beyond exp's range, and for rows that saw nothing."""
    a, b, c = (_partial(list(lse), seed) for seed, lse in enumerate(zip(*rows, strict=True)))
    for left, right in (
        (merge(a, b), merge(b, a)),
        (merge(merge(a, b), c), merge(a, merge(b, c))),
        (merge(a, empty(a.out_THD)), a),
        (merge(empty(a.out_THD), a), a),
    ):
        # One unit in the last place of a log-sum-exp of 10,000 is 1e-3 of a weight.
        torch.testing.assert_close(left.out_THD, right.out_THD, rtol=0, atol=1e-2)
        torch.testing.assert_close(left.lse_TH, right.lse_TH, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_merge_of_nothing_with_nothing_is_nothing(dtype: torch.dtype) -> None:
    nothing = empty(torch.ones(3, 2, 8, dtype=dtype))
    out_THD, lse_TH = merge(nothing, nothing)
    assert out_THD.dtype == dtype and torch.equal(out_THD, torch.zeros_like(out_THD))
    assert torch.isneginf(lse_TH).all()


def test_merge_does_not_hide_a_nan() -> None:
    a = Partial(torch.zeros(1, 1, 4), torch.tensor([[float("nan")]]))
    out_THD, lse_TH = merge(a, _partial([1.0], 0))
    assert out_THD.isnan().all() and lse_TH.isnan().all()
