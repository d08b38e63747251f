"""How a question of a document ends: as exactly one ``Answer`` or one ``Failure``.

Invariant: a run is done when every (document, question) has one outcome, and ``rows_in == answered +
failed``. The field names are the column names of the output.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Span:
    """A kept run of the document: characters [start, end) of its text, and its share of the question's
    relevance over the document (``workers.selection.relevance``: attention, agreed on by words and heads)."""

    start: int
    end: int
    share: float
    text: str


@dataclass(frozen=True)
class Answer:
    """One answered question. Token counts are the model's tokens, ``kept_tokens`` on average over layers and heads;
    ``relevance_kept`` is the share of the question's relevance that kept blocks hold: over the document, or after
    ``answer.over: narrow`` over the blocks that were read again; seconds are engine time."""

    id: str
    question_id: str
    question: str
    answer: str
    spans: tuple[Span, ...]
    document_tokens: int
    kept_tokens: int
    relevance_kept: float
    generated_tokens: int
    seconds_encode: float
    seconds_answer: float
    source_file: str
    source_row: int


@dataclass(frozen=True)
class Failure:
    """One question that could not be answered: a dead letter. ``stage``: corpus, prepare, encode or answer;
    ``error``: the class of error; ``retryable``: whether ``foveate retry-failed`` may help."""

    id: str | None
    question_id: str
    question: str
    stage: str
    error: str
    message: str
    attempts: int
    retryable: bool
    source_file: str
    source_row: int


Outcome = Answer | Failure
