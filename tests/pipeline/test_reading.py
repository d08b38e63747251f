"""One document's journey, without a model: what is asked, what is kept, what is written down."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from configs.schema import Job
from pipeline.document import Asked, Document, Fault
from pipeline.errors import JobError
from pipeline.reading import DocumentReader, Prepared
from workers.loading import load_reading
from workers.messages import ChunkRelevance, Encoded, Generated


def job(model: Path, **changes: object) -> Job:
    record: dict[str, object] = {
        "corpus": {"path": "x.parquet"},
        "questions": [{"id": "who", "text": "Who signed it?"}],
        "model": {"source": str(model)},
        "read": {"chunk_tokens": 64},
        "keep": {"block_tokens": 16, "widen_tokens": 4, "budget": {"kind": "uniform", "tokens": 48}},
        "output": {"path": "out"},
    }
    return Job.model_validate(record | changes)


def reader_of(model: Path, **changes: object) -> DocumentReader:
    made = job(model, **changes)
    return DocumentReader(made, load_reading(made))


def document(text: str | None, *questions: Asked, fault: Fault | None = None) -> Document:
    asked = questions or (Asked("who", "Who signed it?", "", 8, None),)
    return Document("doc", text, "x.parquet", 3, asked, fault)


def encoded(prepared: Prepared, hot: int, offered: tuple[tuple[int, int], ...] | None = None) -> list[Encoded]:
    """Results as an engine gives them: all of the attention on the block that holds position ``hot``."""
    messages = []
    for encode in prepared.encodes:
        rows = []
        for chunk in encode.chunks:
            blocks = range(chunk.start, chunk.start + len(chunk.token_ids), 16)
            lse = np.array([[[10.0 if first <= hot < first + 16 else -10.0 for first in blocks]]], np.float32)
            rows.append(tuple(ChunkRelevance(lse, offered) for _ in encode.probes))
        messages.append(Encoded(tuple(rows), (), 0.5, 0))
    return messages


TEXT = "".join(chr(ord("a") + n % 26) for n in range(300))


def test_chunks_are_the_document_and_travel_alone_unless_carried(tiny_model: Path) -> None:
    isolated = reader_of(tiny_model).prepare(document(TEXT))
    carried = reader_of(tiny_model, read={"chunk_tokens": 64, "context": "carried"}).prepare(document(TEXT))
    for prepared in (isolated, carried):
        assert [t for chunk in prepared.chunks for t in chunk.token_ids] == list(prepared.token_ids)
        assert [chunk.start for chunk in prepared.chunks] == [0, 64, 128, 192, 256]
    assert [len(encode.chunks) for encode in isolated.encodes] == [1] * 5
    assert [len(encode.chunks) for encode in carried.encodes] == [5]


def test_what_is_attended_to_is_kept_widened_and_quoted(tiny_model: Path) -> None:
    reader = reader_of(tiny_model)
    prepared = reader.prepare(document(TEXT))
    [selection] = reader.select(prepared, encoded(prepared, hot=100))
    answer = reader.answer(prepared, 0, selection, Generated(" It was me. ", 4, 0.25), 1.5)
    assert answer.kept_tokens <= 48 and answer.document_tokens == 300
    [best] = [span for span in answer.spans if span.start <= 96 - 4 and span.end >= 112 + 4]
    assert best.text == TEXT[best.start : best.end] and best.share > 0.5
    assert answer.relevance_kept == pytest.approx(sum(span.share for span in answer.spans))
    assert (answer.answer, answer.seconds_encode, answer.seconds_answer) == ("It was me.", 1.5, 0.25)
    assert (answer.id, answer.question_id, answer.source_file, answer.source_row) == ("doc", "who", "x.parquet", 3)


@pytest.mark.parametrize("text", ["naïve 😀😀 " * 20, "a\x00b" * 60, "日本語" * 40])
def test_spans_never_cut_a_character(tiny_model: Path, text: str) -> None:
    reader = reader_of(tiny_model)
    prepared = reader.prepare(document(text))
    [selection] = reader.select(prepared, encoded(prepared, hot=50))
    answer = reader.answer(prepared, 0, selection, Generated("x", 1, 0.1), 0.1)
    for span in answer.spans:
        assert span.text == text[span.start : span.end] and span.text
        span.text.encode()


def test_answers_over_kept_pairs_choose_among_what_was_offered_and_name_its_sources(tiny_model: Path) -> None:
    reader = reader_of(tiny_model, answer={"over": "kept"})
    prepared = reader.prepare(document(TEXT))
    [selection] = reader.select(prepared, encoded(prepared, hot=100, offered=((32, 48),)))
    places = [place for run in selection.query.runs for place in range(run.start, run.stop)]
    assert set(places) <= {first + place for first in range(0, 300, 64) for place in range(32, 48)}
    assert 96 in places
    sources = {chunk.start for source in selection.query.sources for chunk in source.chunks}
    assert sources == {place // 64 * 64 for place in places}


def test_a_question_too_long_for_the_window_fails_alone(tiny_model: Path) -> None:
    long = Asked("long", "why " * 600, "", 8, None)
    greedy = Asked("greedy", "Why?", "", 5000, None)
    fine = Asked("who", "Who signed it?", "", 8, None)
    prepared = reader_of(tiny_model).prepare(document(TEXT, long, fine, greedy))
    assert [asked.question_id for asked in prepared.asked] == ["who"]
    assert [(f.question_id, f.stage, f.error, f.retryable) for f in prepared.failures] == [
        ("long", "prepare", "QuestionTooLong", False),
        ("greedy", "prepare", "QuestionTooLong", False),
    ]
    assert "the model's window is 2048" in prepared.failures[0].message
    assert "max_new_tokens 5000" in prepared.failures[1].message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"questions": [{"id": "who", "text": "why " * 600}]}, r"questions\[0\] \(who\): .*window is 2048"),
        ({"questions": [{"id": "who", "text": "Who?", "max_new_tokens": 3000}]}, "max_new_tokens 3000"),
        ({"keep": {"budget": {"kind": "uniform", "tokens": 4096}}}, r"keep\.budget\.tokens 4096"),
        ({"read": {"chunk_tokens": 4096}}, r"read\.chunk_tokens 4096"),
    ],
)  # fmt: skip
def test_a_job_that_can_never_fit_is_refused_before_it_starts(
    tiny_model: Path, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(JobError, match=message):
        reader_of(tiny_model, **changes)


def test_a_faulty_document_fails_every_question_of_it(tiny_model: Path) -> None:
    two = (Asked("a", "Who?", "", 8, None), Asked("b", "When?", "", 8, None))
    prepared = reader_of(tiny_model).prepare(document(None, *two, fault=Fault("NullText", "text is null")))
    assert not prepared.encodes and not prepared.asked
    assert [(f.question_id, f.stage, f.error) for f in prepared.failures] == [
        ("a", "corpus", "NullText"),
        ("b", "corpus", "NullText"),
    ]


def test_a_document_shorter_than_one_block_is_read_whole(tiny_model: Path) -> None:
    reader = reader_of(tiny_model)
    prepared = reader.prepare(document("tiny"))
    [selection] = reader.select(prepared, encoded(prepared, hot=0))
    assert [(run.start, run.stop) for run in selection.query.runs] == [(0, 4)]


@pytest.mark.parametrize("context", ["isolated", "carried"])
def test_a_document_can_be_cut_smaller_down_to_one_block(tiny_model: Path, context: str) -> None:
    reader = reader_of(tiny_model, read={"chunk_tokens": 64, "context": context})
    prepared: Prepared | None = reader.prepare(document(TEXT))
    sizes = []
    while prepared is not None:
        sizes.append(len(prepared.chunks[0].token_ids))
        assert [t for chunk in prepared.chunks for t in chunk.token_ids] == list(prepared.token_ids)
        assert [chunk for encode in prepared.encodes for chunk in encode.chunks] == list(prepared.chunks)
        prepared = reader.cut_smaller(prepared)
    assert sizes == [64, 32, 16]
