"""The retry table, line by line."""

from __future__ import annotations

import pytest

from pipeline.pool import WorkerLost
from pipeline.retry import Again, CutSmaller, GiveUp, Split, Tally, Verdict, judge
from workers.messages import WorkError

BAD = WorkError("data", "DocumentError", "bad words")
FULL = WorkError("resource", "OutOfMemoryError", "full")
BROKEN = WorkError("infrastructure", "RuntimeError", "broken")


def verdicts(result: WorkError | WorkerLost, num_questions: int, times: int) -> list[Verdict]:
    tally, found = Tally(), []
    for _ in range(times):
        tally = tally.after(result)
        found.append(judge(tally, result, num_questions))
    return found


@pytest.mark.parametrize(
    ("result", "letter"),
    [
        ([BAD], GiveUp("DocumentError", "bad words", retryable=False)),
        ([BROKEN] * 3, GiveUp("RuntimeError", "broken", retryable=True)),
        (
            [WorkerLost()] * 2,
            GiveUp(
                "Quarantined",
                "2 workers were lost while they worked on this document, the last one: it died",
                retryable=True,
                quarantine=True,
            ),
        ),
    ],
    ids=["data", "machine", "lost"],
)
@pytest.mark.parametrize("num_questions", [0, 1], ids=["chunk", "question"])
def test_a_chunk_or_a_question_alone(result: list[WorkError | WorkerLost], letter: GiveUp, num_questions: int) -> None:
    assert verdicts(result[0], num_questions, len(result)) == [*[Again()] * (len(result) - 1), letter]


def test_out_of_memory_cuts_a_document_smaller_and_tries_a_question_once_more() -> None:
    letter = GiveUp("OutOfMemoryError", "full", retryable=True)
    assert verdicts(FULL, 0, 2) == [CutSmaller(letter)] * 2
    assert verdicts(FULL, 1, 2) == [Again(), letter]


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        (BAD, [Split(1)]),
        (FULL, [Split(4)]),
        (BROKEN, [Again(), Again(), Split(1)]),
        (WorkerLost(), [Again(), Split(1)]),
    ],
    ids=["data", "memory", "machine", "lost"],
)
def test_a_batch_of_seven(result: WorkError | WorkerLost, expected: list[Verdict]) -> None:
    assert verdicts(result, 7, len(expected)) == expected


@pytest.mark.parametrize("num_questions", [0, 1, 8])
def test_a_task_that_never_started_goes_back_untouched(num_questions: int) -> None:
    waited = WorkerLost(started=False)
    assert verdicts(waited, num_questions, 10) == [Again()] * 10
    assert Tally().after(waited) == Tally()
