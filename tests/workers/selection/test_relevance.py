"""Laws of relevance: one scale for the document, whoever read which chunk."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from workers.selection.relevance import block_shares

LSE = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 12)),
    elements=st.floats(-60, 60, width=32),
)


@settings(deadline=None)
@given(LSE, st.data())
def test_shares_sum_to_one_and_do_not_depend_on_the_cut(lse_RHB: NDArray[np.float32], data: st.DataObject) -> None:
    whole = np.concatenate(block_shares([lse_RHB]))
    cuts = sorted(data.draw(st.sets(st.integers(1, lse_RHB.shape[2] - 1)))) if lse_RHB.shape[2] > 1 else []
    parts = block_shares(np.split(lse_RHB, cuts, axis=2))
    assert [len(part) for part in parts] == [len(part) for part in np.split(np.arange(lse_RHB.shape[2]), cuts)]
    np.testing.assert_allclose(np.concatenate(parts), whole)
    assert whole.min() >= 0
    assert whole.sum() == pytest.approx(1.0)


def test_a_chunk_with_nothing_to_say_cannot_look_relevant() -> None:
    silent, loud = np.full((2, 1, 8), -5.0, np.float32), np.full((2, 1, 8), -5.0, np.float32)
    silent[:, :, 1] = -4.0  # the best of a silent chunk
    loud[:, :, 6] = 9.0
    shares = block_shares([silent, loud])
    assert block_shares([silent])[0].max() > 0.15, "on its own scale it looks relevant"
    assert shares[0].max() < 0.001 < 0.4 < shares[1][6]


def test_words_must_agree() -> None:
    """One row that shouts for block 0 weighs less than all rows that speak for block 6."""
    lse = np.zeros((4, 1, 8), np.float32)
    lse[0, 0, 0] = 6.0
    lse[1:, 0, 6] = 3.0
    [shares] = block_shares([lse])
    assert shares.argmax() == 6


def test_heads_vote_against_each_others_distractions() -> None:
    lse = np.zeros((1, 3, 12), np.float32)
    for head, distraction in enumerate((0, 4, 8)):
        lse[0, head, distraction] = 4.0
        lse[0, head, 11] = 3.0
    [shares] = block_shares([lse])
    assert shares.argmax() == 11


def test_neighbours_hear_half_and_less_with_distance() -> None:
    lse = np.full((1, 1, 9), -40.0, np.float32)
    lse[0, 0, 4] = 0.0
    [shares] = block_shares([lse])
    np.testing.assert_allclose(shares[4:8] / shares[4], [1, 0.5, 0.25, 0.125], rtol=1e-6)
    np.testing.assert_allclose(shares[:5], shares[4:][::-1])
    assert shares[8] < 1e-12


def test_blocks_that_nobody_hears_are_numbers_too() -> None:
    lse = np.full((2, 2, 64), -np.inf, np.float32)
    lse[:, :, 3] = 0.0
    [shares] = block_shares([lse])
    assert np.isfinite(shares).all() and shares.argmax() == 3
