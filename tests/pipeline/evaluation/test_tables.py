"""The page and the figures, from results made by hand."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from pipeline.evaluation.plots import write_plots
from pipeline.evaluation.results import RESULT_SCHEMA, Result, read_results, write_results
from pipeline.evaluation.summary import Place, Summary
from pipeline.evaluation.tables import Front, results_page


def results(
    method: str,
    budget: int | None,
    scores: Sequence[float],
    *,
    task: str = "needle",
    length: int = 4096,
    recall: float | None = 1.0,
) -> list[Result]:
    row = Result(task, length, "", method, budget, "said", 0.0, recall, 0.5, 300.0, 3 * 2**20, 1.5, 0.25, 0.125, 0.75)
    return [replace(row, item=f"{task}-{length}-{index}", score=score) for index, score in enumerate(scores)]


WORSE, BETTER = [1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 0.0]
ROWS = [
    *results("default", 256, BETTER),
    *results("streaming", 256, WORSE, recall=0.25),
    *results("dense", None, BETTER, recall=None),
    *results("default", 512, BETTER),
    *results("streaming", 512, WORSE),
    *results("default", 256, WORSE, length=8192),
    *results("default", 512, WORSE, length=8192),
]


def table(page: str, heading: str) -> list[list[str]]:
    """The rows of the first table below a heading, its header first."""
    lines = page.split(f"{heading}\n", 1)[1].splitlines()
    start = next(index for index, line in enumerate(lines) if line.startswith("|"))
    stop = next((i for i, line in enumerate(lines) if i > start and not line.startswith("|")), len(lines))
    rows = [re.split(r"(?<!\\) \| ", line.strip("|").strip()) for line in lines[start:stop]]
    assert set("".join(lines[start + 1])) <= set("|-")
    return [rows[0], *rows[2:]]


def test_a_result_file_reads_back_equal_and_has_the_fields_as_columns(tmp_path: Path) -> None:
    write_results(tmp_path / "results.parquet", ROWS)
    assert read_results(tmp_path / "results.parquet") == ROWS
    assert RESULT_SCHEMA.names == [field.name for field in fields(Result)]
    assert [path.name for path in tmp_path.iterdir()] == ["results.parquet"]


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "results.parquet").write_text("no")
    with pytest.raises(ValueError, match="no results"):
        read_results(tmp_path / "results.parquet")


def test_each_length_has_its_own_tables_and_nothing_is_averaged_over_them() -> None:
    page = results_page(ROWS, "default")
    at_4096, at_8192 = table(page, "## Scores at 4,096 tokens"), table(page, "## Scores at 8,192 tokens")
    assert at_4096[0] == ["method", "needle"] and at_4096[1] == ["`default`", "75% [30, 95]"]
    assert at_8192[1:] == [["`default`", "25% [5, 70]"]]
    overviews = page.split("## Scores", 1)[1].split("## needle")[0]
    assert "50%" not in overviews


def test_a_row_has_everything_that_was_measured_and_the_paired_difference() -> None:
    header, *rows = table(results_page(ROWS, "default"), "### needle at 4,096 tokens, 4 items")
    assert header[:4] == ["budget", "method", "score", "against"]
    assert [row[:2] for row in rows] == [
        ["256", "`default`"], ["256", "`streaming`"], ["256", "`dense`"],
        ["512", "`default`"], ["512", "`streaming`"], ["512", "`dense`"],
    ]  # fmt: skip
    first, second, dense = (dict(zip(header, row, strict=True)) for row in rows[:3])
    assert first["against"] == "" and second["against"] == "-50 [-100, 0]" and dense["against"] == "0 [0, 0]"
    assert (second["gold kept"], dense["gold kept"]) == ("25% [5, 70]", "")
    measured = ("relevance kept", "tokens kept", "bytes kept", "read s", "answer s", "KL", "top-1")
    assert [first[name] for name in measured] == ["50%", "300", "3.0 MiB", "1.50", "0.25", "0.125", "75%"]


def test_a_difference_beyond_chance_is_bold() -> None:
    rows = [*results("default", 64, [1.0] * 12), *results("other", 64, [0.0] * 11 + [1.0])]
    found = table(results_page(rows, "default"), "### needle at 4,096 tokens, 12 items")
    assert found[2][3] == "**-92 [-100, -75]**"


def test_differences_are_over_the_items_that_both_have() -> None:
    rows = [*results("default", 64, [1.0, 1.0, 0.0]), *results("other", 64, [1.0])]
    cell = Summary(rows, "default").cell(Place("needle", 4096, 64), "other")
    assert cell is not None and cell.gain is not None and (cell.gain.mean, cell.gain.count) == (0.0, 1)


LEXICAL = Front(lexical=("words",))


def test_bm25_is_said_to_be_ahead_where_it_is_and_nowhere_else() -> None:
    ahead = results_page([*ROWS, *results("words", 256, [1.0] * 4), *results("words", 512, WORSE)], "default", LEXICAL)
    line = "* needle at 4,096 tokens, budget 256: `words` scores +25 [0, +75] points more than `default`\n\n"
    assert f"BM25 is ahead of `default` here:\n\n{line}" in ahead
    kept = results_page([*results("default", 64, BETTER, recall=0.5), *results("words", 64, WORSE)], "default", LEXICAL)
    assert "`words` keeps **+50 [+50, +50]** points more of the gold passages" in kept and "scores +" not in kept
    behind = results_page([*ROWS, *results("words", 256, WORSE, recall=0.5)], "default", LEXICAL)
    assert "BM25 is nowhere ahead of `default`." in behind
    assert "BM25" not in results_page([*ROWS, *results("words", 256, [1.0] * 4)], "default"), "nobody said so"


def test_bm25_is_compared_over_the_items_that_both_have() -> None:
    """Its one item is one that the default answers too: it is not ahead for having been spared the hard ones."""
    page = results_page([*results("default", 64, BETTER), *results("words", 64, [1.0])], "default", LEXICAL)
    assert "BM25 is nowhere ahead of `default`." in page
    other = [replace(row, item="another") for row in results("words", 64, [1.0])]
    assert "BM25" not in results_page([*results("default", 64, BETTER), *other], "default", LEXICAL)


def test_a_row_of_fewer_items_says_how_many() -> None:
    page = results_page([*results("default", 64, BETTER), *results("dense", None, [1.0, 0.0])], "default")
    assert table(page, "## Scores at 4,096 tokens")[1:] == [
        ["`default`", "75% [30, 95]"], ["`dense`", "50% [9, 91] (2)"],
    ]  # fmt: skip
    header, first, second = table(page, "### needle at 4,096 tokens, 4 items")
    assert header[2] == "items" and (first[2], second[2]) == ("", "2")


def test_nothing_is_held_against_a_default_that_was_refused() -> None:
    refused = [replace(row, error="no such heads") for row in results("default", 64, [0.0, 0.0])]
    page = results_page([*refused, *results("words", 64, [1.0, 1.0])], "default", LEXICAL)
    assert "ahead" not in page and "against" not in table(page, "### needle at 4,096 tokens, 2 items")[0]


def test_a_failed_item_scores_0_in_the_difference_too() -> None:
    failed = [*results("other", 64, [1.0]), replace(results("other", 64, [1.0, 0.0])[1], error="out of memory")]
    [row] = table(
        results_page([*results("default", 64, [1.0, 1.0]), *failed], "default"), "### needle at 4,096 tokens, 2 items"
    )[2:]
    assert row[2].endswith("(1 failed)") and row[3].startswith("-50 ")


def test_a_page_says_how_it_was_made_and_which_lengths_are_beyond_the_window() -> None:
    front = Front("A title", ("Made by `x`.", "On y."), (("default", ""), ("streaming", "keep: {}")), window=4096)
    page = results_page(ROWS, "default", front)
    assert page.startswith("# A title\n\nMade by `x`.\n\nOn y.\n\nScores are")
    assert "## Scores at 4,096 tokens\n" in page and "## Scores at 8,192 tokens, beyond the window\n" in page
    assert table(page, "## Methods") == [
        ["method", "what it changes"], ["`default`", "nothing"], ["`streaming`", "`keep: {}`"],
    ]  # fmt: skip


def test_a_refused_method_has_its_row_and_its_reason_and_a_failed_item_scores_0() -> None:
    refused = [replace(row, method="quest", score=0.0, error="one KV | head") for row in results("quest", 256, WORSE)]
    failed = results("frail", 256, [1.0, 1.0, 1.0, 0.0])
    failed[3] = replace(failed[3], error="out of\nmemory")
    page = results_page([*ROWS, *refused, *failed], "default")
    rows = {row[0]: row[1] for row in table(page, "## Scores at 4,096 tokens")}
    assert rows["`quest`"] == "refused" and rows["`frail`"] == "75% [30, 95] (1 failed)"
    assert "* `quest`: one KV \\| head: needle at 4,096 tokens, budget 256 (4 of 4)\n" in page
    assert "* `frail`: out of memory: needle at 4,096 tokens, budget 256 (1 of 4)\n" in page


def test_results_that_cannot_be_compared_are_refused() -> None:
    with pytest.raises(ValueError, match="method 'mine' has no results; there are: default, streaming, dense"):
        results_page(ROWS, "mine")
    with pytest.raises(ValueError, match="streaming: needle at 4,096 tokens, budget 256: an item has two results"):
        results_page([*ROWS, *results("streaming", 256, WORSE)], "default")


def test_methods_without_budgets_alone_make_a_page() -> None:
    page = results_page(results("dense", None, BETTER), "dense")
    assert table(page, "## Scores at 4,096 tokens")[1] == ["`dense`", "75% [30, 95]"]
    assert "Budget" not in page


def texts(path: Path) -> list[str]:
    """The words of an SVG, which are there as text."""
    return [
        "".join(element.itertext()).strip()
        for element in ElementTree.parse(path).iter()
        if element.tag.endswith("}text")
    ]


def test_figures_are_svg_with_words_as_text(tmp_path: Path) -> None:
    paths = write_plots(tmp_path, ROWS, "default")
    assert [path.name for path in paths] == [
        "accuracy-by-method.svg", "accuracy-by-budget.svg", "accuracy-by-length.svg", "recall-by-budget.svg",
        "bytes.svg",
    ]  # fmt: skip
    for path in paths:
        assert ElementTree.parse(path).getroot().tag == "{http://www.w3.org/2000/svg}svg"
        assert path.stat().st_size < 200_000
    by_method, by_budget, by_length, recall, sizes = map(texts, paths)
    assert {"needle at 8,192 tokens, budget 256", "default", "streaming", "dense", "gold passages kept"} <= {*by_method}
    assert {"needle, 4,096 tokens", "needle, 8,192 tokens", "default", "streaming", "dense", "256", "512"} <= {
        *by_budget
    }
    assert {"needle, budget 256", "needle, budget 512", "4,096", "8,192", "length in tokens"} <= {*by_length}
    assert "gold passages kept" in recall and "dense" not in recall
    assert {"default, 256", "streaming, 512", "dense", "MiB kept of a document"} <= {*sizes}


def test_the_same_results_give_the_same_bytes(tmp_path: Path) -> None:
    first = {path.name: path.read_bytes() for path in write_plots(tmp_path / "a", ROWS, "default")}
    again = {path.name: path.read_bytes() for path in write_plots(tmp_path / "b", ROWS, "default")}
    assert first == again and results_page(ROWS, "default") == results_page(ROWS, "default")


def test_figures_with_nothing_to_show_are_not_written(tmp_path: Path) -> None:
    """A point of each method is no line, and a row for each method at many places is no page."""

    def drawn(rows: Sequence[Result], default: str = "default") -> set[str]:
        names = {path.name for path in write_plots(tmp_path, rows, default)}
        assert names == {path.name for path in tmp_path.iterdir()}, "and no figure of an earlier page is left"
        return {name.removeprefix("accuracy-").removesuffix(".svg") for name in names}

    bare = [replace(row, recall=None, kept_bytes=None) for row in ROWS]
    assert drawn(bare) == {"by-method", "by-budget", "by-length"}
    assert drawn(results("dense", None, BETTER), "dense") == {"by-method", "bytes"}
    lengths = [row for length in (512, 1024, 2048) for row in results("default", 256, BETTER, length=length)]
    assert drawn(lengths) == {"by-method", "by-length", "bytes"}
    assert drawn([*lengths, *(replace(row, budget=512) for row in lengths)]) == {
        "by-budget", "by-length", "recall-by-budget", "bytes",
    }  # fmt: skip


def test_seconds_are_medians_because_other_work_may_hold_an_item_up() -> None:
    rows = [
        replace(row, seconds_read=s) for row, s in zip(results("default", 256, BETTER), (1, 2, 3, 900), strict=True)
    ]
    assert "| 2.50 |" in results_page(rows, "default")


def test_a_page_shows_the_figures_beside_it() -> None:
    page = results_page(ROWS, "default", Front(figures=("accuracy-by-length.svg",)))
    assert "![accuracy by length](accuracy-by-length.svg)" in page.split("## Scores")[0]
