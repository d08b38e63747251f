"""How far two sides agree on what a method keeps, scores and answers.

Invariants: compared are positions from ``first`` on only: what one side pins is nobody's choice; a measure that has no
meaning for a method (an order among two values, an answer that was not given) is None.

Shapes: L layers, G kv heads, N context tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation.agreement.exchange import Said


@dataclass(frozen=True)
class Agreement:
    """Of one case and method. ``overlap``: of the pairs that the side which keeps fewer keeps in a layer, how many the
    other keeps too, mean over layers; ``jaccard``: kept by both over kept by either, mean over layers and heads, and
    ``least_jaccard`` the head that agrees least; ``order``: Spearman's rank correlation of the scores, mean over layers
    and heads; ``same_answer``: both with kept pairs moved together, letter for letter."""

    overlap: float
    jaccard: float
    least_jaccard: float
    order: float | None
    same_answer: bool | None


def agreement(ours: Said, theirs: Said, first: int) -> Agreement:
    """Of two sides on one case and method, over positions from ``first`` on."""
    own_LGN, other_LGN = ours.kept_LGN[..., first:], theirs.kept_LGN[..., first:]
    both_LG, either_LG = (own_LGN & other_LGN).sum(axis=2), (own_LGN | other_LGN).sum(axis=2)
    fewer_L = np.minimum(own_LGN.sum(axis=(1, 2)), other_LGN.sum(axis=(1, 2)))
    jaccard_LG = np.where(either_LG > 0, both_LG / np.maximum(either_LG, 1), 1.0)
    return Agreement(
        overlap=float(np.mean(both_LG.sum(axis=1) / np.maximum(fewer_L, 1))),
        jaccard=float(jaccard_LG.mean()),
        least_jaccard=float(jaccard_LG.min()),
        order=_order(ours.scores_LGN, theirs.scores_LGN, first),
        same_answer=None if ours.moved is None or theirs.moved is None else ours.moved == theirs.moved,
    )


def _order(own: NDArray[np.float32] | None, other: NDArray[np.float32] | None, first: int) -> float | None:
    """Mean rank correlation; None where a side has no scores, or only says yes and no."""
    if own is None or other is None or len(np.unique(other[0, 0, first:])) < 3:
        return None
    rows = zip(_heads(own, first), _heads(other, first), strict=True)
    return float(np.mean([rank_correlation(a_N, b_N) for a_N, b_N in rows]))


def _heads(scores_LGN: NDArray[np.float32], first: int) -> NDArray[np.float32]:
    return scores_LGN[..., first:].reshape(-1, scores_LGN.shape[2] - first)


def rank_correlation(a_N: NDArray[np.float32], b_N: NDArray[np.float32]) -> float:
    """Spearman's: Pearson's over ranks, equal values sharing their mean rank; 1 where both hold one value only."""
    a_ranks, b_ranks = _ranks(a_N), _ranks(b_N)
    spread = float(a_ranks.std() * b_ranks.std())
    if spread == 0.0:
        return float(a_ranks.std() == b_ranks.std())
    return float(((a_ranks - a_ranks.mean()) * (b_ranks - b_ranks.mean())).mean() / spread)


def _ranks(values_N: NDArray[np.float32]) -> NDArray[np.float64]:
    _, place_N, counts = np.unique(values_N, return_inverse=True, return_counts=True)
    ranks_N: NDArray[np.float64] = (np.cumsum(counts) - (counts - 1) / 2)[place_N]
    return ranks_N


def mean_known(values: Sequence[float | None]) -> float | None:
    """Mean of the values that are there; None without any."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
