"""One row in, one row out: the answers of a run, in a column, whatever Ray Data or a bad row does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from configs.schema import Job
from pipeline import ray_data
from pipeline.driver import run
from pipeline.errors import CorpusError, WorkersUnavailable
from pipeline.ray_data import ANSWERS_TYPE, LongDocumentProcessor
from tests.pipeline.jobs import QUESTIONS, Bench, by_question
from workers.engine import Engine
from workers.messages import Ask, Encode

LENGTHS = [700, 0, 900, 300, 1500, 40, 260]
OWN: list[Any] = ["Which fox?", None, ["Where?", " ", "Why?"], "x" * 3000, [], None, "Which dogs?"]
CORPUS = {"id": "id", "text": "text", "question": "own"}


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Bench:
    own = pa.array([[cell] if isinstance(cell, str) else cell for cell in OWN], pa.list_(pa.string()))
    return Bench(tmp_path_factory.mktemp("ray-data"), tiny_model, LENGTHS, own=own, page=list(range(len(LENGTHS))))


def job_of(bench: Bench, name: str = "out", **changes: Any) -> Job:
    return bench.job(name, corpus=CORPUS | {"path": str(bench.corpus)}, **changes)


@pytest.fixture(scope="module")
def table(bench: Bench) -> pa.Table:
    """The corpus, its last row with a byte that is not UTF-8."""
    found = pq.read_table(bench.corpus)
    texts = [*found["text"].cast(pa.binary()).to_pylist()[:-1], b"the quick \xff fox"]
    return found.set_column(1, "text", pa.array(texts, pa.binary()).view(pa.string()))


def processor(job: Job, **changes: Any) -> LongDocumentProcessor:
    return LongDocumentProcessor(**LongDocumentProcessor.arguments(job, **changes)["fn_constructor_kwargs"])


@pytest.fixture(scope="module")
def shared(bench: Bench) -> LongDocumentProcessor:
    return processor(job_of(bench))


@pytest.fixture(scope="module")
def answered(shared: LongDocumentProcessor, table: pa.Table) -> pa.Table:
    return shared(table)


def timeless(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if not key.startswith("seconds_")} for row in rows]


def entries(answered: pa.Table) -> list[dict[str, Any]]:
    """All entries of the new column, each with the id of its row, without what a clock measured."""
    rows = zip(answered["id"].to_pylist(), answered["answers"].to_pylist(), strict=True)
    return timeless([{"id": name, **entry} for name, own in rows for entry in own])


def test_a_row_comes_out_as_it_went_in_with_one_column_more(table: pa.Table, answered: pa.Table) -> None:
    assert answered.drop_columns("answers").equals(table)
    assert answered.schema.field("answers").type == ANSWERS_TYPE


def test_answers_are_those_of_a_run_whose_parts_are_rows(bench: Bench, table: pa.Table, answered: pa.Table) -> None:
    """Every answer, span and share, and every failure. Larger parts put several rows into a batch of questions."""
    path = bench.root / "bad.parquet"
    pq.write_table(table, path, row_group_size=3)
    for name, part_tokens in (("rows", 1), ("parts", 600)):
        job = job_of(bench, name, output={"part_tokens": part_tokens, "max_failed_fraction": 1.0})
        run(job.model_copy(update={"corpus": job.corpus.model_copy(update={"path": str(path)})}))
    ran, found = by_question(bench.rows("rows")), by_question(entries(answered))
    assert ran.keys() == found.keys() and len(ran) > 2 * len(LENGTHS)
    for key, row in ran.items():
        assert {name: found[key][name] for name in row if name not in ("source_file", "source_row")} == (
            {name: value for name, value in row.items() if name not in ("source_file", "source_row")}
        )
    for key, row in by_question(bench.rows("parts")).items():
        assert (found[key]["answer"], found[key]["spans"]) == (row.get("answer"), row.get("spans"))


def test_questions_stand_in_the_order_in_which_they_are_asked(answered: pa.Table) -> None:
    ids = [[entry["question_id"] for entry in own] for own in answered["answers"].to_pylist()]
    job = [question["id"] for question in QUESTIONS]
    assert ids == [
        [*job, "row-0"], job, [*job, "row-0", "row-2"], [*job, "row-0"], job, job, [*job, "row-0"],
    ]  # fmt: skip


def test_a_bad_row_is_a_value_in_its_row(answered: pa.Table) -> None:
    errors = [{entry["error"] for entry in own} for own in answered["answers"].to_pylist()]
    fine = {None}
    assert errors == [fine, {"NullText"}, fine, {None, "QuestionTooLong"}, fine, fine, {"InvalidText"}]
    for entry in entries(answered):
        assert (entry["answer"] is None) == (entry["error"] is not None) == (entry["stage"] is not None)


@pytest.mark.parametrize("size", [1, 3])
def test_answers_do_not_depend_on_how_rows_are_batched(
    bench: Bench, table: pa.Table, answered: pa.Table, size: int
) -> None:
    of = processor(job_of(bench), num_cpus=2)
    pieces = [of(table.slice(start, size)) for start in range(0, len(table), size)]
    assert entries(pa.concat_tables(pieces)) == entries(answered)


def test_every_batch_has_the_same_type(bench: Bench, table: pa.Table) -> None:
    """Also one without rows, one whose rows ask nothing, and one in which all fails."""
    of = processor(job_of(bench, questions=[]), column="found")
    batches = [table.slice(0, 0), table.slice(5, 1), table.slice(1, 1), table.slice(6, 1)]
    results = [of(batch) for batch in batches]
    assert {result.schema for result in results} == {table.schema.append(pa.field("found", ANSWERS_TYPE))}
    assert [result["found"].to_pylist() for result in results[:3]] == [[], [[]], [[]]]


def test_column_types_of_other_sources_are_read(bench: Bench, table: pa.Table, answered: pa.Table) -> None:
    """Integers as ids, dictionaries as text, several chunks in a column."""
    text = pa.chunked_array([[table["text"][0].as_py()], ["short", None]])
    other = pa.table({"id": [7, 8, 9], "text": text.dictionary_encode()})
    found = processor(bench.job(questions=QUESTIONS[:1]))(other)["answers"].to_pylist()
    assert {"id": "doc0", **timeless(found[0])[0]} == entries(answered)[0]
    assert [own[0]["error"] for own in found] == [None, None, "NullText"]


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"own": [""], "answers": [""]}, "column 'answers' is there already"),
        ({"own": [""], "text": [3]}, "column 'text' .* has type int64"),
        ({}, "no column 'own'"),
    ],
)
def test_columns_that_cannot_be_are_refused(shared: LongDocumentProcessor, columns: dict[str, Any], words: str) -> None:
    with pytest.raises(CorpusError, match=words):
        shared(pa.table({"id": ["a"], "text": ["b"]} | columns))


def failing(monkeypatch: pytest.MonkeyPatch, error: Exception, when: Callable[[Encode | Ask], bool]) -> None:
    """Let engines fail at tasks that ``when`` is true of."""
    work = Engine.work

    def fail(engine: Engine, task: Encode | Ask) -> Any:
        if when(task):
            raise error
        return work(engine, task)

    monkeypatch.setattr(Engine, "work", fail)


def test_no_batch_of_questions_crosses_rows(bench: Bench, table: pa.Table, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[set[str]] = []

    def watch(task: Encode | Ask) -> bool:
        if isinstance(task, Ask):
            asked.append({query.document for query in task.queries})
        return False

    failing(monkeypatch, AssertionError(), watch)
    processor(job_of(bench))(table)
    assert len(asked) == 6 and all(len(documents) == 1 for documents in asked)


def test_want_of_memory_halves_the_chunks(
    bench: Bench, table: pa.Table, answered: pa.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(
        monkeypatch,
        torch.OutOfMemoryError("full"),
        lambda task: isinstance(task, Encode) and any(len(chunk.token_ids) > 64 for chunk in task.chunks),
    )
    rows = processor(job_of(bench))(table)["answers"].to_pylist()
    whole = answered["answers"].to_pylist()
    assert [[e["error"] for e in own] for own in rows] == [[e["error"] for e in own] for own in whole]
    assert rows[4][0]["spans"] != whole[4][0]["spans"], "read in other chunks"
    assert timeless(rows[5]) == timeless(whole[5]), "a row of one short chunk"


def test_a_worker_that_fails_row_after_row_says_so(
    bench: Bench, table: pa.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    of, rows = processor(job_of(bench)), pa.concat_tables([table.slice(0, 1)] * ray_data.MAX_FAILED_ROWS)
    failing(monkeypatch, RuntimeError("CUDA error \udcff"), lambda task: True)
    failed = entries(of(rows.slice(1)))
    assert {(entry["error"], entry["retryable"], entry["attempts"]) for entry in failed} == {("RuntimeError", True, 3)}
    assert {entry["message"] for entry in failed} == {"CUDA error \\udcff"}
    with pytest.raises(WorkersUnavailable, match=r"10 rows in a row .* RuntimeError: CUDA error"):
        of(rows.slice(0, 1))


def test_a_batch_that_raises_leaves_nothing_to_the_next(
    bench: Bench, table: pa.Table, answered: pa.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tasks of the broken batch are still with the engine when the reader fails on a later row."""
    of = processor(job_of(bench))
    prepare = type(of._reader).prepare

    def broken(self: Any, document: Any) -> Any:
        assert document.source_row < 2, "planted"
        return prepare(self, document)

    with monkeypatch.context() as patch, pytest.raises(AssertionError, match="planted"):
        patch.setattr(type(of._reader), "prepare", broken)
        of(table)
    assert entries(of(table)) == entries(answered)
