"""What a commit record tells of a part's outcomes besides sums: its slowest documents, and one failure of each class.

Invariants: bounded, whatever the part holds, so that the status of a run of any size is read from records alone; the
slowest documents of a run are among the slowest of its parts, so none is missed.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from pipeline.outcome import Answer, Failure

NUM_SLOWEST = 5
_ID_CHARACTERS = 200
_MESSAGE_CHARACTERS = 500


@dataclass(frozen=True)
class SlowDocument:
    """A document that was answered. Seconds are engine time, over all its answered questions."""

    id: str
    source_file: str
    source_row: int
    tokens: int
    seconds_encode: float
    seconds_answer: float

    @property
    def seconds(self) -> float:
        """Engine time."""
        return self.seconds_encode + self.seconds_answer


@dataclass(frozen=True)
class FailureExample:
    """The first failure of a class in a part, cut to a readable length; ``retryable`` counts the class's questions
    that ``foveate retry-failed`` would ask again."""

    retryable: int
    stage: str
    id: str | None
    message: str
    source_file: str
    source_row: int


@dataclass(frozen=True)
class FailureClass:
    """Questions that failed alike. ``retryable`` is None where a part does not say, ``example`` where none does."""

    error: str
    questions: int
    retryable: int | None
    example: FailureExample | None


def slowest_of(answers: Iterable[Answer]) -> tuple[SlowDocument, ...]:
    """The documents that took most engine time, the slowest first."""
    rows: dict[tuple[str, int], list[Answer]] = {}
    for answer in answers:
        rows.setdefault((answer.source_file, answer.source_row), []).append(answer)
    return slowest_among(
        SlowDocument(
            id=_cut(own[0].id, _ID_CHARACTERS),
            source_file=file,
            source_row=row,
            tokens=own[0].document_tokens,
            seconds_encode=sum(answer.seconds_encode for answer in own),
            seconds_answer=sum(answer.seconds_answer for answer in own),
        )
        for (file, row), own in rows.items()
    )


def slowest_among(documents: Iterable[SlowDocument]) -> tuple[SlowDocument, ...]:
    """The slowest of ``documents``, the slowest first."""
    return tuple(heapq.nlargest(NUM_SLOWEST, documents, key=lambda document: document.seconds))


def examples_of(failures: Iterable[Failure]) -> dict[str, FailureExample]:
    """One failure of each class of error, the first in the order of the corpus file."""
    classes: dict[str, list[Failure]] = {}
    for failure in failures:
        classes.setdefault(failure.error, []).append(failure)
    return {error: _example(alike) for error, alike in classes.items()}


def merged(
    counts: Sequence[Mapping[str, int]], examples: Sequence[Mapping[str, FailureExample] | None]
) -> tuple[FailureClass, ...]:
    """The classes over several parts, the largest first. ``counts`` and ``examples``: of each part, by class."""
    told = list(zip(counts, examples, strict=True))
    errors = {error for count in counts for error in count}
    classes = [
        _merged_class(error, [(c[error], (e or {}).get(error)) for c, e in told if error in c]) for error in errors
    ]
    return tuple(sorted(classes, key=lambda one: (-one.questions, one.error)))


def _merged_class(error: str, parts: Sequence[tuple[int, FailureExample | None]]) -> FailureClass:
    found = [example for _, example in parts if example is not None]
    retryable = sum(example.retryable for example in found) if len(found) == len(parts) else None
    return FailureClass(error, sum(number for number, _ in parts), retryable, found[0] if found else None)


def _example(failures: Sequence[Failure]) -> FailureExample:
    first = min(failures, key=lambda failure: (failure.source_file, failure.source_row))
    return FailureExample(
        retryable=sum(failure.retryable for failure in failures),
        stage=first.stage,
        id=first.id if first.id is None else _cut(first.id, _ID_CHARACTERS),
        message=_cut(first.message, _MESSAGE_CHARACTERS),
        source_file=first.source_file,
        source_row=first.source_row,
    )


def _cut(text: str, characters: int) -> str:
    return text if len(text) <= characters else text[: characters - 1] + "…"
