"""What an answer and a kept set are worth, and how sure a mean of them is.

Scores and recalls are shares from 0 to 1. Invariants: an interval is decided by its values and its seed; methods are
compared item by item, never by whether their own intervals overlap.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Span = tuple[int, int]
RESAMPLES = 10_000
_Z = 1.959963984540054
"""The 97.5th percentile of the normal distribution: two-sided 95 %."""


@dataclass(frozen=True)
class Estimate:
    """A mean over ``count`` items and its 95 % interval."""

    mean: float
    low: float
    high: float
    count: int

    @property
    def excludes_zero(self) -> bool:
        """Whether a difference is more than chance."""
        return self.low > 0 or self.high < 0


def string_match(answer: str, references: Sequence[str], match: Literal["all", "any"]) -> float:
    """How much of what was asked for an answer holds, whatever the case of its letters.

    ``all``: the share of the references that it contains; ``any``: 1 if it contains one (RULER's string_match_all and
    string_match_part, Hsieh et al. 2024). Raises ``ValueError`` without references."""
    if not references:
        raise ValueError("an item without references; allowed: one or more")
    found = [reference.lower() in answer.lower() for reference in references]
    return sum(found) / len(found) if match == "all" else float(any(found))


def gold_recall(gold: Sequence[Span], kept: Sequence[Span]) -> float | None:
    """The share of the gold passages that lie whole in one kept run; runs that touch are one. None without gold.

    Both are half-open ranges of the same unit, characters or tokens."""
    if not gold:
        return None
    runs: list[Span] = []
    for start, stop in sorted(kept):
        if runs and start <= runs[-1][1]:
            runs[-1] = (runs[-1][0], max(stop, runs[-1][1]))
        else:
            runs.append((start, stop))
    return sum(any(a <= first and last <= b for a, b in runs) for first, last in gold) / len(gold)


def mean_share(shares: Sequence[float]) -> Estimate:
    """Mean of shares with Wilson's score interval (Wilson 1927, "Probable Inference, the Law of Succession, and
    Statistical Inference"): honest at 0 and 1, where a bootstrap says that it is certain; too wide, never too narrow,
    for shares between them. Raises ``ValueError`` without values."""
    count = _counted(shares)
    mean = math.fsum(shares) / count
    centre = (mean + _Z**2 / (2 * count)) / (1 + _Z**2 / count)
    half = _Z / (1 + _Z**2 / count) * math.sqrt(mean * (1 - mean) / count + _Z**2 / (4 * count**2))
    # rounding aside, the interval holds the mean and lies in [0, 1]
    return Estimate(mean, max(0.0, min(mean, centre - half)), min(1.0, max(mean, centre + half)), count)


def mean_of(values: Sequence[float], seed: int = 0) -> Estimate:
    """Mean with the percentile interval of ``RESAMPLES`` bootstrap resamples (Efron 1979, "Bootstrap Methods: Another
    Look at the Jackknife"). Raises ``ValueError`` without values."""
    count = _counted(values)
    values_N = np.asarray(values, dtype=np.float64)
    low, high = np.percentile(_resampled_means(values_N, seed), [2.5, 97.5])
    return Estimate(float(values_N.mean()), float(low), float(high), count)


def paired_difference(ours: Sequence[float], theirs: Sequence[float], seed: int = 0) -> Estimate:
    """Mean of ``ours - theirs`` over the same items in the same order, with its bootstrap interval: items are drawn,
    and both methods are taken on each. Raises ``ValueError`` where they are not as many."""
    if len(ours) != len(theirs):
        raise ValueError(f"{len(ours)} and {len(theirs)} scores; allowed: the same items for both")
    return mean_of([a - b for a, b in zip(ours, theirs, strict=True)], seed)


def ratio_of_means(ours: Sequence[float], theirs: Sequence[float], seed: int = 0) -> Estimate | None:
    """Mean of ``ours`` as a share of that of ``theirs``, of items that have nothing to do with each other, with its
    bootstrap interval: both are drawn; ``count`` is ours. None where theirs is 0: a share of nothing. Raises
    ``ValueError`` without values."""
    count, _ = _counted(ours), _counted(theirs)
    ours_N, theirs_M = np.asarray(ours, dtype=np.float64), np.asarray(theirs, dtype=np.float64)
    if not theirs_M.any():
        return None
    drawn, against = _resampled_means(ours_N, seed), _resampled_means(theirs_M, seed + 1)
    shares = np.divide(drawn, against, out=np.full_like(drawn, np.inf), where=against > 0)
    low, high = np.percentile(shares, [2.5, 97.5], method="nearest")  # no mean of a number and infinity
    return Estimate(float(ours_N.mean() / theirs_M.mean()), float(low), float(high), count)


def _counted(values: Sequence[float]) -> int:
    if not values:
        raise ValueError("no values; allowed: one or more")
    return len(values)


def _resampled_means(values_N: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    rng = np.random.default_rng(seed)
    count = len(values_N)
    means = [values_N[rng.integers(count, size=(500, count))].mean(axis=1) for _ in range(RESAMPLES // 500)]
    return np.concatenate(means)
