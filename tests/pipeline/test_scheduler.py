"""The scheduler, driven through random histories without Ray, clock or files."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.ledger import FinishedPart
from pipeline.pool import Result, WorkerLost
from pipeline.prepared import Prepared
from pipeline.scheduler import Scheduler
from tests.pipeline.fakes import CHUNK_TOKENS, FakeReader, names, outcome_name, prepared, work
from workers.messages import Ask, Encode, WorkError

Parts = Sequence[Sequence[Prepared]]
Engine = Callable[[int, Encode | Ask], Result]

BAD = WorkError("data", "BadPage", "no")
FULL = WorkError("resource", "OutOfMemoryError", "no")
BROKEN = WorkError("infrastructure", "RuntimeError", "no")


def healthy(task_id: int, task: Encode | Ask) -> Result:
    return work(task)


@dataclass
class History:
    """One run of a scheduler: what was submitted, in order, and the parts that came out."""

    submitted: list[Encode | Ask] = field(default_factory=list)
    parts: list[FinishedPart] = field(default_factory=list)
    peak_tokens: int = 0

    @property
    def answers(self) -> dict[tuple[int, str], str]:
        return {outcome_name(answer): answer.answer for part in self.parts for answer in part.answers}

    @property
    def failures(self) -> dict[tuple[int, str], str]:
        return {outcome_name(failure): failure.error for part in self.parts for failure in part.failures}


def play(
    parts: Parts,
    engine: Engine = healthy,
    *,
    batch_size: int = 2,
    window_tokens: int = 100,
    num_slots: int = 4,
    seed: int = 0,
) -> History:
    """Drive a scheduler as the driver does; tasks finish in an order drawn from ``seed``."""
    rng = random.Random(seed)
    scheduler = Scheduler(FakeReader(), batch_size=batch_size, window_tokens=window_tokens, num_slots=num_slots)
    rows: Iterator[tuple[int, Prepared | None]] = (
        (index, row) for index, part in enumerate(parts) for row in [*part, None]
    )
    upcoming = next(rows, None)
    history, pool = History(), dict[int, Encode | Ask]()
    while len(history.parts) < len(parts):
        assert pool or scheduler.wants_rows or scheduler.num_ready, "nothing can happen any more"
        if upcoming and scheduler.wants_rows:
            assert len(pool) < num_slots or scheduler.held_tokens < window_tokens
            index, row = upcoming
            scheduler.close_part(index) if row is None else scheduler.add(index, row)
            upcoming = next(rows, None)
        while len(pool) < num_slots and (task := scheduler.next_task()) is not None:
            assert task[0] not in pool
            assert set(names(task[1])).isdisjoint(name for running in pool.values() for name in names(running))
            pool[task[0]] = task[1]
            history.submitted.append(task[1])
        history.peak_tokens = max(history.peak_tokens, scheduler.held_tokens)
        if pool and (not (upcoming and scheduler.wants_rows) or rng.random() < 0.5):
            task_id = rng.choice(list(pool))
            scheduler.finish(task_id, engine(task_id, pool.pop(task_id)))
        history.parts += scheduler.take_finished()
    assert scheduler.held_tokens == 0
    return history


def check_exactly_once(parts: Parts, history: History) -> None:
    assert sorted(part.index for part in history.parts) == list(range(len(parts)))
    for finished in history.parts:
        rows = parts[finished.index]
        expected = [(row.document.source_row, asked.question_id) for row in rows for asked in row.document.questions]
        found = [outcome_name(outcome) for outcome in (*finished.answers, *finished.failures)]
        assert sorted(found) == sorted(expected)
        assert finished.num_questions == len(expected)
        assert finished.num_documents == len(rows)


@st.composite
def corpora(draw: st.DrawFn) -> list[list[Prepared]]:
    shapes = st.tuples(st.integers(1, 4), st.integers(0, 3), st.booleans(), st.integers(1, 3))
    parts, row = [], 0
    for shapes_of_part in draw(st.lists(st.lists(shapes, max_size=5), min_size=1, max_size=4)):
        documents = []
        for num_chunks, num_questions, unfit, num_rounds in shapes_of_part:
            size = {"num_chunks": num_chunks, "num_questions": num_questions, "num_rounds": num_rounds}
            documents.append(prepared(row, num_unfit=min(int(unfit), num_questions), **size))
            row += 1
        parts.append(documents)
    return parts


sizes = {"batch_size": st.integers(1, 4), "window_tokens": st.integers(1, 80), "num_slots": st.integers(1, 6)}


@settings(max_examples=1000, deadline=None)
@given(corpora(), st.integers(0, 2**32), st.floats(0, 0.8), st.fixed_dictionaries(sizes))
def test_every_question_ends_once_whatever_happens(
    parts: list[list[Prepared]], seed: int, trouble: float, size: dict[str, int]
) -> None:
    rng = random.Random(seed)

    def engine(task_id: int, task: Encode | Ask) -> Result:
        if rng.random() > trouble:
            return work(task)
        return rng.choice([BAD, FULL, BROKEN, WorkerLost(started=True), WorkerLost(started=False)])

    check_exactly_once(parts, play(parts, engine, seed=seed, **size))


@settings(max_examples=1000, deadline=None)
@given(corpora(), st.integers(0, 2**32), st.integers(1, 4), st.integers(1, 80), st.integers(1, 6))
def test_answers_do_not_depend_on_order_workers_or_losses(
    parts: list[list[Prepared]], seed: int, batch_size: int, window_tokens: int, num_slots: int
) -> None:
    """The fake's answers name their batch: equal answers are equal batches."""
    rng = random.Random(seed)
    troubled: set[int] = set()

    def engine(task_id: int, task: Encode | Ask) -> Result:
        if task_id in troubled or rng.random() < 0.6:
            return work(task)
        troubled.add(task_id)
        return rng.choice([BROKEN, WorkerLost(started=True), WorkerLost(started=False)])

    calm = play(parts, batch_size=batch_size, num_slots=1, window_tokens=10**6)
    wild = play(parts, engine, batch_size=batch_size, window_tokens=window_tokens, num_slots=num_slots, seed=seed)
    assert wild.answers == calm.answers
    assert wild.failures == calm.failures


