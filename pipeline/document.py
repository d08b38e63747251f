"""One row of the corpus as a value: its text, what is asked of it, and what is wrong with it.

Invariants: a fault of the row's own content is a ``Fault`` of one document, never an exception; strings are
decoded here, row by row, because Parquet readers do not check that text is UTF-8; a row whose questions
cannot be known has one empty question ``row``, so that its fault ends as an outcome.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from configs.schema import Corpus, Question

ROW_QUESTION = "row"
DEFAULT_MAX_NEW_TOKENS: int = Question.model_fields["max_new_tokens"].default


@dataclass(frozen=True)
class Asked:
    """One question of one document. ``expected``: what a right answer holds, one string a line, or None."""

    question_id: str
    text: str
    answer_prefix: str = ""
    max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS
    expected: str | None = None


@dataclass(frozen=True)
class Fault:
    """Why a document cannot be read. ``error``: NullId, NullText, EmptyDocument, InvalidText, BadQuestion,
    DuplicateId or UnreadableRow. Faults are the data's, so they are never retried."""

    error: str
    message: str


@dataclass(frozen=True)
class Document:
    """A row: ``source_row`` counts from 0 within its file. A faulty one has empty text where text is unknown,
    and None for an id that is null, invalid or unreadable."""

    id: str | None
    text: str
    source_file: str
    source_row: int
    questions: tuple[Asked, ...]
    fault: Fault | None = None


@dataclass(frozen=True)
class Row:
    """The undecoded cells of one row: text as bytes, by column name; null as None."""

    cells: dict[str, Any]
    source_file: str
    source_row: int
    default_id: str


class BadRow(ValueError):
    """Raised within this module for a faulty cell; becomes the document's ``Fault``."""

    def __init__(self, error: str, message: str) -> None:
        super().__init__(message)
        self.fault = Fault(error, message)


def job_questions(questions: Sequence[Question]) -> tuple[Asked, ...]:
    """The job's questions, as asked of every document."""
    return tuple(Asked(q.id, q.text, q.answer_prefix, q.max_new_tokens) for q in questions)


def make_document(row: Row, corpus: Corpus, asked: tuple[Asked, ...], used_at: str | None) -> Document:
    """The document of ``row``. ``asked``: the job's questions; ``used_at``: the place of an earlier row with
    the same id, or None. The first fault found counts; the rest of the document is kept as far as known."""
    document_id, id_fault = _id_of(row, corpus.id)
    if id_fault is None and used_at is not None:
        id_fault = Fault("DuplicateId", f"id {document_id!r} is already used by {used_at}")
    questions, question_fault = _questions_of(row, corpus, asked)
    text, text_fault = _text_of(row, corpus.text)
    fault = id_fault or text_fault or question_fault
    return Document(document_id, text, row.source_file, row.source_row, questions, fault)


def unreadable_document(
    source_file: str, source_row: int, corpus: Corpus, asked: tuple[Asked, ...], why: str
) -> Document:
    """The stand-in for a row whose bytes cannot be decoded. Its own questions are unknown: one empty
    question ``row`` stands for them."""
    own = (Asked(ROW_QUESTION, ""),) if corpus.question is not None else ()
    fault = Fault("UnreadableRow", f"{source_file}: row {source_row} lies in a damaged part of the file: {why}")
    return Document(None, "", source_file, source_row, asked + own, fault)


def decode(value: bytes, column: str) -> str:
    """``value`` as text; raises ``BadRow`` InvalidText with the place of the first bad byte."""
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadRow(
            "InvalidText",
            f"column {column!r} is not valid UTF-8 at byte {error.start} (0x{value[error.start]:02x}): {error.reason}",
        ) from error


def is_blank(question: bytes | list[bytes | None] | None) -> bool:
    """Whether a question cell asks nothing: null, white space, or a list of such."""
    if question is None or isinstance(question, list):
        return all(is_blank(value) for value in question or ())
    return not question.decode("utf-8", "replace").strip()


