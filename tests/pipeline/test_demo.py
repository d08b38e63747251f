"""The demo corpus holds real text of the promised sizes, questions it can answer, and the demo job reads it."""

from __future__ import annotations

from pathlib import Path
from pydoc_data.topics import topics as PYTHON_TOPICS

import pyarrow.parquet as pq
import pytest

from configs.load import load_job
from pipeline.corpus import open_corpus
from pipeline.demo import DOCUMENTS, LONG_CHARS, SCHEMA, SHORT_CHARS, DemoDocument, build, demo_table, main
from pipeline.errors import CorpusError

JOB = Path(__file__).parents[2] / "configs" / "demo.yaml"
TOPICS = dict(PYTHON_TOPICS)
IDS = [document.id for document in DOCUMENTS]
# Most and least characters per SmolLM2 token that any of these documents comes to, measured with its
# tokenizer on the topics of Python 3.11 to 3.13, with a margin.
MOST, LEAST = 4.4, 3.7


def test_one_long_document_and_several_shorter_ones() -> None:
    texts = demo_table().column("text").to_pylist()
    long, *shorter = sorted(texts, key=len, reverse=True)
    assert len(long) >= LONG_CHARS
    assert len(long) / MOST > 40_000
    assert 4 <= len(shorter) <= 5
    for text in shorter:
        assert len(text) >= SHORT_CHARS
        assert len(text) / MOST > 5_000
        assert len(text) / LEAST < 20_000


def test_text_is_the_reference_and_nothing_else() -> None:
    for document, text in zip(DOCUMENTS, demo_table().column("text").to_pylist(), strict=True):
        assert text.split() == [word for name in document.topics for word in PYTHON_TOPICS[name].split()]


@pytest.mark.parametrize("document", DOCUMENTS, ids=IDS)
def test_every_question_rests_on_a_passage_and_a_checkable_answer_is_in_it(document: DemoDocument) -> None:
    text = document.text(TOPICS)
    assert document.asked(text) == document.questions
    assert 2 <= len(document.questions) <= 3
    for question in document.questions:
        assert question.question.endswith("?")
        assert 1 <= question.max_new_tokens <= 48
        if question.answer is not None:
            assert question.answer in question.passage
            assert question.answer.lower() not in question.question.lower()
            assert question.answer.lower() not in question.prefix.lower()


def test_no_two_documents_share_an_id() -> None:
    assert len(set(IDS)) == len(IDS)


def test_rows_have_the_promised_columns_with_one_entry_per_question() -> None:
    table = demo_table()
    assert table.schema == SCHEMA
    for row, document in zip(table.to_pylist(), DOCUMENTS, strict=True):
        assert row["id"] == document.id
        assert row["question"] == [question.question for question in document.questions]
        assert row["answer"] == [question.answer for question in document.questions]
        assert len(row["answer_prefix"]) == len(row["max_new_tokens"]) == len(row["question"])


def test_building_twice_gives_the_same_bytes_and_leaves_no_other_file(tmp_path: Path) -> None:
    path = build(tmp_path)
    first = path.read_bytes()
    assert build(tmp_path) == path
    assert path.read_bytes() == first
    assert list(path.parent.iterdir()) == [path]
    assert pq.ParquetFile(path).num_row_groups == len(DOCUMENTS)


def test_a_small_topic_that_this_python_lacks_is_left_out() -> None:
    without = {name: text for name, text in TOPICS.items() if name != "calls"}
    row = demo_table(without).to_pylist()[0]
    assert len(row["text"]) >= LONG_CHARS
    assert TOPICS["calls"].strip() not in row["text"]
    assert TOPICS["compound"].strip() in row["text"]


def test_missing_too_much_is_an_error_that_names_document_size_and_topics() -> None:
    without = {name: text for name, text in TOPICS.items() if name not in ("specialnames", "calls")}
    with pytest.raises(CorpusError, match=r"data-model-and-statements.*180,000.*lacks: specialnames, calls") as error:
        demo_table(without)
    assert "Python 3." in str(error.value)


def test_a_question_whose_passage_was_reworded_is_not_asked() -> None:
    reworded = TOPICS | {"string-methods": TOPICS["string-methods"].replace('Return "-1" if', 'Gives "-1" if')}
    row = next(row for row in demo_table(reworded).to_pylist() if row["id"] == "string-methods")
    assert row["answer"] == ["TypeError", None]
    assert len(row["question"]) == len(row["answer_prefix"]) == len(row["max_new_tokens"]) == 2


def test_a_document_without_any_checkable_answer_is_an_error() -> None:
    reworded = TOPICS | {"formatstrings": "Nothing about it. " * 2_000}
    with pytest.raises(CorpusError, match=r"string-formatting.*no question with a checkable answer"):
        demo_table(reworded)


def test_passages_are_found_however_the_lines_are_wrapped() -> None:
    wrapped = TOPICS | {"string-methods": "\n ".join(TOPICS["string-methods"].split())}
    assert demo_table(wrapped).column("question") == demo_table().column("question")


def test_the_demo_job_reads_the_corpus_it_is_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["build", "demo"]) == 0
    job = load_job(JOB)
    assert job.pool.kind == "local" and job.pool.workers == 2
    assert [tier.kind for tier in job.store.tiers] == ["memory", "files"]
    files = open_corpus(job.corpus, job.questions)
    assert sum(file.rows for file in files.files) == len(DOCUMENTS)


def test_the_command_says_what_it_built(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["build", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "data-model-and-statements: " in printed
    assert f"{tmp_path / 'corpus' / 'python-reference.parquet'}: {len(DOCUMENTS)} documents" in printed


def test_the_command_fails_with_a_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("typesseq", "typesmapping"):
        monkeypatch.delitem(PYTHON_TOPICS, name)
    assert main(["build", str(tmp_path)]) == 2
    assert "sequences-and-mappings" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
