"""The books of a part: which of its questions have ended, and how.

Invariant: a question ends once. Asking for a second outcome is a fault of ours, and an assertion.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from pipeline.outcome import Answer, Failure, Outcome


@dataclass(frozen=True)
class FinishedPart:
    """All outcomes of a part, in row order. ``keys``: names of the store entries behind them."""

    index: int
    answers: tuple[Answer, ...]
    failures: tuple[Failure, ...]
    num_documents: int
    num_questions: int
    keys: tuple[str, ...]


class RowBook:
    """One row of the corpus. ``unfit``: failures from before any work began; ``open``: questions to come,
    by their index in ``Prepared.asked``."""

    def __init__(self, unfit: Iterable[Failure], indices: Iterable[int]) -> None:
        self.unfit = tuple(unfit)
        self.open = set(indices)
        self.outcomes: dict[int, Outcome] = {}

    @property
    def num_questions(self) -> int:
        """Questions of the row, ended or not."""
        return len(self.unfit) + len(self.open) + len(self.outcomes)

    def end(self, index: int, outcome: Outcome) -> None:
        """Write down the one outcome of a question."""
        self.open.remove(index)
        self.outcomes[index] = outcome


@dataclass(eq=False)
class PartBook:
    """One part: its rows in order, and how many of its tasks are in the pool. ``turn``: how many were begun before."""

    index: int
    turn: int
    rows: list[RowBook] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    num_open_rows: int = 0
    num_running: int = 0
    closed: bool = False

    @property
    def complete(self) -> bool:
        """Whether nothing of this part will happen any more."""
        return self.closed and not self.num_open_rows and not self.num_running

    def finish(self) -> FinishedPart:
        """The outcomes of the part, in row order and within a row in the order of its questions."""
        assert self.complete
        ended = [row.outcomes[index] for row in self.rows for index in sorted(row.outcomes)]
        unfit = (failure for row in self.rows for failure in row.unfit)
        return FinishedPart(
            self.index,
            tuple(outcome for outcome in ended if isinstance(outcome, Answer)),
            (*unfit, *(outcome for outcome in ended if isinstance(outcome, Failure))),
            len(self.rows),
            sum(row.num_questions for row in self.rows),
            tuple(dict.fromkeys(self.keys)),
        )