def _id_of(row: Row, column: str | None) -> tuple[str | None, Fault | None]:
    if column is None:
        return row.default_id, None
    value = row.cells[column]
    if value is None:
        return None, Fault("NullId", f"column {column!r} is null")
    if isinstance(value, int):
        return str(value), None
    try:
        return decode(value, column), None
    except BadRow as error:
        return None, error.fault


def _text_of(row: Row, column: str) -> tuple[str, Fault | None]:
    value = row.cells[column]
    if value is None:
        return "", Fault("NullText", f"column {column!r} is null")
    try:
        text = decode(value, column)
    except BadRow as error:
        return "", error.fault
    if not text or text.isspace():
        return text, Fault("EmptyDocument", f"column {column!r} holds no text: {len(text)} characters of white space")
    return text, None


def _questions_of(row: Row, corpus: Corpus, asked: tuple[Asked, ...]) -> tuple[tuple[Asked, ...], Fault | None]:
    """The job's questions, then the row's own. The other per-row columns belong to the row's own questions,
    and to the job's where no question column is named."""
    if corpus.question is None:
        return _completed(row, corpus, asked, single=len(asked) == 1)
    cell = row.cells[corpus.question]
    if is_blank(cell):
        return asked, None
    listed = isinstance(cell, list)
    values = cell if listed else [cell]
    try:
        texts = [decode(value, corpus.question) if value is not None else "" for value in values]
    except BadRow as error:
        return (*asked, Asked(ROW_QUESTION, "")), error.fault
    names = [f"{ROW_QUESTION}-{index}" for index in range(len(texts))] if listed else [ROW_QUESTION]
    own = tuple(Asked(name, text) for name, text in zip(names, texts, strict=True))
    own, fault = _completed(row, corpus, own, single=not listed)
    return asked + tuple(question for question in own if question.text.strip()), fault


def _completed(
    row: Row, corpus: Corpus, own: tuple[Asked, ...], *, single: bool
) -> tuple[tuple[Asked, ...], Fault | None]:
    """``own`` with the row's answer prefixes, lengths and expected answers; as it is where one is faulty."""
    if not own:
        return own, None
    try:
        prefixes = _spread(row, corpus.answer_prefix, len(own))
        lengths = _spread(row, corpus.max_new_tokens, len(own))
        answers = _answers(row, corpus.answer, len(own), single=single)
        done = tuple(
            replace(
                question,
                answer_prefix=question.answer_prefix if prefix is None else _text(prefix, corpus.answer_prefix),
                max_new_tokens=question.max_new_tokens if length is None else length,
                expected=answer,
            )
            for question, prefix, length, answer in zip(own, prefixes, lengths, answers, strict=True)
        )
    except BadRow as error:
        return own, error.fault
    bad = next((q.max_new_tokens for q in done if q.max_new_tokens < 1 or q.max_new_tokens % 1), None)
    if bad is not None:
        return done, Fault(
            "BadQuestion", f"column {corpus.max_new_tokens!r} is {bad}; allowed: a whole number, 1 or more"
        )
    return done, None


def _spread(row: Row, column: str | None, num_questions: int) -> list[Any]:
    """One value for each question: a single value is everyone's, a list has one for each."""
    cell = None if column is None else row.cells[column]
    if not isinstance(cell, list):
        return [cell] * num_questions
    if len(cell) != num_questions:
        raise BadRow(
            "BadQuestion",
            f"column {column!r} has {len(cell)} values for {num_questions} questions; allowed: one value, or "
            "a list with one for each question",
        )
    return cell


def _answers(row: Row, column: str | None, num_questions: int, *, single: bool) -> list[str | None]:
    """Expected answers. Of a single question, a list holds everything that its answer must hold."""
    cell = None if column is None else row.cells[column]
    if single:
        values = cell if isinstance(cell, list) else [cell]
        lines = [_text(value, column) for value in values if value is not None]
        return ["\n".join(lines) if lines else None]
    if cell is not None and not isinstance(cell, list):
        raise BadRow("BadQuestion", f"column {column!r} holds one value for {num_questions} questions; give a list")
    return [None if value is None else _text(value, column) for value in _spread(row, column, num_questions)]


def _text(value: bytes, column: str | None) -> str:
    return decode(value, str(column))
