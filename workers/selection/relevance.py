"""One scale for a whole document: from what a probe saw in separately read chunks to a share for each block.

Each chunk reports log-sum-exps of the probe's attention logits per block. A softmax over one chunk alone
would make its best block look relevant however little it has to say; merging the log-sum-exps over all
chunks gives each block its share of the attention that the probe would pay to the whole document.

Measured on SmolLM2-135M, 83 questions over 45,118 tokens of real text full of look-alikes (1,410 blocks), four
heads chosen on other topics (5-fold cross-validation): the gold block is among the first 4 and the first 16 for
34 % and 61 % of the questions with plain means over rows and heads, for 60 % and 78 % with the three steps below.

* rows: a power mean with exponent 1/2, so that many of the question's words must agree on a block and one
  word that is everywhere cannot carry it;
* neighbours: a block hears half of what the blocks beside it hear, a quarter of the next, an eighth;
* heads: the geometric mean, so that retrieval heads vote against each other's distractions.

Invariants: shares are non-negative and sum to 1 over the document; which worker read which chunk, and when,
does not matter.

Shapes: R scored probe rows, H retrieval heads, B blocks.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_HEARING = (0.5, 0.25, 0.125)
"""What a block hears of its neighbours, by distance."""


def block_shares(lse_RHB: Sequence[NDArray[np.float32]]) -> list[NDArray[np.float64]]:
    """Per chunk, in document order, [R, H, B_c] log-sum-exps -> per chunk [B_c] shares of relevance."""
    shares_B = combine_heads(head_masses(np.concatenate(list(lse_RHB), axis=2)))
    return np.split(shares_B, np.cumsum([chunk.shape[2] for chunk in lse_RHB])[:-1])


def head_masses(lse_RHB: NDArray[np.float32]) -> NDArray[np.float64]:
    """What each head makes of each block of a whole document, as log-masses [H, B]."""
    logits_RHB = lse_RHB.astype(np.float64)
    share_RHB = logits_RHB - np.logaddexp.reduce(logits_RHB, axis=2, keepdims=True)
    agreed_HB = 2.0 * (np.logaddexp.reduce(share_RHB / 2.0, axis=0) - np.log(len(share_RHB)))
    heard_HB = with_neighbours(np.exp(agreed_HB))
    # A block that no head hears at all (a mass below the smallest float) still has a logarithm.
    log_HB: NDArray[np.float64] = np.log(np.maximum(heard_HB, np.finfo(np.float64).tiny))
    return log_HB


def with_neighbours(mass_HB: NDArray[np.float64]) -> NDArray[np.float64]:
    """The masses [H, B] of blocks in order, each with what it hears of its neighbours."""
    heard_HB = mass_HB.copy()
    for distance, part in enumerate(_HEARING, start=1):
        heard_HB[:, distance:] += part * mass_HB[:, :-distance]
        heard_HB[:, :-distance] += part * mass_HB[:, distance:]
    return heard_HB


def combine_heads(masses_HB: NDArray[np.float64]) -> NDArray[np.float64]:
    """Geometric mean over heads, as shares [B] that sum to 1."""
    joint_B = masses_HB.mean(axis=0)
    shares_B: NDArray[np.float64] = np.exp(joint_B - np.logaddexp.reduce(joint_B))
    return shares_B
