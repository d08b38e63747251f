"""What becomes of a task that failed: try it again, cut it up, or give up.

| what happened           | a batch of questions   | a question alone                        | a chunk               |
|-------------------------|------------------------|-----------------------------------------|-----------------------|
| bad data                | each question alone    | dead letter                             | dead letter           |
| out of memory           | two halves             | once more, then dead letter             | document cut smaller  |
| an error of the machine | again, then each alone | three attempts, then dead letter        | as a question alone   |
| its worker was lost     | again, then each alone | again, then the document is quarantined | as a question alone   |

A document whose chunk does not fit is read again from its start in chunks half as long, until they are one
block: then it is a dead letter.

Invariants: every task ends after a bounded number of attempts, whatever mixture of errors it meets; an error
in a batch costs no innocent question its answer; a batch is cut up only when trying again did not help, so
that losing a worker leaves batches, and with them answers, as they were.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from pipeline.pool import WorkerLost
from workers.messages import WorkError

MAX_MACHINE_ERRORS = 3
MAX_SHORTAGES = 2
MAX_LOST_WORKERS = 2


@dataclass(frozen=True)
class Tally:
    """What a task has been through. A cut-up batch hands its tally down."""

    attempts: int = 0
    machine_errors: int = 0
    shortages: int = 0
    lost_workers: int = 0

    def after(self, result: WorkError | WorkerLost) -> Tally:
        """The tally with one more failure in it. A task that never started has not been attempted."""
        if isinstance(result, WorkerLost):
            blame = int(result.started)
            return replace(self, attempts=self.attempts + blame, lost_workers=self.lost_workers + blame)
        return replace(
            self,
            attempts=self.attempts + 1,
            machine_errors=self.machine_errors + (result.kind == "infrastructure"),
            shortages=self.shortages + (result.kind == "resource"),
        )


@dataclass(frozen=True)
class Again:
    """Put the task back."""


@dataclass(frozen=True)
class Split:
    """Put the batch back in batches of ``batch_size``."""

    batch_size: int


@dataclass(frozen=True)
class CutSmaller:
    """Read the chunk's document again in chunks half as long; ``otherwise``: if they are as short as can be."""

    otherwise: GiveUp


@dataclass(frozen=True)
class GiveUp:
    """Write a dead letter. ``quarantine``: for all that is open of the document, not for one question."""

    error: str
    message: str
    retryable: bool
    quarantine: bool = False


Verdict = Again | Split | CutSmaller | GiveUp


def judge(tally: Tally, result: WorkError | WorkerLost, num_questions: int) -> Verdict:
    """What to do about ``result``, which ``tally`` already counts. ``num_questions``: 0 for a chunk."""
    if isinstance(result, WorkerLost):
        if tally.lost_workers < MAX_LOST_WORKERS:
            return Again()
        lost = f"{tally.lost_workers} workers were lost while they worked on this document, the last one: {result.why}"
        return _unless_alone(num_questions, GiveUp("Quarantined", lost, retryable=True, quarantine=True))
    letter = GiveUp(result.error, result.message, retryable=result.kind != "data")
    if result.kind == "data":
        return _unless_alone(num_questions, letter)
    if result.kind == "resource":
        if num_questions == 0:
            return CutSmaller(otherwise=letter)
        if num_questions > 1:
            return Split((num_questions + 1) // 2)
        return Again() if tally.shortages < MAX_SHORTAGES else letter
    return Again() if tally.machine_errors < MAX_MACHINE_ERRORS else _unless_alone(num_questions, letter)


def _unless_alone(num_questions: int, letter: GiveUp) -> Verdict:
    """Giving up is for a question alone: in company, nobody knows whose fault it was."""
    return Split(1) if num_questions > 1 else letter
