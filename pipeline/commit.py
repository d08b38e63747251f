"""One part's commit: which outcomes it may hold, and what its record says.

Invariant: a commit holds exactly one outcome for each question of the part's documents.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pipeline.errors import IncompleteRun
from pipeline.highlights import FailureExample, SlowDocument, examples_of, slowest_of
from pipeline.outcome import Answer, Failure, Outcome


@dataclass(frozen=True)
class CommittedFile:
    """A Parquet file of a commit. ``size`` in bytes, ``digest`` its blake3."""

    name: str
    rows: int
    size: int
    digest: str


@dataclass(frozen=True)
class CommitRecord:
    """What became of one part. ``expected`` questions of ``documents`` rows ended as ``answered + failed``;
    ``errors`` counts the failed by class. ``document_tokens`` counts each document that was read once;
    seconds are engine time. ``answers`` and ``failures`` are None where there is none.

    ``committed``: when, as the driver's machine knew it (UTC, ISO 8601). It, ``slowest`` and ``examples`` (by class of
    error) are None in records of a version that did not write them."""

    part: int
    revision: int
    epoch: int
    answers: CommittedFile | None
    failures: CommittedFile | None
    documents: int
    expected: int
    answered: int
    failed: int
    retryable: int
    errors: dict[str, int]
    document_tokens: int
    generated_tokens: int
    seconds_encode: float
    seconds_answer: float
    committed: str | None = None
    slowest: tuple[SlowDocument, ...] | None = None
    examples: dict[str, FailureExample] | None = None

    @property
    def files(self) -> tuple[CommittedFile, ...]:
        """The files the part consists of."""
        return tuple(file for file in (self.answers, self.failures) if file is not None)

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> CommitRecord:
        """The record whose fields ``record`` holds, as ``dataclasses.asdict`` gave them."""
        read: dict[str, Any] = {key: record[key] and CommittedFile(**record[key]) for key in ("answers", "failures")}
        if (slowest := record.get("slowest")) is not None:
            read["slowest"] = tuple(SlowDocument(**entry) for entry in slowest)
        if (examples := record.get("examples")) is not None:
            read["examples"] = {error: FailureExample(**entry) for error, entry in examples.items()}
        return cls(**{**record, **read})


@dataclass(frozen=True)
class Totals:
    """Sums over the parts that are committed."""

    parts: int
    documents: int
    expected: int
    answered: int
    failed: int
    retryable: int
    errors: dict[str, int]
    document_tokens: int
    generated_tokens: int
    seconds_encode: float
    seconds_answer: float

    @classmethod
    def of(cls, records: Collection[CommitRecord]) -> Totals:
        """The totals of ``records``."""
        errors: dict[str, int] = {}
        for record in records:
            for error, count in record.errors.items():
                errors[error] = errors.get(error, 0) + count
        return cls(
            parts=len(records),
            documents=sum(record.documents for record in records),
            expected=sum(record.expected for record in records),
            answered=sum(record.answered for record in records),
            failed=sum(record.failed for record in records),
            retryable=sum(record.retryable for record in records),
            errors=dict(sorted(errors.items(), key=lambda item: (-item[1], item[0]))),
            document_tokens=sum(record.document_tokens for record in records),
            generated_tokens=sum(record.generated_tokens for record in records),
            seconds_encode=sum(record.seconds_encode for record in records),
            seconds_answer=sum(record.seconds_answer for record in records),
        )


def record_of(
    part: int,
    revision: int,
    epoch: int,
    saved: Sequence[CommittedFile | None],
    answers: Sequence[Answer],
    failures: Sequence[Failure],
    documents: int,
) -> CommitRecord:
    """The record of a part whose outcomes were saved as ``saved``: its answers' file, its failures' file."""
    tokens = {(answer.source_file, answer.source_row): answer.document_tokens for answer in answers}
    return CommitRecord(
        part=part,
        revision=revision,
        epoch=epoch,
        answers=saved[0],
        failures=saved[1],
        documents=documents,
        expected=len(answers) + len(failures),
        answered=len(answers),
        failed=len(failures),
        retryable=sum(failure.retryable for failure in failures),
        errors=dict(Counter(failure.error for failure in failures)),
        document_tokens=sum(tokens.values()),
        generated_tokens=sum(answer.generated_tokens for answer in answers),
        seconds_encode=sum(answer.seconds_encode for answer in answers),
        seconds_answer=sum(answer.seconds_answer for answer in answers),
        committed=datetime.now(UTC).isoformat(timespec="milliseconds"),
        slowest=slowest_of(answers),
        examples=examples_of(failures),
    )


def refuse_wrong_outcomes(part: int, answers: Sequence[Answer], failures: Sequence[Failure], expected: int) -> None:
    """Raise ``IncompleteRun`` unless the outcomes are ``expected`` in number and each question's only one."""
    found = len(answers) + len(failures)
    if found != expected:
        raise IncompleteRun(f"part {part}: {expected} questions, but {found} outcomes")
    outcomes: list[Outcome] = [*answers, *failures]
    uses = Counter((outcome.source_file, outcome.source_row, outcome.question_id) for outcome in outcomes)
    file, row, question = max(uses, key=lambda key: uses[key], default=("", 0, ""))
    if uses[file, row, question] > 1:
        raise IncompleteRun(f"part {part}: question {question!r} of {file} row {row} ended more than once")
