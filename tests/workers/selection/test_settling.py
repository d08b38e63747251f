"""Laws of settling: shares of one document, whatever was or was not heard."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from workers.hf import ModelShape
from workers.selection.scorers.base import ChunkScores
from workers.selection.settling import settle_masses

SHAPE = ModelShape(num_layers=3, num_heads=4, num_kv_heads=2, head_dim=8, window=64, windows=(None,) * 3)
COLUMNS = SHAPE.num_layers * SHAPE.num_heads
LOG_MASSES = hnp.arrays(
    np.float32,
    st.tuples(st.just(1), st.just(COLUMNS), st.integers(1, 9)),
    elements=st.one_of(st.floats(-1e4, 1e4, width=32), st.just(-np.inf)),
)


def _chunks(log_RHB: NDArray[np.float32], cuts: list[int]) -> list[ChunkScores]:
    borders = [0, *cuts, log_RHB.shape[2]]
    return [ChunkScores(log_RHB[:, :, start:stop], (start, stop), 1) for start, stop in pairwise(borders)]


@given(LOG_MASSES, st.data())
def test_shares_sum_to_one_and_do_not_depend_on_the_cut(log_RHB: NDArray[np.float32], data: st.DataObject) -> None:
    whole = settle_masses(_chunks(log_RHB, []), SHAPE)[0]
    assert whole.shape == (SHAPE.num_layers, SHAPE.num_kv_heads, log_RHB.shape[2])
    assert (whole >= 0.0).all()
    np.testing.assert_allclose(whole.sum(axis=2).mean(), 1.0)
    inner = range(1, log_RHB.shape[2])
    cuts = sorted(data.draw(st.sets(st.sampled_from(inner)))) if inner else []
    np.testing.assert_array_equal(np.concatenate(settle_masses(_chunks(log_RHB, cuts), SHAPE), axis=2), whole)


def test_heads_that_heard_nothing_find_all_blocks_alike() -> None:
    log_RHB = np.full((1, COLUMNS, 5), -np.inf, np.float32)
    [share_LGB] = settle_masses(_chunks(log_RHB, []), SHAPE)
    np.testing.assert_allclose(share_LGB, 0.2)


def test_heads_stay_as_loud_as_they_are() -> None:
    """Where heads of a layer compete for a budget (AdaKV, KVzip), one that attends more keeps more."""
    log_RHB = np.zeros((1, COLUMNS, 2), np.float32)
    log_RHB[0, 0] = np.log((5.0, 7.0))  # layer 0, the first of the two heads of kv head 0
    [share_LGB] = settle_masses(_chunks(log_RHB, []), SHAPE)
    np.testing.assert_allclose(share_LGB[0, 0] / share_LGB[0, 1], (3.0, 4.0), rtol=1e-6)
    np.testing.assert_allclose(share_LGB[1], share_LGB[0, 1:].repeat(2, axis=0))
