"""The corpus: which files, which columns, which documents, and every way in which they are bad."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import obstore
import pyarrow as pa
import pytest

from configs.schema import Corpus, Question
from pipeline.corpus import RowRun, open_corpus
from pipeline.errors import CorpusError
from pipeline.objects import locate
from tests.pipeline.parquet import WHO, documents, flip_in_page, opened, raw_strings, read_all, read_one, write


@pytest.fixture()
def tree(tmp_path: Path) -> Path:
    for name in ("b.parquet", "a.parquet", "deep/er/c.parquet", "_hidden/x.parquet", ".x.parquet"):
        documents(tmp_path / name, f"text of {name}")
    (tmp_path / "notes.txt").write_text("not a document")
    return tmp_path


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("a.parquet", ["a.parquet"]),
        ("", ["a.parquet", "b.parquet", "deep/er/c.parquet"]),
        ("*.parquet", ["a.parquet", "b.parquet"]),
        ("**/*.parquet", ["_hidden/x.parquet", "a.parquet", "b.parquet", "deep/er/c.parquet"]),
        ("deep/*/[cd].parquet", ["deep/er/c.parquet"]),
    ],
)
@pytest.mark.parametrize("where", ["disk", "file url", "object storage"])
def test_a_path_names_the_same_files_on_disk_and_in_object_storage(
    tree: Path, pattern: str, names: list[str], where: str
) -> None:
    root = str(tree)
    if where == "file url":
        root = f"file://{tree}"
    elif where == "object storage":
        root = f"memory:/{tree}"
        store, key = locate(root)
        for path in tree.rglob("*.parquet"):
            obstore.put(store, f"{key}/{path.relative_to(tree)}", path.read_bytes())
    corpus = opened(f"{root}/{pattern}")
    base = f"memory:/{tree}" if where == "object storage" else str(tree)
    assert [file.path for file in corpus.files] == [f"{base}/{name}" for name in names]
    assert [document.text for document in read_all(corpus)] == [f"text of {name}" for name in names]


def test_no_file_comes_twice_and_the_order_of_patterns_counts(tree: Path) -> None:
    (tree / "link.parquet").symlink_to(tree / "a.parquet")
    paths = (str(tree / "b.parquet"), str(tree), str(tree / "a.parquet"))
    found = [Path(file.path).name for file in open_corpus(Corpus(path=paths), [WHO]).files]
    assert found == ["b.parquet", "a.parquet", "c.parquet"]


def test_what_a_run_wrote_into_the_corpus_is_no_document(tmp_path: Path) -> None:
    documents(tmp_path / "c" / "a.parquet", "one")
    documents(tmp_path / "c" / "data" / "b.parquet", "two")
    for name in ("data/part-0.parquet", "failed/part-0.parquet"):
        documents(tmp_path / "c" / "out" / name, "an answer")
    (tmp_path / "c" / "out" / "_job").mkdir()
    (tmp_path / "c" / "out" / "_job" / "job.json").write_text("{}")
    for path in (tmp_path / "c", tmp_path / "c" / "**" / "*.parquet", f"file://{tmp_path}/c"):
        assert [Path(file.path).name for file in opened(path).files] == ["a.parquet", "b.parquet"]


def test_a_file_whose_name_looks_like_a_glob_is_a_file(tmp_path: Path) -> None:
    assert len(opened(documents(tmp_path / "a[1].parquet", "x")).files) == 1


def test_a_document_has_its_place_and_its_questions(tmp_path: Path) -> None:
    documents(tmp_path / "a.parquet", "one", "two", "three", row_group_size=2)
    corpus = opened(tmp_path, Question(id="q", text="What?", answer_prefix="It", max_new_tokens=7))
    first, second, third = read_all(corpus)
    assert [document.id for document in (first, second, third)] == ["d0", "d1", "d2"]
    assert (third.source_file, third.source_row, third.text) == (str(tmp_path / "a.parquet"), 2, "three")
    (asked,) = first.questions
    assert (asked.question_id, asked.text, asked.answer_prefix, asked.max_new_tokens) == ("q", "What?", "It", 7)
    assert second.fault is None


def test_a_run_is_exactly_its_rows(tmp_path: Path) -> None:
    corpus = opened(documents(tmp_path / "a.parquet", *(f"text {row}" for row in range(50))))
    for start, stop in [(0, 1), (7, 8), (8, 16), (3, 29), (49, 50), (0, 50)]:
        found = [document.source_row for document in corpus.rows(RowRun(0, 0, start, stop))]
        assert found == list(range(start, stop))


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())]
)
@pytest.mark.parametrize("text", ["plain", "null \0 inside", "emoji 😀 and e\u0301"])
def test_every_kind_of_text_column_reads_the_same(tmp_path: Path, kind: pa.DataType, text: str) -> None:
    column = pa.array([text, None]) if kind != pa.string_view() else pa.array([text, None], kind)
    column = column if column.type == kind else column.cast(kind)
    path = write(tmp_path / "a.parquet", {"id": column, "text": column, "question": column})
    good, null = read_all(opened(path, question="question"))
    assert (good.id, good.text, good.questions[0].text, good.fault) == (text, text, text, None)
    assert null.fault is not None and null.questions == ()


@pytest.mark.parametrize(("ids", "expected"), [([7, 8], ["7", "8"]), (["a", "b"], ["a", "b"])])
def test_ids_are_text_or_integers(tmp_path: Path, ids: list[Any], expected: list[str]) -> None:
    corpus = opened(write(tmp_path / "a.parquet", {"id": ids, "text": ["x", "y"]}))
    assert [document.id for document in read_all(corpus)] == expected


def test_without_an_id_column_a_document_is_named_by_its_place(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", {"text": ["x", "y"]})
    assert [d.id for d in read_all(opened(tmp_path, id=None))] == ["a.parquet:0", "a.parquet:1"]
    twin = write(tmp_path / "deep" / "a.parquet", {"text": ["z"]})
    ids = [d.id for d in read_all(opened(tmp_path, id=None))]
    assert ids[-1] == f"{twin}:0" and len(set(ids)) == 3


ROW_COLUMNS = {"question": "question", "answer_prefix": "prefix", "max_new_tokens": "length", "answer": "answer"}


def asked_of_row(tmp_path: Path, question: Any, prefix: Any = None, length: Any = None, answer: Any = None) -> Any:
    columns = {"id": ["d"], "text": ["x"], "question": [question], "prefix": [prefix], "length": [length]}
    return read_one(write(tmp_path / "row.parquet", {**columns, "answer": [answer]}), **ROW_COLUMNS)


def test_a_row_asks_its_own_questions_after_the_jobs(tmp_path: Path) -> None:
    columns = {"id": ["d"], "text": ["x"], "question": ["Why?"]}
    (document,) = read_all(opened(write(tmp_path / "a.parquet", columns), WHO, question="question"))
    assert [(asked.question_id, asked.text) for asked in document.questions] == [("who", "Who?"), ("row", "Why?")]


def test_a_list_of_questions_has_values_for_each(tmp_path: Path) -> None:
    document = asked_of_row(
        tmp_path, ["a", None, " ", "d"], ["p", "q", "r", None], [1, 2, 3, None], ["w", "x", "y", "z"]
    )
    found = [(q.question_id, q.text, q.answer_prefix, q.max_new_tokens, q.expected) for q in document.questions]
    assert found == [("row-0", "a", "p", 1, "w"), ("row-3", "d", "", 48, "z")]


def test_one_value_serves_a_list_of_questions(tmp_path: Path) -> None:
    document = asked_of_row(tmp_path, ["a", "b"], "p", 9)
    assert [(q.answer_prefix, q.max_new_tokens, q.expected) for q in document.questions] == [("p", 9, None)] * 2


def test_a_list_of_answers_to_one_question_is_all_of_them(tmp_path: Path) -> None:
    assert asked_of_row(tmp_path, "a", answer=["x", "y"]).questions[0].expected == "x\ny"


@pytest.mark.parametrize("question", [None, "", "  \n", [], [None, ""]])
def test_a_row_that_asks_nothing_has_no_questions_and_no_fault(tmp_path: Path, question: Any) -> None:
    column = pa.array([question], pa.list_(pa.string()) if isinstance(question, list) else pa.string())
    path = write(tmp_path / "a.parquet", {"id": ["d"], "text": ["x"], "question": column})
    document = read_one(path, question="question")
    assert (document.questions, document.fault) == ((), None)


def test_row_columns_without_a_question_column_belong_to_the_jobs_question(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"id": ["d"], "text": ["x"], "answer": ["Ann"], "length": [3]})
    (asked,) = read_one(path, answer="answer", max_new_tokens="length").questions
    assert (asked.question_id, asked.max_new_tokens, asked.expected) == ("who", 3, "Ann")


@pytest.mark.parametrize("taken", ["row", "row-0"])
def test_a_job_question_cannot_take_the_name_of_a_rows_own(tmp_path: Path, taken: str) -> None:
    path = write(tmp_path / "a.parquet", {"id": ["d"], "text": ["x"], "question": ["y"]})
    with pytest.raises(CorpusError, match=f"'{taken}' is taken"):
        opened(path, Question(id=taken, text="?"), question="question")


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"question": "a", "length": 0}, "'length' is 0; allowed: a whole number, 1 or more"),
        ({"question": ["a", "b"], "length": [5, -1]}, "'length' is -1"),
        ({"question": ["a", "b"], "length": [5]}, "has 1 values for 2 questions"),
        ({"question": ["a", "b"], "prefix": ["p", "q", "r"]}, "has 3 values for 2 questions"),
        ({"question": ["a", "b"], "answer": "one"}, "one value for 2 questions"),
        ({"question": ["a", "b"], "answer": ["one"]}, "has 1 values for 2 questions"),
    ],
)
def test_a_question_that_cannot_be_asked_is_a_fault_of_its_row(tmp_path: Path, row: dict[str, Any], words: str) -> None:
    document = asked_of_row(tmp_path, **row)
    assert document.fault is not None and document.questions
    assert document.fault.error == "BadQuestion"
    assert words in document.fault.message


@pytest.mark.parametrize("text", ["", "  ", "\n\t\u3000"])
def test_an_empty_document_is_a_fault(tmp_path: Path, text: str) -> None:
    document = read_one(documents(tmp_path / "a.parquet", text))
    assert document.fault is not None and document.fault.error == "EmptyDocument"
    assert document.questions == read_one(documents(tmp_path / "b.parquet", "x")).questions


def test_null_text_and_null_id_are_faults_even_in_columns_of_nulls(tmp_path: Path) -> None:
    good, no_text, no_id = read_all(
        opened(write(tmp_path / "a.parquet", {"id": ["a", "b", None], "text": ["x", None, "z"]}))
    )
    assert good.fault is None
    assert no_text.fault is not None and no_text.fault.error == "NullText" and no_text.id == "b"
    assert no_id.fault is not None and no_id.fault.error == "NullId" and no_id.id is None
    nothing = read_one(write(tmp_path / "b.parquet", {"id": ["a"], "text": pa.nulls(1)}))
    assert nothing.fault is not None and nothing.fault.error == "NullText"


@pytest.mark.parametrize("column", ["id", "text", "question"])
def test_text_that_is_not_utf8_costs_its_row_only(tmp_path: Path, column: str) -> None:
    bad = raw_strings([b"good", b"abc\xed\xa0\x80def", b"fine"])
    columns = {
        "id": pa.array(["a", "b", "c"]),
        "text": pa.array(["x", "y", "z"]),
        "question": pa.array(["?", "?", "?"]),
    }
    path = write(tmp_path / "a.parquet", {**columns, column: bad})
    first, second, third = read_all(opened(path, question="question"))
    assert first.fault is None and third.fault is None
    assert second.fault is not None and second.fault.error == "InvalidText"
    assert f"column {column!r} is not valid UTF-8 at byte 3 (0xed)" in second.fault.message
    assert (second.id, second.source_row) == (None if column == "id" else "b", 1)
    assert [asked.question_id for asked in second.questions] == ["row"]


def test_a_duplicate_id_names_its_first_place(tmp_path: Path) -> None:
    corpus = opened(documents(tmp_path / "a.parquet", "x", "y"))
    _, again = corpus.rows(RowRun(0, 0, 0, 2), {(0, 1): (0, 0)})
    assert again.fault is not None and again.fault.error == "DuplicateId"
    assert again.fault.message == f"id 'd1' is already used by {tmp_path / 'a.parquet'} row 0"


@pytest.mark.parametrize(
    ("where", "options"),
    [("page", {"write_page_checksum": True, "compression": "none"}), ("header", {"compression": "snappy"})],
)
def test_a_damaged_page_costs_the_rest_of_its_row_group_only(
    tmp_path: Path, where: Literal["page", "header"], options: dict[str, Any]
) -> None:
    path = tmp_path / "a.parquet"
    texts = [os.urandom(300).hex() for _ in range(30)]
    documents(path, *texts, row_group_size=10, use_dictionary=False, **options)
    flip_in_page(path, 1, "text", where)
    found = read_all(opened(path))
    assert [document.source_row for document in found] == list(range(30))
    assert [document.text for document in found if document.fault is None] == texts[:10] + texts[20:]
    for document in found[10:20]:
        assert document.fault is not None and document.fault.error == "UnreadableRow"
        assert document.id is None and [asked.question_id for asked in document.questions] == ["who"]
        assert f"{path}: row {document.source_row} " in document.fault.message


def test_a_damaged_row_with_unknown_questions_still_ends_as_an_outcome(tmp_path: Path) -> None:
    columns = {"id": ["a"], "text": ["x" * 50], "question": ["Why?"]}
    path = write(tmp_path / "a.parquet", columns, compression="none", write_page_checksum=True)
    flip_in_page(path, 0, "text")
    assert [asked.question_id for asked in read_one(path, question="question").questions] == ["row"]


def test_a_file_that_vanishes_under_the_reader_is_no_fault_of_its_rows(tmp_path: Path) -> None:
    path = documents(tmp_path / "a.parquet", "x")
    corpus = opened(path)
    path.unlink()
    with pytest.raises(FileNotFoundError):
        read_all(corpus)


@pytest.mark.parametrize("damage", ["rewritten", "truncated"])
def test_a_file_that_changes_under_the_reader_stops_the_run(tmp_path: Path, damage: str) -> None:
    path = documents(tmp_path / "a.parquet", "x")
    corpus = opened(path)
    if damage == "rewritten":
        documents(path, "something else")
    else:
        path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(CorpusError, match="changed since it was checked"):
        read_all(corpus)


@pytest.mark.parametrize("path", ["nothing/here.parquet", "none-*.parquet", "memory:///nothing/here", "empty"])
def test_a_path_that_names_nothing_says_so(tmp_path: Path, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    with pytest.raises(CorpusError, match="matches no Parquet file") as error:
        opened(path)
    assert path in str(error.value)


def test_an_unknown_scheme_names_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"unknown scheme 'ftp'; allowed: s3, .*gs, az"):
        opened("ftp://host/a.parquet")


def test_every_unreadable_file_is_named_at_once(tmp_path: Path) -> None:
    documents(tmp_path / "good.parquet", "x")
    whole = documents(tmp_path / "cut.parquet", "x" * 1000).read_bytes()
    (tmp_path / "cut.parquet").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.parquet").write_bytes(b"")
    (tmp_path / "text.parquet").write_text("this is not a Parquet file at all")
    garbled = bytearray(whole)
    garbled[-60:-20] = b"\xff" * 40
    (tmp_path / "garbled.parquet").write_bytes(garbled)
    with pytest.raises(CorpusError) as error:
        opened(tmp_path)
    lines = str(error.value).splitlines()
    assert [Path(line.split(":")[0]).name for line in lines] == [
        "cut.parquet", "empty.parquet", "garbled.parquet", "text.parquet",
    ]  # fmt: skip
    assert "truncated" in lines[0] and all("cannot be read as Parquet" in line for line in lines)


@pytest.mark.parametrize(
    ("columns", "corpus", "words"),
    [
        ({"id": ["a"], "body": ["x"]}, {}, ["no column 'text' (corpus.text)", "columns: id, body", "string_view"]),
        ({"text": ["x"]}, {}, ["no column 'id' (corpus.id)", "text or an integer"]),
        ({"id": ["a"], "text": [1.5]}, {}, ["column 'text' (corpus.text) has type double", "allowed: text"]),
        ({"id": ["a"], "text": [b"x"]}, {}, ["column 'text' (corpus.text) has type binary"]),
        ({"id": [1.5], "text": ["x"]}, {}, ["column 'id' (corpus.id) has type double", "allowed: text or an integer"]),
        ({"id": ["a"], "text": [["x"]]}, {}, ["column 'text' (corpus.text) has type list<"]),
        (
            {"id": ["a"], "text": ["x"], "q": [3]},
            {"question": "q"},
            ["(corpus.question) has type int64", "list of text"],
        ),
        ({"id": ["a"], "text": ["x"], "n": ["3"]}, {"max_new_tokens": "n"}, ["has type string", "list of integers"]),
        ({"id": ["a"], "text": ["x"], "n": [[True]]}, {"max_new_tokens": "n"}, ["has type list<element: bool>"]),
    ],
)
def test_a_column_that_is_missing_or_of_another_type_is_named(
    tmp_path: Path, columns: dict[str, Any], corpus: dict[str, Any], words: list[str]
) -> None:
    path = write(tmp_path / "a.parquet", columns)
    documents(tmp_path / "b.parquet", "good")
    with pytest.raises(CorpusError) as error:
        opened(path, **corpus)
    for word in [str(path), *words]:
        assert word in str(error.value)


STREAM = """
import sys, pyarrow
from tests.pipeline.parquet import opened
from pipeline.corpus import RowRun
corpus = opened(sys.argv[1])
for group, rows in enumerate(corpus.files[0].row_groups):
    assert sum(1 for _ in corpus.rows(RowRun(0, group, 0, rows.rows))) == rows.rows
print(pyarrow.default_memory_pool().max_memory())
"""


def peak_of_reading(path: Path) -> int:
    done = subprocess.run(
        [sys.executable, "-c", STREAM, str(path)], capture_output=True, text=True, check=True, cwd=Path.cwd()
    )
    return int(done.stdout)


@pytest.mark.parametrize(("few", "row_group_size"), [(64, 64), (256, None)], ids=["many row groups", "one row group"])
def test_memory_grows_neither_with_the_corpus_nor_with_a_row_group(
    tmp_path: Path, few: int, row_group_size: int | None
) -> None:
    texts = [os.urandom(5000).hex() for _ in range(1024)]
    options = {"write_batch_size": 16, "row_group_size": row_group_size}
    small = documents(tmp_path / "small.parquet", *texts[:few], **options)
    large = documents(tmp_path / "large.parquet", *texts, **options)
    assert peak_of_reading(large) < 1.2 * peak_of_reading(small)
