"""Laws of pools."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import pytest

from pipeline.pool import TASKS_PER_WORKER, EnginePool, Finished, LocalPool
from tests.pipeline.fakes import prepared, work
from workers.messages import Answered, Ask, Encode, Encoded, WorkError

[TASK] = prepared(0).encodes


class FakeEngine:
    """Does what it is told to, and remembers what it was told to free."""

    def __init__(self, do: Callable[[Encode | Ask], Encoded | Answered] = work) -> None:
        self._do = do
        self.freed: list[str] = []
        self.is_closed = False

    def work(self, task: Encode | Ask) -> Encoded | Answered:
        return self._do(task)

    def free(self, names: Sequence[str]) -> None:
        self.freed += names

    def close(self) -> None:
        self.is_closed = True


def raising(error: BaseException) -> FakeEngine:
    def do(task: Encode | Ask) -> Encoded:
        raise error

    return FakeEngine(do)


def drain(pool: EnginePool, count: int) -> list[Finished[Encoded | Answered]]:
    finished: list[Finished[Encoded | Answered]] = []
    while len(finished) < count:
        finished += pool.wait(5)
    return finished


@pytest.mark.parametrize("num_workers", [1, 3])
def test_every_task_comes_back_once(num_workers: int) -> None:
    with LocalPool(FakeEngine, num_workers) as pool:
        assert pool.num_workers == num_workers
        for task_id in range(20):
            pool.submit(task_id, TASK)
        finished = drain(pool, 20)
        assert pool.wait(0) == []
    assert sorted(item.task_id for item in finished) == list(range(20))
    assert {type(item.result) for item in finished} == {Encoded}


def test_workers_work_at_the_same_time() -> None:
    """Both tasks must be inside the engine before either can leave it."""
    meeting = threading.Barrier(2)

    def do(task: Encode | Ask) -> Encoded | Answered:
        meeting.wait(timeout=30)
        return work(task)

    with LocalPool(lambda: FakeEngine(do), 2) as pool:
        pool.submit(1, TASK)
        pool.submit(2, TASK)
        assert {type(item.result) for item in drain(pool, 2)} == {Encoded}


def test_an_error_is_a_result_and_the_pool_goes_on() -> None:
    with LocalPool(lambda: raising(RuntimeError("broken")), 1) as pool:
        pool.submit(1, TASK)
        pool.submit(2, TASK)
        assert [item.result for item in drain(pool, 2)] == [WorkError("infrastructure", "RuntimeError", "broken")] * 2


def test_an_engine_that_cannot_be_made_says_so_at_once() -> None:
    def broken() -> FakeEngine:
        raise ValueError("no such model")

    with pytest.raises(ValueError, match="no such model"):
        LocalPool(broken, 1)


def test_free_reaches_the_engine() -> None:
    engine = FakeEngine()
    with LocalPool(lambda: engine, 1) as pool:
        pool.free(["a", "b"])
    assert engine.freed == ["a", "b"]


@pytest.mark.parametrize(("abandon", "expected"), [(True, 1), (False, TASKS_PER_WORKER)])
def test_closing_lets_the_running_task_end_and_abandons_what_waits(abandon: bool, expected: int) -> None:
    entered, leave, done = threading.Event(), threading.Event(), []

    def do(task: Encode | Ask) -> Encoded | Answered:
        entered.set()
        leave.wait(timeout=30)
        done.append(task)
        return work(task)

    pool = LocalPool(lambda: FakeEngine(do), 1)
    for task_id in range(TASKS_PER_WORKER):
        pool.submit(task_id, TASK)
    entered.wait(timeout=30)
    closing = threading.Thread(target=pool.close, kwargs={"abandon": abandon})
    closing.start()
    while abandon and not pool._abandoned.is_set():
        pass
    leave.set()
    closing.join()
    assert len(done) == expected


def test_closing_closes_the_engine_behind_its_last_task() -> None:
    engine = FakeEngine(lambda task: work(task) if not engine.is_closed else pytest.fail("closed too early"))
    with LocalPool(lambda: engine, 2) as pool:
        for task_id in range(4):
            pool.submit(task_id, TASK)
        drain(pool, 4)
        assert not engine.is_closed
    assert engine.is_closed
