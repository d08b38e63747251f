"""Metrics against values known by other means."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.evaluation.metrics import (
    Estimate,
    Span,
    gold_recall,
    mean_of,
    mean_share,
    paired_difference,
    ratio_of_means,
    string_match,
)

shares = st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=1, max_size=30)


@pytest.mark.parametrize(
    ("answer", "references", "match", "score"),
    [
        ("It is 46941.", ("46941",), "all", 1.0),
        ("it is a typeerror", ("TypeError",), "any", 1.0),
        ("12 and 56", ("12", "34", "56", "78"), "all", 0.5),
        ("12 and 56", ("99", "56"), "any", 1.0),
        ("4694", ("46941",), "all", 0.0),
        ("", ("a",), "any", 0.0),
    ],
)
def test_string_match(answer: str, references: tuple[str, ...], match: str, score: float) -> None:
    assert string_match(answer, references, match) == score  # type: ignore[arg-type]


def test_an_item_without_references_is_refused() -> None:
    with pytest.raises(ValueError, match="without references"):
        string_match("a", (), "all")


@pytest.mark.parametrize(
    ("gold", "kept", "recall"),
    [
        ([(5, 8)], [(5, 8)], 1.0),
        ([(5, 8)], [(0, 7), (8, 20)], 0.0),
        ([(5, 8)], [(6, 20), (0, 6)], 1.0),  # runs that touch are one
        ([(5, 8)], [(0, 20), (3, 4)], 1.0),  # a run inside another does not cut it short
        ([(5, 8), (30, 40)], [(0, 10)], 0.5),
        ([(5, 8)], [], 0.0),
        ([], [(0, 10)], None),
    ],
)
def test_gold_is_kept_whole_or_not(gold: list[Span], kept: list[Span], recall: float | None) -> None:
    assert gold_recall(gold, kept) == recall


@pytest.mark.parametrize(
    ("hits", "count", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (0, 20, 0.0, 0.1611), (15, 148, 0.0624, 0.1605), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_intervals_are_those_of_the_literature(hits: int, count: int, low: float, high: float) -> None:
    """The four examples of Newcombe 1998, "Two-sided confidence intervals for the single proportion", table I."""
    estimate = mean_share([1.0] * hits + [0.0] * (count - hits))
    assert (estimate.mean, estimate.count) == (hits / count, count)
    assert (estimate.low, estimate.high) == (pytest.approx(low, abs=6e-5), pytest.approx(high, abs=6e-5))


@given(shares)
def test_an_interval_of_shares_holds_their_mean_and_lies_in_bounds(values: list[float]) -> None:
    estimate = mean_share(values)
    assert 0 <= estimate.low <= estimate.mean <= estimate.high <= 1
    assert estimate.low < estimate.high


def test_a_bootstrap_of_many_values_is_the_normal_interval() -> None:
    values = np.random.default_rng(5).normal(3.0, 2.0, size=400)
    estimate = mean_of(values.tolist())
    half = 1.96 * values.std() / math.sqrt(len(values))
    assert estimate.mean == pytest.approx(values.mean())
    assert estimate.low == pytest.approx(values.mean() - half, abs=0.02)
    assert estimate.high == pytest.approx(values.mean() + half, abs=0.02)


def test_a_bootstrap_of_two_values_is_known_exactly() -> None:
    """Means of two draws from {0, 1} are 0, 1/2, 1 with probability 1/4, 1/2, 1/4."""
    assert (mean_of([0.0, 1.0]).low, mean_of([0.0, 1.0]).high) == (0.0, 1.0)
    assert (mean_of([2.0, 2.0]).low, mean_of([2.0, 2.0]).high) == (2.0, 2.0)


def test_pairs_see_a_difference_that_separate_intervals_hide() -> None:
    hard = [0.0] * 12 + [1.0] * 12
    better = [*hard[:6], *[1.0] * 6, *hard[12:]]
    gain = paired_difference(better, hard)
    assert gain.mean == 0.25 and gain.excludes_zero and gain.count == 24
    assert mean_share(hard).high > mean_share(better).low


@settings(max_examples=20)
@given(shares)
def test_a_difference_is_zero_to_itself_and_turns_with_its_sides(values: list[float]) -> None:
    other = list(reversed(values))
    there, back = paired_difference(values, other), paired_difference(other, values)
    assert there.mean == pytest.approx(-back.mean)
    assert (there.low, there.high) == (pytest.approx(-back.high), pytest.approx(-back.low))
    assert paired_difference(values, values).low == paired_difference(values, values).high == 0


def test_a_seed_decides_an_interval() -> None:
    values = [0.1, 0.7, 0.2, 0.9, 0.4]
    assert mean_of(values, 3) == mean_of(values, 3)


def test_nothing_and_unequal_sides_are_refused() -> None:
    with pytest.raises(ValueError, match="no values"):
        mean_share([])
    with pytest.raises(ValueError, match="2 and 1 scores; allowed: the same items"):
        paired_difference([1.0, 0.0], [1.0])


def test_a_share_of_another_mean() -> None:
    share = ratio_of_means([1.0, 0.0] * 50, [1.0] * 100)
    assert share is not None and share.mean == 0.5 and share.count == 100
    assert 0.3 < share.low < 0.5 < share.high < 0.7
    assert ratio_of_means([0.5] * 8, [1.0] * 8) == Estimate(0.5, 0.5, 0.5, 8)


def test_a_share_of_nothing_is_none_and_of_next_to_nothing_endless() -> None:
    assert ratio_of_means([1.0, 0.0], [0.0, 0.0]) is None
    share = ratio_of_means([1.0] * 4, [0.0] * 3 + [1.0])
    assert share is not None and share.mean == 4 and share.high == float("inf") and 1 < share.low <= 4
    with pytest.raises(ValueError, match="no values"):
        ratio_of_means([1.0], [])