def messages_of(row: Prepared) -> list[str]:
    """Everything that is read of a row when nothing goes wrong: each chunk with all questions together, then in every
    later round once for each question."""
    name, again = row.document.id, range(2, int(row.document.text) + 1)
    first = [f"{name}#{chunk.index}" for chunk in row.chunks]
    later = [f"{chunk}@{turn}:{probe.question_id}" for turn in again for probe in row.probes for chunk in first]
    return [*first, *later]


@settings(max_examples=300, deadline=None)
@given(corpora(), st.integers(0, 2**32), st.fixed_dictionaries(sizes))
def test_every_message_of_every_round_is_read_once_and_rounds_follow_each_other(
    parts: list[list[Prepared]], seed: int, size: dict[str, int]
) -> None:
    history = play(parts, seed=seed, **size)
    rows = [row for part in parts for row in part]
    read = [name for task in history.submitted if isinstance(task, Encode) for name in names(task)]
    assert sorted(read) == sorted(name for row in rows for name in messages_of(row))
    assert {key for part in history.parts for key in part.keys} == set(read)
    for row in rows:
        own = [task for task in history.submitted if isinstance(task, Encode) and task.document == row.document.id]
        turns = [task.preface or (1,) for task in own]
        assert turns == sorted(turns)


def test_batches_follow_row_order_and_end_with_their_part() -> None:
    parts = [[prepared(0, num_questions=2), prepared(1)], [prepared(2), prepared(3, num_questions=2)]]
    history = play(parts, batch_size=2, seed=3)
    asks = {tuple(names(task)) for task in history.submitted if isinstance(task, Ask)}
    assert asks == {("row0/q0", "row0/q1"), ("row1/q0",), ("row2/q0", "row3/q0"), ("row3/q1",)}


def test_a_failed_document_leaves_its_batch_and_nobody_takes_its_place() -> None:
    def engine(task_id: int, task: Encode | Ask) -> Result:
        return BAD if names(task) == ["row1#0"] else work(task)

    history = play([[prepared(row) for row in range(4)]], engine, batch_size=2)
    assert history.failures == {(1, "q0"): "BadPage"}
    assert history.answers[0, "q0"] == "row0/q0 of row0/q0"
    assert history.answers[2, "q0"] == "row2/q0 of row2/q0 row3/q0"


def test_answers_go_before_reading_and_reading_follows_row_order() -> None:
    history = play([[prepared(row, num_chunks=2) for row in range(3)]], batch_size=1, num_slots=1)
    order = [names(task)[0] for task in history.submitted]
    assert order == [f"row{row}{part}" for row in range(3) for part in ("#0", "#1", "/q0")]


def test_a_later_round_goes_before_the_next_row() -> None:
    history = play([[prepared(row, num_chunks=2, num_rounds=2) for row in range(2)]], batch_size=1, num_slots=1)
    order = [names(task)[0] for task in history.submitted]
    own = ("#0", "#1", "#0@2:q0", "#1@2:q0", "/q0")
    assert order == [f"row{row}{part}" for row in range(2) for part in own]


