"""Documents, a reader and an engine without a model: every value says where it came from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from pipeline.document import Asked, Document
from pipeline.outcome import Answer, Failure
from pipeline.prepared import Prepared, Selection, cut, fail
from workers.messages import Answered, Ask, Encode, Encoded, Generated, Probe, Query
from workers.selection.budgets.base import BlockTable, Choice

CHUNK_TOKENS = 10
NO_TABLE = BlockTable(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.int64), np.empty((1, 1, 0)))
NOTHING = Choice((1, 1), ((),))


def prepared(
    row: int, *, num_chunks: int = 1, num_questions: int = 1, num_unfit: int = 0, num_rounds: int = 1
) -> Prepared:
    """Row ``row`` with questions q0, q1, ...; the first ``num_unfit`` of them cannot be asked. Its text says how
    often it wants to be read."""
    asked = tuple(Asked(f"q{n}", f"question {n}", expected=f"row{row}/q{n}") for n in range(num_questions))
    document = Document(f"row{row}", str(num_rounds), "corpus.parquet", row, asked)
    fit = asked[num_unfit:]
    ids = tuple(range(num_chunks * CHUNK_TOKENS)) if fit else ()
    unread = Prepared(
        document=document,
        offsets_T2=np.empty((0, 2), np.int64),
        token_ids=ids,
        asked=fit,
        probes=tuple(Probe(question.question_id, (1, 2), (0, 2)) for question in fit),
        chunks=(),
        encodes=(),
        failures=tuple(fail(document, question, "prepare", "Unfit", "") for question in asked[:num_unfit]),
        budget_tokens=1,
        max_chunk_tokens=CHUNK_TOKENS,
    )
    return first_round(unread, CHUNK_TOKENS)


def first_round(document: Prepared, size: int) -> Prepared:
    """One message for each chunk, with all probes."""
    chunks, name = cut(document.token_ids, size), f"row{document.document.source_row}"
    encodes = tuple(Encode(name, (chunk,), document.probes, 1) for chunk in chunks)
    return replace(document, round=1, chunks=chunks, encodes=encodes)


class FakeReader:
    """Goes on once the messages of a round are all there and in order. A later round reads each chunk once for each
    question, and its preface is the round's number. Chunks can be halved down to five tokens."""

    def cut_smaller(self, prepared: Prepared) -> Prepared | None:
        size = len(prepared.chunks[0].token_ids) // 2
        return first_round(prepared, size) if size >= 5 else None

    def advance(self, prepared: Prepared, encoded: Sequence[Encoded]) -> Prepared | list[Selection]:
        assert [message.keys[0] for message in encoded] == [
            name for encode in prepared.encodes for name in names(encode)
        ]
        name = prepared.encodes[0].document
        if prepared.round == int(prepared.document.text):
            return [Selection(Query(name, probe, (), 8), NO_TABLE, NOTHING) for probe in prepared.probes]
        again = prepared.round + 1
        encodes = tuple(
            Encode(name, (chunk,), (probe,), 1, preface=(again,))
            for probe in prepared.probes
            for chunk in prepared.chunks
        )
        return replace(prepared, round=again, encodes=encodes)

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
    """What a task is about: its chunk (with its length where it was cut smaller, with round and question after the
    first round), or its questions."""
    if isinstance(task, Encode):
        [chunk] = task.chunks
        size = len(chunk.token_ids)
        shorter = f"/{size}" if size != CHUNK_TOKENS else ""
        again = f"@{task.preface[0]}:{task.probes[0].question_id}" if task.preface else ""
        return [f"{task.document}#{chunk.index}{shorter}{again}"]
    return [f"{query.document}/{query.probe.question_id}" for query in task.queries]


def outcome_name(outcome: Answer | Failure) -> tuple[int, str]:
    return outcome.source_row, outcome.question_id
