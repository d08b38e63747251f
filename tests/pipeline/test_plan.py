"""The plan: every row once, always the same parts, ids used twice, files that changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.schema import Corpus
from pipeline import identifiers
from pipeline.corpus import Asked, CorpusFile, CorpusFiles, RowGroup, RowRun
from pipeline.errors import CorpusError
from pipeline.identifiers import DuplicateRow
from pipeline.plan import Plan, make_plan, verify_unchanged
from tests.pipeline.parquet import WHO, documents, flip_in_page, opened, raw_strings, read_all, write

groups = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 4000)), max_size=8)


def imagined(files: list[list[tuple[int, int]]]) -> CorpusFiles:
    """A corpus without bytes: only (rows, text bytes) of each row group. It has no id column to scan."""
    found = tuple(
        CorpusFile(f"{index}.parquet", 1, "", tuple(RowGroup(*group) for group in file))
        for index, file in enumerate(files)
    )
    return CorpusFiles(Corpus(path="imagined", id=None), found, (Asked("who", "Who?"),))


@given(st.lists(groups, max_size=5), st.integers(1, 700))
def test_parts_cover_every_row_once_in_order_within_their_size(
    files: list[list[tuple[int, int]]], part_tokens: int
) -> None:
    corpus = imagined(files)
    plan = make_plan(corpus, part_tokens)
    covered = [
        (run.file, run.row_group, row) for part in plan.parts for run in part.runs for row in range(run.start, run.stop)
    ]
    assert covered == [
        (file, group, row)
        for file, found in enumerate(files)
        for group, (rows, _) in enumerate(found)
        for row in range(rows)
    ]
    assert sum(part.rows for part in plan.parts) == plan.rows == len(covered)
    assert [part.index for part in plan.parts] == list(range(len(plan.parts)))
    for part in plan.parts:
        assert part.tokens <= part_tokens or part.rows == 1


@given(st.lists(groups, max_size=5), st.integers(1, 700))
def test_a_plan_is_the_same_every_time_and_survives_json(files: list[list[tuple[int, int]]], part_tokens: int) -> None:
    plan = make_plan(imagined(files), part_tokens)
    assert plan == make_plan(imagined(files), part_tokens)
    assert Plan.from_json(plan.to_json()) == plan
    assert Plan.from_json(plan.to_json()).to_json() == plan.to_json()


def test_small_row_groups_go_together_and_a_large_one_is_split_evenly() -> None:
    plan = make_plan(imagined([[(4, 160), (4, 160), (4, 160)], [(10, 1600)], [(1, 4)]]), part_tokens=100)
    assert [[(run.file, run.row_group, run.start, run.stop) for run in part.runs] for part in plan.parts] == [
        [(0, 0, 0, 4), (0, 1, 0, 4)],
        [(0, 2, 0, 4)],
        [(1, 0, 0, 2)],
        [(1, 0, 2, 5)],
        [(1, 0, 5, 7)],
        [(1, 0, 7, 10)],
        [(2, 0, 0, 1)],
    ]


def test_tokens_are_estimated_from_the_text_column_alone(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"other": ["y" * 90_000], "id": ["a"], "text": ["x" * 40_000]})
    assert 10_000 <= make_plan(opened(path), 10**6).tokens < 10_100


def test_every_later_row_with_a_used_id_is_a_duplicate(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", {"id": [1, 2, None, 1], "text": ["x"] * 4}, row_group_size=2)
    write(tmp_path / "b.parquet", {"id": ["2", None, "3", "1"], "text": ["x"] * 4})
    corpus = opened(tmp_path)
    plan = make_plan(corpus, 10**6)
    assert plan.duplicates == (DuplicateRow(0, 3, 0, 0), DuplicateRow(1, 0, 0, 1), DuplicateRow(1, 3, 0, 0))
    assert Plan.from_json(plan.to_json()) == plan
    faults = {
        document.source_row: document.fault.message
        for document in corpus.rows(RowRun(1, 0, 0, 4), plan.first_places)
        if document.fault is not None and document.fault.error == "DuplicateId"
    }
    first = tmp_path / "a.parquet"
    assert faults == {
        0: f"id '2' is already used by {first} row 1",
        3: f"id '1' is already used by {first} row 0",
    }


def test_equal_hashes_are_not_yet_equal_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a hash of one byte, 600 ids collide by hundreds; still only the true duplicate is found."""
    monkeypatch.setattr(identifiers, "_HASH_BYTES", 1)
    ids = [f"d{row}" for row in range(600)] + ["d7"]
    write(tmp_path / "a.parquet", {"id": ids, "text": ["x"] * 601})
    assert make_plan(opened(tmp_path), 10**6).duplicates == (DuplicateRow(0, 600, 0, 7),)