def test_a_chunk_of_a_later_round_that_does_not_fit_sends_the_document_back_to_its_first() -> None:
    """All rounds are read again in chunks of five tokens; another document notices nothing."""

    def engine(task_id: int, task: Encode | Ask) -> Result:
        return FULL if names(task) == ["row0#1@2:q0"] else work(task)

    history = play([[prepared(row, num_chunks=2, num_rounds=2) for row in range(2)]], engine, num_slots=3, seed=5)
    assert not history.failures and len(history.answers) == 2
    keys = set(history.parts[0].keys)
    assert {f"row0#{chunk}/5{turn}" for chunk in range(4) for turn in ("", "@2:q0")} <= keys
    assert not any(key.startswith("row1") and "/5" in key for key in keys)


@pytest.mark.parametrize("error", [BROKEN, WorkerLost()], ids=["machine", "lost"])
def test_trouble_in_a_later_round_costs_that_message_another_attempt_and_no_more(error: Result) -> None:
    left = [error]

    def engine(task_id: int, task: Encode | Ask) -> Result:
        return left.pop() if names(task) == ["row0#1@3:q0"] and left else work(task)

    history = play([[prepared(0, num_chunks=3, num_rounds=3)]], engine)
    read = [name for task in history.submitted if isinstance(task, Encode) for name in names(task)]
    assert sorted(read) == sorted([*messages_of(prepared(0, num_chunks=3, num_rounds=3)), "row0#1@3:q0"])
    assert not history.failures


def test_only_the_first_round_counts_as_progress() -> None:
    scheduler = Scheduler(FakeReader(), batch_size=1, window_tokens=100, num_slots=1)
    row = prepared(0, num_chunks=3, num_rounds=3)
    scheduler.add(0, row)
    scheduler.close_part(0)
    while (task := scheduler.next_task()) is not None:
        scheduler.finish(task[0], work(task[1]))
    assert scheduler.encoded_tokens == row.num_tokens
    assert len(scheduler.take_finished()) == 1


@pytest.mark.parametrize("num_rounds", [1, 3])
@pytest.mark.parametrize("window_tokens", [1, 50])
@pytest.mark.parametrize("num_slots", [1, 3])
def test_memory_does_not_grow_with_the_corpus(window_tokens: int, num_slots: int, num_rounds: int) -> None:
    """A batch of 4 may wait for company, each slot may hold up one more."""
    rows = [prepared(row, num_rounds=num_rounds) for row in range(300)]
    history = play([rows], batch_size=4, window_tokens=window_tokens, num_slots=num_slots)
    assert len(history.answers) == 300
    assert history.peak_tokens <= window_tokens + CHUNK_TOKENS * 4 * (num_slots + 1)


def test_a_poison_document_is_quarantined_and_costs_nobody_else() -> None:
    def engine(task_id: int, task: Encode | Ask) -> Result:
        return WorkerLost() if "row1#2" in names(task) else work(task)

    parts = [[prepared(row, num_chunks=3, num_questions=2) for row in range(3)]]
    history = play(parts, engine, seed=1)
    assert history.failures == {(1, "q0"): "Quarantined", (1, "q1"): "Quarantined"}
    assert sum(names(task) == ["row1#2"] for task in history.submitted) == 2
    [failure, _] = history.parts[0].failures
    assert (failure.stage, failure.attempts, failure.retryable) == ("encode", 2, True)


def test_a_poison_question_quarantines_its_document_and_not_its_batch() -> None:
    def engine(task_id: int, task: Encode | Ask) -> Result:
        return WorkerLost() if "row1/q0" in names(task) else work(task)

    history = play([[prepared(row) for row in range(4)]], engine, batch_size=4)
    assert history.failures == {(1, "q0"): "Quarantined"}
    assert set(history.answers) == {(0, "q0"), (2, "q0"), (3, "q0")}


def test_waiting_behind_a_lost_task_is_no_blame() -> None:
    left = {"row0#0": 5}

    def engine(task_id: int, task: Encode | Ask) -> Result:
        if left.get(names(task)[0], 0):
            left[names(task)[0]] -= 1
            return WorkerLost(started=False)
        return work(task)

    assert not play([[prepared(0)]], engine).failures


def test_a_chunk_that_does_not_fit_is_read_again_smaller() -> None:
    """Row 1 fits in chunks of five tokens; what was running of the longer ones comes too late and is let go."""

    def engine(task_id: int, task: Encode | Ask) -> Result:
        long = isinstance(task, Encode) and len(task.chunks[0].token_ids) > 5
        return FULL if long and "row1#1" in names(task) else work(task)

    history = play([[prepared(row, num_chunks=3) for row in range(3)]], engine, num_slots=3, seed=4)
    assert not history.failures and len(history.answers) == 3
    assert {f"row1#{index}/5" for index in range(6)} <= set(history.parts[0].keys)


