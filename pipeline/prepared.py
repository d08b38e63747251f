"""A document between the steps of its journey: what is read of it next, and what a question keeps of it.

Invariants: frozen values; a document that is read once more is a new ``Prepared``, so that whoever holds the old
one can see that it is outdated; the blocks of a chunk are cut from its start, all whole but the last.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.document import Asked, Document
from pipeline.outcome import Failure
from workers.messages import Chunk, Encode, Probe, Query
from workers.selection.budgets.base import BlockTable, Choice


@dataclass(frozen=True)
class Look:
    """What one question reads of its document in a later round. ``encodes``: in order, with its probe alone;
    ``table``: the blocks that they hold, one after the other, where they stand in the document, with the shares
    that the round before gave them."""

    encodes: tuple[Encode, ...]
    table: BlockTable


@dataclass(frozen=True)
class Prepared:
    """A document ready for a round of reading. ``offsets_T2``: character range of each token; ``asked`` and
    ``probes`` go together; ``chunks``: the first round's; ``encodes``: the round's work, in order; ``failures``:
    questions that cannot be asked. ``budget_tokens``: what may be kept per layer and head; ``max_chunk_tokens``: no
    chunk of any round is longer. ``round`` counts from 1; ``looks``: of a later round, one for each question."""

    document: Document
    offsets_T2: NDArray[np.int64]
    token_ids: tuple[int, ...]
    asked: tuple[Asked, ...]
    probes: tuple[Probe, ...]
    chunks: tuple[Chunk, ...]
    encodes: tuple[Encode, ...]
    failures: tuple[Failure, ...]
    budget_tokens: int
    max_chunk_tokens: int
    round: int = 1
    looks: tuple[Look, ...] = ()

    @property
    def name(self) -> str:
        """The document's name in messages: the same for the same row of the same file."""
        return f"{self.document.source_file}:{self.document.source_row}"

    @property
    def num_tokens(self) -> int:
        """Length of the document in tokens."""
        return len(self.token_ids)


@dataclass(frozen=True)
class Selection:
    """What one question keeps of a document, and the block table that it was chosen from: that of the last round.
    After ``answer.over: narrow`` it holds only the blocks that were read again, and all relevance is among them."""

    query: Query
    table: BlockTable
    choice: Choice


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


def cut(ids: tuple[int, ...], size: int) -> tuple[Chunk, ...]:
    """Token ids as chunks of ``size``, the last one shorter."""
    starts = range(0, len(ids), size)
    return tuple(Chunk(index, start, ids[start : start + size]) for index, start in enumerate(starts))
