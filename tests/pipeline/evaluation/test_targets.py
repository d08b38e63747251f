"""The verdicts on the default, from results made by hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from pipeline.evaluation.results import Result, write_results
from pipeline.evaluation.summary import Summary
from pipeline.evaluation.targets import targets, write_targets

WINDOW = 8192


def results(
    method: str, task: str, length: int, scores: Sequence[float], budget: int | None = 1024, recall: float | None = None
) -> list[Result]:
    return [
        Result(task, length, f"{task}-{length}-{n}", method, budget, "said", score, recall)
        for n, score in enumerate(scores)
    ]


def rows(found: Sequence[Result], section: str) -> list[list[str]]:
    """The rows of a section's table, without its header; none where it has no table."""
    page = "\n".join(targets(Summary(found, "default"), WINDOW))
    lines = page.split(f"## {section}", 1)[1].split("\n## ")[0].splitlines()
    return [line.strip("| ").split(" | ") for line in lines if line.startswith("|")][2:]


@pytest.mark.parametrize(
    ("dense", "default", "verdicts"),
    [
        ([1.0] * 8, [1.0] * 8, ["met"]),
        ([1.0] * 8, [0.0] * 8, ["missed"]),
        ([1.0] * 8, [1.0] * 7 + [0.0], ["met"]),  # below, and not by more than chance
        ([1.0] * 4 + [0.0] * 4, [0.0] * 4 + [1.0] * 4, ["met"]),
        ([1.0] * 3 + [0.0] * 5, [0.0] * 8, []),  # dense cannot do it either
    ],
)
def test_the_default_is_held_to_dense_where_dense_can_do_it(
    dense: list[float], default: list[float], verdicts: list[str]
) -> None:
    found = results("default", "single_needle", 4096, default) + results("dense", "single_needle", 4096, dense, None)
    assert [row[-1] for row in rows(found, "In the window")] == verdicts


def test_dense_beyond_the_window_is_no_measure() -> None:
    found = results("default", "single_needle", 16384, [0.0] * 8) + results("dense", "single_needle", 16384, [1.0] * 8)
    assert not rows(found, "In the window")


@pytest.mark.parametrize(
    ("within", "beyond", "verdict"),
    [
        ([1.0] * 8, [1.0] * 8, "met"),
        ([1.0] * 8, [0.0] * 8, "missed"),
        ([1.0] * 8, [1.0] * 6 + [0.0] * 2, "missed, within chance"),
        ([0.0] * 8, [0.0] * 8, "met"),
        ([0.5] * 8, [0.46] * 8, "met"),
        ([0.5] * 8, [0.44] * 8, "missed"),
    ],
)
def test_beyond_the_window_it_is_held_to_its_own_score_in_it(
    within: list[float], beyond: list[float], verdict: str
) -> None:
    found = [
        *results("default", "multi_key", 4096, [1.0 - score for score in within]),  # a shorter length is no measure
        *results("default", "multi_key", 8192, within),
        *results("default", "multi_key", 16384, beyond),
        *results("default", "common_words", 8192, [1.0] * 8),
        *results("default", "common_words", 16384, [0.0] * 8),
    ]
    alone, together = rows(found, "Beyond the window")
    assert alone[1] == "multi_key" and together[1] == "all of these items"  # common words are no needle
    assert alone[-1] == together[-1] == verdict


def test_each_budget_and_length_has_its_own_verdict() -> None:
    found = [
        row
        for budget, scores in ((256, [1.0, 0.0]), (512, [0.0, 1.0]))
        for length, score in ((8192, 1.0), (16384, scores[0]), (32768, scores[1]))
        for row in results("default", "single_needle", length, [score] * 8, budget)
    ]
    said = {(row[0], row[3]): row[-1] for row in rows(found, "Beyond the window") if row[1] == "single_needle"}
    assert said == {
        ("256", "16,384"): "met", ("256", "32,768"): "missed",
        ("512", "16,384"): "missed", ("512", "32,768"): "met",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("ours", "theirs", "count", "verdict"),
    [
        (0.95, 0.9, 40, "met"),
        (0.95, 0.96, 40, "missed, within chance"),
        (0.5, 0.1, 40, "missed"),
        (0.85, 0.1, 8, "missed, within chance"),
    ],
)
def test_gold_passages_of_real_text(ours: float, theirs: float, count: int, verdict: str) -> None:
    found = [
        *results("default", "real_text", 8192, [0.0] * count, recall=ours),
        *results("bm25", "real_text", 8192, [1.0] * count, recall=theirs),
        *results("default", "real_text", 8192, [1.0] * count, budget=256, recall=0.0),
        *results("bm25", "real_text", 8192, [1.0] * count, budget=256, recall=1.0),
    ]
    [row] = rows(found, "Gold passages")
    assert row[:2] == ["8,192", str(count)] and row[-1] == verdict


def test_what_was_not_measured_is_said() -> None:
    page = "\n".join(targets(Summary(results("default", "single_needle", 4096, [1.0]), "default"), WINDOW))
    for sentence in ("nothing to be below of", "no items on both sides", "no results of real_text"):
        assert sentence in page


def test_the_page_says_how_it_was_made(tmp_path: Path, tiny_model: Path) -> None:
    write_results(tmp_path / "results.parquet", results("default", "single_needle", 64, [1.0]))
    write_targets(tmp_path / "results.parquet", str(tiny_model), tmp_path / "targets.md")
    page = (tmp_path / "targets.md").read_text()
    assert f"targets --results {tmp_path / 'results.parquet'} --model {tiny_model}" in page
    with pytest.raises(ValueError, match="default"):
        write_results(tmp_path / "results.parquet", results("bm25", "single_needle", 64, [1.0]))
        write_targets(tmp_path / "results.parquet", str(tiny_model), tmp_path / "targets.md")