def test_a_document_that_fits_in_no_chunk_is_a_dead_letter() -> None:
    def engine(task_id: int, task: Encode | Ask) -> Result:
        return FULL if isinstance(task, Encode) and task.document == "row1" else work(task)

    history = play([[prepared(row, num_chunks=2) for row in range(3)]], engine)
    assert history.failures == {(1, "q0"): "OutOfMemoryError"}
    assert history.parts[0].failures[0].retryable


@pytest.mark.parametrize("error", [BAD, FULL, BROKEN, WorkerLost()], ids=["data", "memory", "machine", "lost"])
def test_one_bad_question_costs_its_batch_nothing(error: Result) -> None:
    def engine(task_id: int, task: Encode | Ask) -> Result:
        return error if "row5/q0" in names(task) else work(task)

    history = play([[prepared(row) for row in range(8)]], engine, batch_size=8, num_slots=2)
    assert set(history.failures) == {(5, "q0")}
    assert len(history.answers) == 7


def test_only_some_questions_are_asked_but_all_are_read_with() -> None:
    scheduler = Scheduler(FakeReader(), batch_size=8, window_tokens=1, num_slots=1)
    row = prepared(0, num_questions=4, num_unfit=1)
    scheduler.add(0, row, only={"q2"})
    scheduler.close_part(0)
    task_id, encode = scheduler.next_task() or pytest.fail("no task")
    assert isinstance(encode, Encode)
    assert [probe.question_id for probe in encode.probes] == ["q1", "q2", "q3"]
    scheduler.finish(task_id, work(encode))
    task_id, ask = scheduler.next_task() or pytest.fail("no task")
    assert names(ask) == ["row0/q2"]
    scheduler.finish(task_id, work(ask))
    [part] = scheduler.take_finished()
    assert [answer.question_id for answer in part.answers] == ["q2"]
    assert not part.failures


def test_a_part_waits_for_its_tasks_so_that_its_keys_are_all_known() -> None:
    scheduler = Scheduler(FakeReader(), batch_size=1, window_tokens=100, num_slots=2)
    scheduler.add(0, prepared(0, num_chunks=2))
    scheduler.close_part(0)
    first, second = scheduler.next_task(), scheduler.next_task()
    assert first is not None and second is not None
    scheduler.finish(first[0], BAD)
    assert scheduler.take_finished() == []
    scheduler.finish(second[0], work(second[1]))
    [part] = scheduler.take_finished()
    assert part.keys == ("row0#1",)
    assert [failure.error for failure in part.failures] == ["BadPage"]


def take(scheduler: Scheduler) -> tuple[int, Encode | Ask]:
    task = scheduler.next_task()
    assert task is not None
    return task


@pytest.mark.parametrize("second", [BROKEN, WorkerLost()], ids=["machine", "lost"])
def test_nothing_more_is_done_for_a_document_that_failed(second: Result) -> None:
    scheduler = Scheduler(FakeReader(), batch_size=1, window_tokens=100, num_slots=2)
    scheduler.add(0, prepared(0, num_chunks=5))
    scheduler.close_part(0)
    tasks = [take(scheduler), take(scheduler)]
    for (task_id, _), result in zip(tasks, [BAD, second], strict=True):
        scheduler.finish(task_id, result)
    assert scheduler.next_task() is None
    [part] = scheduler.take_finished()
    assert [failure.error for failure in part.failures] == ["BadPage"]


def test_an_answer_that_comes_after_its_document_was_quarantined_comes_too_late() -> None:
    scheduler = Scheduler(FakeReader(), batch_size=1, window_tokens=100, num_slots=2)
    scheduler.add(0, prepared(0, num_questions=2))
    scheduler.close_part(0)
    scheduler.finish(*answered(take(scheduler)))
    poison, innocent = take(scheduler), take(scheduler)
    scheduler.finish(poison[0], WorkerLost())
    scheduler.finish(take(scheduler)[0], WorkerLost())
    assert scheduler.take_finished() == []
    scheduler.finish(*answered(innocent))
    [part] = scheduler.take_finished()
    assert part.answers == ()
    assert [(failure.question_id, failure.error) for failure in part.failures] == [
        ("q0", "Quarantined"),
        ("q1", "Quarantined"),
    ]


def answered(task: tuple[int, Encode | Ask]) -> tuple[int, Result]:
    return task[0], work(task[1])
