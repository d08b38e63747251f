"""Who runs engines: a pool takes tasks and gives back results, in any order.

Invariants: every submitted task comes back exactly once, as a result, an error or a lost worker; a pool
decides where a task runs and never what it means, retries nothing, and knows no document.
"""

from __future__ import annotations

import queue
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from types import TracebackType
from typing import Generic, Self, TypeVar

import torch

from workers.border import Works, attempt
from workers.messages import Answered, Ask, Encode, Encoded, WorkError

Task = TypeVar("Task")
Done = TypeVar("Done")

TASKS_PER_WORKER = 2
"""One task runs and one waits behind it, so that no worker idles while the driver thinks."""


class Loss(StrEnum):
    """Why a worker was given up, in the words of logs and metrics."""

    START_RAISED = "failed to start"
    START_DIED = "died at its start"
    DIED = "died"
    PREEMPTED = "preempted"
    HUNG = "hung"
    BROKEN = "broken"


@dataclass(frozen=True)
class WorkerLost:
    """The worker that held the task is gone. ``started``: the task was running there; one that only waited
    behind another is not to blame. ``why``: what became of the worker, in words."""

    started: bool = True
    why: str = "it died"


@dataclass(frozen=True)
class Finished(Generic[Done]):
    """A task that came back."""

    task_id: int
    result: Done | WorkError | WorkerLost


@dataclass(frozen=True)
class PoolState:
    """A pool at one moment. Tasks: ``num_waiting`` in nobody's hands, ``num_running`` in some worker's. Workers:
    ``num_ready`` have loaded their model, ``num_starting`` have not. ``lost``: workers given up since the start, by
    cause in words (``Loss``)."""

    num_waiting: int
    num_running: int
    num_ready: int
    num_starting: int = 0
    lost: Mapping[str, int] = field(default_factory=dict)


class Pool(ABC, Generic[Task, Done]):
    """Runs tasks. Used as a context; an error that leaves it abandons what only waits."""

    @property
    @abstractmethod
    def num_workers(self) -> int:
        """Workers at full strength."""

    @property
    def max_tasks(self) -> int:
        """How many tasks to hand in at once, at most: more only wait here instead of elsewhere."""
        return self.num_workers * TASKS_PER_WORKER

    @property
    @abstractmethod
    def state(self) -> PoolState:
        """What the pool is at, now."""

    @abstractmethod
    def submit(self, task_id: int, task: Task) -> None:
        """Run ``task`` soon. The id comes back with its result; it must not be in the pool already."""

    @abstractmethod
    def wait(self, timeout_s: float) -> list[Finished[Done]]:
        """What came back, oldest first: at least one task if any comes back within ``timeout_s``."""

    @abstractmethod
    def free(self, keys: Sequence[str]) -> None:
        """Drop store entries wherever they are; see ``Encoded.keys``."""

    @abstractmethod
    def close(self, *, abandon: bool) -> None:
        """Stop. ``abandon``: do not start what only waits; either way nothing comes back any more."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(abandon=kind is not None)


class LocalPool(Pool[Task, Done]):
    """Threads of this process that share one engine; no Ray, no second copy of the weights."""

    def __init__(self, make_engine: Callable[[], Works[Task, Done]], num_workers: int) -> None:
        """Makes the engine here and now, so that a model that cannot load says so at once."""
        self._engine = make_engine()
        self._todo: queue.SimpleQueue[tuple[int, Task] | None] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[Finished[Done]] = queue.SimpleQueue()
        self._abandoned = threading.Event()
        self._num_open = 0
        self._threads = [
            threading.Thread(target=self._work, name=f"engine-{index}", daemon=True) for index in range(num_workers)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def num_workers(self) -> int:
        """As ``Pool.num_workers``."""
        return len(self._threads)

    @property
    def state(self) -> PoolState:
        """As ``Pool.state``. A task that came back and was not fetched yet still runs."""
        waiting = self._todo.qsize()
        return PoolState(waiting, max(0, self._num_open - waiting), self.num_workers)

    def submit(self, task_id: int, task: Task) -> None:
        """As ``Pool.submit``."""
        self._num_open += 1
        self._todo.put((task_id, task))

    def wait(self, timeout_s: float) -> list[Finished[Done]]:
        """As ``Pool.wait``."""
        try:
            finished = [self._done.get(block=timeout_s > 0, timeout=timeout_s)]
        except queue.Empty:
            return []
        while not self._done.empty():
            finished.append(self._done.get())
        self._num_open -= len(finished)
        return finished

    def free(self, keys: Sequence[str]) -> None:
        """As ``Pool.free``."""
        self._engine.free(keys)

    def close(self, *, abandon: bool) -> None:
        """As ``Pool.close``. Waits for what is running, whose results stay in the store."""
        if abandon:
            self._abandoned.set()
        for _ in self._threads:
            self._todo.put(None)
        for thread in self._threads:
            thread.join()
        self._engine.close()

    def _work(self) -> None:
        torch.set_num_threads(1)
        while (item := self._todo.get()) is not None:
            if not self._abandoned.is_set():
                task_id, task = item
                self._done.put(Finished(task_id, attempt(self._engine, task)))


Result = Encoded | Answered | WorkError | WorkerLost
"""What comes back of a task of the scheduler's."""
EnginePool = Pool[Encode | Ask, Encoded | Answered]
"""Who runs a job's engines."""
