"""From a document's text to the work of reading it: tokens, chunks and probes that fit into the model's window.

Invariants: pure (no model, no files, no clock); character offsets stay here, messages carry token ids and
document positions; what is wrong with a question is a ``Failure`` of that question alone.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from configs.schema import Job
from pipeline.borders import CUTS
from pipeline.document import Asked, Document
from pipeline.errors import JobError
from pipeline.outcome import Failure
from pipeline.prepared import Prepared, fail
from pipeline.room import Room
from workers.errors import DocumentError
from workers.loading import Reading
from workers.messages import Encode, Probe
from workers.selection.budgets.base import Budget


class Preparer:
    """Prepares documents of one job."""

    def __init__(self, job: Job, reading: Reading, budget: Budget) -> None:
        """``budget``: the job's own. Refuses (``JobError``) settings and questions that can never fit into the model's
        window."""
        self._job = job
        self._frame = reading.frame
        self._window = reading.shape.window
        self._cut = CUTS[job.read.borders]
        self._separator = () if job.keeps_pairs else tuple(self._frame.tokenizer.encode(job.answer.separator))
        self._room = Room(job, reading, budget, self._separator)
        least = self._budget_tokens(0)
        for index, question in enumerate(job.questions):
            probe = self._frame.probe(question.id, question.text, question.answer_prefix)
            if problem := self._room.problem(probe, question.max_new_tokens, least, 0):
                raise JobError(f"questions[{index}] ({question.id}): {problem}")
        if problem := self._room.problem(self._frame.probe("", "?"), 1, least, 0):
            raise JobError(f"read, keep: {problem}")

    def prepare(self, document: Document) -> Prepared:
        """Tokenize, cut into chunks, and build the probes. Faulty documents and questions come out as failures."""
        ids, offsets = ([], []) if document.fault else self._frame.tokenizer.encode_with_offsets(document.text)
        asked, probes, failures = [], [], []
        for question in document.questions:
            probe = self._probe(document, question, len(ids))
            if isinstance(probe, Failure):
                failures.append(probe)
            else:
                asked.append(question)
                probes.append(probe)
        if not asked:
            ids, offsets = [], []
        prepared = Prepared(
            document=document,
            offsets_T2=np.array(offsets, dtype=np.int64).reshape(-1, 2),
            token_ids=tuple(ids),
            asked=tuple(asked),
            probes=tuple(probes),
            chunks=(),
            encodes=(),
            failures=tuple(failures),
            budget_tokens=self._budget_tokens(len(ids)),
            max_chunk_tokens=self._window,
        )
        return self._first_round(prepared, self._job.read.chunk_tokens)

    def cut_smaller(self, prepared: Prepared) -> Prepared | None:
        """The same document from its first round on, no chunk longer than half of this round's longest, in whole
        blocks, for a machine that could not hold them; None where they are one block already. What is kept then
        differs a little: a chunk sees less of the text."""
        block = self._job.keep.block_tokens
        longest = max(len(chunk.token_ids) for encode in prepared.encodes for chunk in encode.chunks)
        size = -(-longest // 2 // block) * block
        if size >= longest:
            return None
        smaller = replace(prepared, max_chunk_tokens=size, round=1, looks=())
        return self._first_round(smaller, min(size, self._job.read.chunk_tokens))

    def _budget_tokens(self, document_tokens: int) -> int:
        """The document's budget: never less than one block, without which nothing could be kept."""
        return max(self._job.keep.block_tokens, self._job.keep.budget.tokens_of(document_tokens))

    def _probe(self, document: Document, asked: Asked, document_tokens: int) -> Probe | Failure:
        """The question as the model sees it, or why it cannot be asked of this document."""
        if document.fault is not None:
            return fail(document, asked, "corpus", document.fault.error, document.fault.message)
        try:
            probe = self._frame.probe(asked.question_id, asked.text, asked.answer_prefix)
        except DocumentError as error:
            return fail(document, asked, "prepare", type(error).__name__, str(error))
        budget = self._budget_tokens(document_tokens)
        if problem := self._room.problem(probe, asked.max_new_tokens, budget, document_tokens):
            return fail(document, asked, "prepare", "QuestionTooLong", problem)
        if not document_tokens:
            return fail(document, asked, "prepare", "EmptyDocument", "the tokenizer finds no tokens in the text")
        return probe

    def _first_round(self, prepared: Prepared, chunk_tokens: int) -> Prepared:
        """The document in chunks of at most that length. Isolated chunks travel alone, to any worker; carried ones
        together, since each reads the ones before."""
        chunks = self._cut(prepared.token_ids, chunk_tokens)
        together = [chunks] if self._job.read.context == "carried" and chunks else [(chunk,) for chunk in chunks]
        encodes = tuple(Encode(prepared.name, own, prepared.probes, prepared.budget_tokens) for own in together)
        return replace(prepared, chunks=chunks, encodes=encodes)
