"""One document's journey: text to chunks and probes, relevance to kept runs, generated text to an answer.

Invariants: pure (no model, no files, no clock); character offsets stay here, messages carry token ids and
document positions; what is wrong with a question is a ``Failure`` of that question alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from configs.schema import Job
from pipeline.attribution import spans_of
from pipeline.corpus import Asked, Document
from pipeline.errors import JobError
from pipeline.outcome import Answer, Failure
from workers.errors import DocumentError
from workers.hf import ModelShape
from workers.loading import Reading
from workers.messages import Chunk, Encode, Encoded, Generated, Probe, Query, Run
from workers.selection.budgets import BlockTable, UniformBudget
from workers.selection.relevance import block_shares


@dataclass(frozen=True)
class Prepared:
    """A document ready to be read. ``offsets_T2``: character range of each token; ``asked`` and ``probes`` go
    together; ``encodes`` is the work, in order; ``failures`` are questions that cannot be asked."""

    document: Document
    offsets_T2: NDArray[np.int64]
    token_ids: tuple[int, ...]
    asked: tuple[Asked, ...]
    probes: tuple[Probe, ...]
    chunks: tuple[Chunk, ...]
    encodes: tuple[Encode, ...]
    failures: tuple[Failure, ...]

    @property
    def num_tokens(self) -> int:
        """Length of the document in tokens."""
        return len(self.token_ids)


@dataclass(frozen=True)
class Selection:
    """What one question keeps of a document, and the block table that says how relevant it is."""

    query: Query
    table: BlockTable


def fail(
    document: Document,
    asked: Asked,
    stage: str,
    error: str,
    message: str,
    *,
    attempts: int = 1,
    retryable: bool = False,
) -> Failure:
    """A dead letter for one question of a document. Bad data is never worth a retry."""
    return Failure(
        id=document.id,
        question_id=asked.question_id,
        question=asked.text,
        stage=stage,
        error=error,
        message=message,
        attempts=attempts,
        retryable=retryable,
        source_file=document.source_file,
        source_row=document.source_row,
    )


class DocumentReader:
    """Prepares documents of one job, chooses what is kept of them, and writes down their answers."""

    def __init__(self, job: Job, reading: Reading) -> None:
        """Refuses (``JobError``) settings and questions that can never fit into the model's window."""
        self._frame = reading.frame
        self._shape: ModelShape = reading.shape
        self._read = job.read
        self._block_tokens = job.keep.block_tokens
        self._budget = UniformBudget.of(job.keep)
        self._keeps_pairs = job.answer.over == "kept"
        for index, question in enumerate(job.questions):
            probe = self._frame.probe(question.id, question.text, question.answer_prefix)
            if problem := self._too_long(probe, question.max_new_tokens):
                raise JobError(f"questions[{index}] ({question.id}): {problem}")
        if problem := self._too_long(self._frame.probe("", "?"), 1):
            raise JobError(f"read, keep: {problem}")

    def prepare(self, document: Document) -> Prepared:
        """Tokenize, cut into chunks, and build the probes. Faulty documents and questions come out as failures."""
        failures = []
        asked, probes = [], []
        for question in document.questions:
            try:
                if document.fault is not None:
                    failures.append(fail(document, question, "corpus", document.fault.error, document.fault.message))
                    continue
                probe = self._frame.probe(question.question_id, question.text, question.answer_prefix)
                if problem := self._too_long(probe, question.max_new_tokens):
                    failures.append(fail(document, question, "prepare", "QuestionTooLong", problem))
                    continue
            except DocumentError as error:
                failures.append(fail(document, question, "prepare", type(error).__name__, str(error)))
                continue
            asked.append(question)
            probes.append(probe)
        ids: list[int] = []
        offsets: list[tuple[int, int]] = []
        if asked:
            assert document.text is not None
            ids, offsets = self._frame.tokenizer.encode_with_offsets(document.text)
        if not ids:
            nothing = "the tokenizer finds no tokens in the text"
            failures.extend(fail(document, question, "prepare", "EmptyDocument", nothing) for question in asked)
            asked, probes = [], []
        chunks = self._cut(ids, self._read.chunk_tokens)
        name = f"{document.source_file}:{document.source_row}"
        return Prepared(
            document=document,
            offsets_T2=np.array(offsets, dtype=np.int64).reshape(-1, 2),
            token_ids=tuple(ids),
            asked=tuple(asked),
            probes=tuple(probes),
            chunks=chunks,
            encodes=self._encodes(name, chunks, tuple(probes)),
            failures=tuple(failures),
        )

    def select(self, prepared: Prepared, encoded: Sequence[Encoded]) -> list[Selection]:
        """What each question keeps, once every encode message of the document has come back (in their order)."""
        relevance = [chunk for message in encoded for chunk in message.relevance]
        extents = [(chunk.start, chunk.start + len(chunk.token_ids)) for chunk in prepared.chunks]
        selections = []
        for index, (asked, probe) in enumerate(zip(prepared.asked, prepared.probes, strict=True)):
            own = [chunk[index] for chunk in relevance]
            offered = tuple(
                (first + start, first + stop)
                for (first, _), chunk in zip(extents, own, strict=True)
                for start, stop in chunk.offered or ()
            )
            table = BlockTable.of_chunks(
                extents,
                block_shares([chunk.block_lse_RHB for chunk in own]),
                self._block_tokens,
                offered if self._keeps_pairs else None,
            )
            kept = self._budget.choose(table)
            runs = tuple(Run(start, prepared.token_ids[start:stop]) for start, stop in kept)
            query = Query(prepared.encodes[0].document, probe, runs, asked.max_new_tokens)
            selections.append(Selection(self._with_sources(query, prepared), table))
        return selections

    def answer(
        self,
        prepared: Prepared,
        index: int,
        selection: Selection,
        generated: Generated,
        seconds_encode: float,
    ) -> Answer:
        """The output row of question ``index``."""
        document, asked = prepared.document, prepared.asked[index]
        assert document.id is not None and document.text is not None
        kept = [(run.start, run.stop) for run in selection.query.runs]
        return Answer(
            id=document.id,
            question_id=asked.question_id,
            question=asked.text,
            answer=generated.text.strip(),
            spans=spans_of(kept, selection.table, prepared.offsets_T2, document.text),
            document_tokens=prepared.num_tokens,
            kept_tokens=sum(stop - start for start, stop in kept),
            relevance_kept=sum(selection.table.relevance_of(interval) for interval in kept),
            generated_tokens=generated.num_tokens,
            seconds_encode=seconds_encode,
            seconds_answer=generated.seconds,
            source_file=document.source_file,
            source_row=document.source_row,
        )

    def cut_smaller(self, prepared: Prepared) -> Prepared | None:
        """The same document in chunks half as long, in whole blocks, for a machine that could not hold them; None
        where they are one block already. What is kept then differs a little: a chunk sees less of the text."""
        longest, block = max(len(chunk.token_ids) for chunk in prepared.chunks), self._block_tokens
        size = -(-longest // 2 // block) * block
        if size >= longest:
            return None
        chunks = self._cut(prepared.token_ids, size)
        encodes = self._encodes(prepared.encodes[0].document, chunks, prepared.probes)
        return replace(prepared, chunks=chunks, encodes=encodes)

    def _cut(self, ids: Sequence[int], size: int) -> tuple[Chunk, ...]:
        return tuple(
            Chunk(index, start, tuple(ids[start : start + size]))
            for index, start in enumerate(range(0, len(ids), size))
        )

    def _encodes(self, name: str, chunks: tuple[Chunk, ...], probes: tuple[Probe, ...]) -> tuple[Encode, ...]:
        """Isolated chunks travel alone, to any worker; carried ones together, since each reads the ones before."""
        if not chunks:
            return ()
        if self._read.context == "carried":
            return (Encode(name, chunks, probes),)
        return tuple(Encode(name, (chunk,), probes) for chunk in chunks)

    def _with_sources(self, query: Query, prepared: Prepared) -> Query:
        """Answers over kept pairs name the messages those pairs come from, so that a lost one can be read again."""
        if not self._keeps_pairs:
            return query
        sources = tuple(
            encode
            for encode in prepared.encodes
            if any(
                run.start < chunk.start + len(chunk.token_ids) and run.stop > chunk.start
                for chunk in encode.chunks
                for run in query.runs
            )
        )
        return Query(query.document, query.probe, query.runs, query.max_new_tokens, sources)

    def _too_long(self, probe: Probe, max_new_tokens: int) -> str | None:
        """Why a question cannot fit into the model's window, or None."""
        window, anchor, words = self._shape.window, len(self._frame.anchor), len(probe.token_ids)
        carried = self._budget.tokens if self._read.context == "carried" else 0
        for parts, advice in (
            (
                {"prompt": anchor, "read.chunk_tokens": self._read.chunk_tokens, "carried": carried, "question": words},
                "read.chunk_tokens",
            ),
            (
                {"prompt": anchor, "keep.budget.tokens": self._budget.tokens, "question": words,
                 "max_new_tokens": max_new_tokens},
                "keep.budget.tokens or max_new_tokens",
            ),
        ):  # fmt: skip
            total = sum(parts.values())
            if total > window:
                listed = " + ".join(f"{name} {count}" for name, count in parts.items() if count)
                return (
                    f"{listed} = {total} tokens, but the model's window is {window}; "
                    f"shorten the question or lower {advice}"
                )
        return None