def test_a_damaged_id_column_does_not_stop_the_plan(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    ids = [f"document number {row}" for row in range(10)] * 2
    write(path, {"id": ids, "text": ["x"] * 20}, row_group_size=10, compression="none", write_page_checksum=True)
    flip_in_page(path, 0, "id")
    corpus = opened(path)
    assert make_plan(corpus, 10**6).duplicates == ()
    assert [document.fault is None for document in read_all(corpus)] == [False] * 10 + [True] * 10


def test_rows_that_ask_nothing_are_counted(tmp_path: Path) -> None:
    columns: dict[str, Any] = {"id": list("abcd"), "text": ["x"] * 4, "question": ["?", "", None, " "]}
    path = write(tmp_path / "a.parquet", columns)
    corpus = opened(path, question="question")
    assert make_plan(corpus, 10**6).unasked == 3
    assert sum(not document.questions for document in read_all(corpus)) == 3
    assert make_plan(opened(path, WHO, question="question"), 10**6).unasked == 0


def test_text_that_is_not_utf8_does_not_disturb_the_plan(tmp_path: Path) -> None:
    bad = raw_strings([b"\xff", b"\xff"])
    write(tmp_path / "a.parquet", {"id": bad, "text": ["x", "y"], "question": bad})
    plan = make_plan(opened(tmp_path, question="question"), 10**6)
    assert (plan.unasked, len(plan.duplicates)) == (0, 1)


def test_unchanged_files_are_accepted(tmp_path: Path) -> None:
    documents(tmp_path / "a.parquet", "x")
    documents(tmp_path / "b.parquet", "y")
    verify_unchanged(make_plan(opened(tmp_path), 10), opened(tmp_path))


@pytest.mark.parametrize("change", ["changed", "same size", "vanished", "appeared"])
def test_a_file_that_is_not_as_planned_is_named(tmp_path: Path, change: str) -> None:
    documents(tmp_path / "a.parquet", "x")
    path = documents(tmp_path / "b.parquet", "some text")
    plan = make_plan(opened(tmp_path), 10)
    named = path
    if change == "changed":
        documents(path, "some text", "and more")
    elif change == "same size":
        size = path.stat().st_size
        documents(path, "SOME text")
        assert path.stat().st_size == size
    elif change == "vanished":
        path.unlink()
    else:
        named = documents(tmp_path / "c.parquet", "new")
    with pytest.raises(CorpusError) as error:
        verify_unchanged(plan, opened(tmp_path))
    first, advice = str(error.value).splitlines()
    assert first.startswith(f"{named}: {change if change != 'same size' else 'changed'} since the run was planned")
    assert "another output.path" in advice


def test_another_order_of_the_same_files_is_refused(tmp_path: Path) -> None:
    paths = [str(documents(tmp_path / name, name)) for name in ("a.parquet", "b.parquet")]
    both = [CorpusFiles(c.corpus, c.files) for c in map(opened, paths)]
    files = tuple(corpus.files[0] for corpus in both)
    plan = Plan(files, ())
    with pytest.raises(CorpusError, match="another order"):
        verify_unchanged(plan, CorpusFiles(both[0].corpus, files[::-1]))
