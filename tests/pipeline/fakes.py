"""Documents, a reader and an engine without a model: every value says where it came from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from pipeline.document import Asked, Document
from pipeline.outcome import Answer, Failure
from pipeline.reading import Prepared, Selection, fail
from workers.messages import Answered, Ask, Chunk, Encode, Encoded, Generated, Probe, Query
from workers.selection.budgets import BlockTable

CHUNK_TOKENS = 10
NO_TABLE = BlockTable(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0))


def prepared(row: int, *, num_chunks: int = 1, num_questions: int = 1, num_unfit: int = 0) -> Prepared:
    """Row ``row`` with questions q0, q1, ...; the first ``num_unfit`` of them cannot be asked."""
    asked = tuple(Asked(f"q{n}", f"question {n}", expected=f"row{row}/q{n}") for n in range(num_questions))
    document = Document(f"row{row}", "text", "corpus.parquet", row, asked)
    fit = asked[num_unfit:]
    probes = tuple(Probe(question.question_id, (1, 2), (0, 2)) for question in fit)
    size = CHUNK_TOKENS
    chunks = tuple(Chunk(n, n * size, tuple(range(size))) for n in range(num_chunks)) if fit else ()
    return Prepared(
        document=document,
        offsets_T2=np.empty((0, 2), np.int64),
        token_ids=tuple(range(len(chunks) * size)),
        asked=fit,
        probes=probes,
        chunks=chunks,
        encodes=tuple(Encode(f"row{row}", (chunk,), probes) for chunk in chunks),
        failures=tuple(fail(document, question, "prepare", "Unfit", "") for question in asked[:num_unfit]),
    )


class FakeReader:
    """Selects once the messages are all there and in order; chunks can be halved down to five tokens."""

    def cut_smaller(self, prepared: Prepared) -> Prepared | None:
        size = len(prepared.chunks[0].token_ids) // 2
        if size < 5:
            return None
        starts = range(0, prepared.num_tokens, size)
        chunks = tuple(Chunk(n, start, tuple(range(size))) for n, start in enumerate(starts))
        name = prepared.encodes[0].document
        return replace(
            prepared, chunks=chunks, encodes=tuple(Encode(name, (chunk,), prepared.probes) for chunk in chunks)
        )

    def select(self, prepared: Prepared, encoded: Sequence[Encoded]) -> list[Selection]:
        assert [message.keys[0] for message in encoded] == [
            name for encode in prepared.encodes for name in names(encode)
        ]
        name = prepared.encodes[0].document
        return [Selection(Query(name, probe, (), 8), NO_TABLE) for probe in prepared.probes]

    def answer(
        self, prepared: Prepared, index: int, selection: Selection, generated: Generated, seconds_encode: float
    ) -> Answer:
        document, asked = prepared.document, prepared.asked[index]
        return Answer(
            id=str(document.id),
            question_id=asked.question_id,
            question=asked.text,
            answer=generated.text,
            spans=(),
            document_tokens=prepared.num_tokens,
            kept_tokens=0,
            relevance_kept=1.0,
            generated_tokens=1,
            seconds_encode=seconds_encode,
            seconds_answer=0.0,
            source_file=document.source_file,
            source_row=document.source_row,
        )


def work(task: Encode | Ask) -> Encoded | Answered:
    """What the fake engine makes of a task: keys that name the chunk, answers that name their whole batch."""
    if isinstance(task, Encode):
        return Encoded((), tuple(names(task)), 1.0, 0)
    batch = " ".join(names(task))
    return Answered(tuple(Generated(f"{name} of {batch}", 1, 0.0) for name in names(task)))


def names(task: Encode | Ask) -> list[str]:
    """What a task is about: its chunk (with its length, where it was cut smaller), or its questions."""
    if isinstance(task, Encode):
        [chunk] = task.chunks
        size = len(chunk.token_ids)
        return [f"{task.document}#{chunk.index}" + (f"/{size}" if size != CHUNK_TOKENS else "")]
    return [f"{query.document}/{query.probe.question_id}" for query in task.queries]


def outcome_name(outcome: Answer | Failure) -> tuple[int, str]:
    return outcome.source_row, outcome.question_id
