"""Engines that only take time: a pool on a virtual clock, whose workers and nodes are slow, crash and vanish.

It hands tasks out as ``cluster.RayPool`` does, by the same ``roster.Roster``.

Invariants: as ``Pool``; events happen in the order of their virtual times, ties in the order in which they were
foreseen; of a lost worker's tasks only the one that ran is to blame, and none where the whole node went.
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from enum import Enum, auto

from pipeline.pool import TASKS_PER_WORKER, EnginePool, Finished, PoolState, WorkerLost
from pipeline.roster import CHOICES_PER_WORKER, Roster
from pipeline.simulation.clock import Clock
from pipeline.simulation.settings import NEVER_S, Scene
from pipeline.simulation.traffic import Traffic, key_of
from pipeline.traits import traits_of
from workers.messages import Answered, Ask, Encode, Encoded, Generated


class _What(Enum):
    """What happens: to a worker, the last two to a node."""

    DONE = auto()
    CRASH = auto()
    BACK = auto()
    VANISH = auto()
    REPLACED = auto()


@dataclass(eq=False)
class _Worker:
    """``tasks``: in hand, the running one first. ``life``: counts its ends, so that what was foreseen for an earlier
    life does not happen."""

    index: int
    node: int
    slowness: float
    tasks: deque[tuple[int, Encode | Ask]] = field(default_factory=deque)
    alive: bool = False
    life: int = 0
    since_s: float = 0.0
    """When its running task began; or when it was lost."""
    again_s: float = 0.0
    """How long its running task reads again what was lost with another node."""


@dataclass
class Toll:
    """Worker seconds. ``busy_s``: at work that came back (a straggler's own, longer seconds); ``lost_s``: at work that
    was lost with its worker, or done again for a kept set that was; ``down_s``: dead. ``num_lost``: tasks."""

    busy_s: float = 0.0
    lost_s: float = 0.0
    down_s: float = 0.0
    num_lost: int = 0
    num_handed_over: int = 0
    num_taken_back: int = 0

    @property
    def num_events(self) -> int:
        """Tasks handed over to the pool, and taken back."""
        return self.num_handed_over + self.num_taken_back

    def __add__(self, other: Toll) -> Toll:
        return Toll(*(getattr(self, own.name) + getattr(other, own.name) for own in fields(self)))


class SimulatedPool(EnginePool):
    """All workers are ready at 0. ``kills``: whether a task kills the worker that tries it."""

    def __init__(self, scene: Scene, clock: Clock, kills: Callable[[Encode | Ask], bool]) -> None:
        self._scene, self._clock, self._kills = scene, clock, kills
        self._random = random.Random(f"{scene.seed}/{scene.first_node}")
        self._lives = [0] * scene.nodes
        self._foreseen: list[tuple[float, int, _What, int, int]] = []
        self._num_foreseen = 0
        self._roster: Roster[_Worker] = Roster()
        self._tasks: dict[int, Encode | Ask] = {}
        self._done: deque[Finished[Encoded | Answered]] = deque()
        self.toll = Toll()
        self.traffic = Traffic(scene)
        self._workers = [
            _Worker(index, index // scene.workers_per_node, scene.slowness_of(index))
            for index in range(scene.num_workers)
        ]
        for worker in self._workers:
            self._revive(worker, 0.0)
        for node in range(scene.nodes):
            self._foresee_loss(0.0, scene.faults.node_mtbf_s, _What.VANISH, node, 0)

    @property
    def num_workers(self) -> int:
        """As ``Pool.num_workers``."""
        return len(self._workers)

    @property
    def max_tasks(self) -> int:
        """As ``Pool.max_tasks``; as many as ``RayPool`` takes."""
        return self.num_workers * (TASKS_PER_WORKER + CHOICES_PER_WORKER)

    @property
    def state(self) -> PoolState:
        """As ``Pool.state``."""
        return PoolState(self._roster.num_waiting, self._roster.num_in_hand, self._roster.num_workers)

    @property
    def capacity(self) -> float:
        """Engine seconds that are done in a second while nobody is lost."""
        return sum(1 / worker.slowness for worker in self._workers)

    def submit(self, task_id: int, task: Encode | Ask) -> None:
        """As ``Pool.submit``."""
        with self._clock:
            self._spend_on_messages(1)
            self.toll.num_handed_over += 1
            self._tasks[task_id] = task
            self._roster.submit(task_id, traits_of(task))
            self._hand_out()

    def wait(self, timeout_s: float) -> list[Finished[Encoded | Answered]]:
        """As ``Pool.wait``; a timeout above 0 lasts until something comes back."""
        with self._clock:
            self._clock.spend(self._scene.costs.look_s * self.num_workers, "looking for results")
            self._hand_out()
            while timeout_s > 0 and not self._done:
                self._clock.wait_until(self._foreseen[0][0])
                self._hand_out()
            finished = list(self._done)
            self._done.clear()
            self._spend_on_messages(len(finished))
            self.toll.num_taken_back += len(finished)
            return finished

    def free(self, keys: Sequence[str]) -> None:
        """As ``Pool.free``."""
        with self._clock:
            self.traffic.free(keys)

    def close(self, *, abandon: bool) -> None:
        """As ``Pool.close``. Those that are dead now have been so until now."""
        with self._clock:
            dead = (worker for worker in self._workers if not worker.alive)
            self.toll.down_s += sum(self._clock.now_s - worker.since_s for worker in dead)

    def _spend_on_messages(self, number: int) -> None:
        self._clock.spend(number * self._scene.costs.message_s, "messages")

    # -- tasks to workers ------------------------------------------------------------------------

    def _hand_out(self) -> None:
        """Let happen what has happened by now, and give waiting tasks to workers with room."""
        now_s = self._clock.now_s
        while self._foreseen and self._foreseen[0][0] <= now_s:
            moment_s, _, what, index, life = heapq.heappop(self._foreseen)
            self._happen(moment_s, what, index, life)
        while (given := self._roster.next()) is not None:
            task_id, worker = given
            worker.tasks.append((task_id, self._tasks.pop(task_id)))
            self.traffic.send(worker.tasks[-1][1])
            if len(worker.tasks) == 1:
                self._begin(worker, now_s)

    def _begin(self, worker: _Worker, moment_s: float) -> None:
        """The first task in hand starts to run."""
        _, task = worker.tasks[0]
        lost = self.traffic.gather(task, worker.node, self._lives) if isinstance(task, Ask) else ()
        worker.since_s = moment_s
        worker.again_s = worker.slowness * sum(self._seconds(encode) for encode in lost)
        seconds = worker.slowness * self._seconds(task) + worker.again_s
        if self._kills(task):
            self._foresee(moment_s + seconds / 2, _What.CRASH, worker.index, worker.life)
        else:
            self._foresee(moment_s + seconds, _What.DONE, worker.index, worker.life)

    def _seconds(self, task: Encode | Ask) -> float:
        """Engine seconds of a task, wherever it runs."""
        if isinstance(task, Ask):
            return self._scene.costs.answer_s * len(task.queries)
        return self._scene.costs.encode_s * sum(len(chunk.token_ids) for chunk in task.chunks) / 1000

    # -- what happens ----------------------------------------------------------------------------

    def _foresee(self, moment_s: float, what: _What, index: int, life: int) -> None:
        self._num_foreseen += 1
        heapq.heappush(self._foreseen, (moment_s, self._num_foreseen, what, index, life))

    def _foresee_loss(self, now_s: float, mean_s: float, what: _What, index: int, life: int) -> None:
        if mean_s != NEVER_S:
            self._foresee(now_s + self._random.expovariate(1 / mean_s), what, index, life)

    def _happen(self, moment_s: float, what: _What, index: int, life: int) -> None:
        faults = self._scene.faults
        if what is _What.VANISH:
            self._lives[index] += 1
            for worker in self._workers_of(index):
                self._lose(worker, moment_s, blame=False)
            self._foresee(moment_s + faults.replace_s, _What.REPLACED, index, self._lives[index])
        elif what is _What.REPLACED:
            for worker in self._workers_of(index):
                self._revive(worker, moment_s)
            self._foresee_loss(moment_s, faults.node_mtbf_s, _What.VANISH, index, self._lives[index])
        elif self._workers[index].life != life:
            return
        elif what is _What.DONE:
            self._finish(self._workers[index], moment_s)
        elif what is _What.CRASH:
            self._lose(self._workers[index], moment_s, blame=True)
            self._foresee(moment_s + faults.restart_s, _What.BACK, index, self._workers[index].life)
        else:
            self._revive(self._workers[index], moment_s)

    def _workers_of(self, node: int) -> list[_Worker]:
        each = self._scene.workers_per_node
        return self._workers[node * each : (node + 1) * each]

    def _finish(self, worker: _Worker, moment_s: float) -> None:
        task_id, task = worker.tasks.popleft()
        self.toll.busy_s += moment_s - worker.since_s - worker.again_s
        self.toll.lost_s += worker.again_s
        self._done.append(Finished(task_id, self._result(worker, task)))
        self._roster.finish(worker, task_id)
        if worker.tasks:
            self._begin(worker, moment_s)

    def _result(self, worker: _Worker, task: Encode | Ask) -> Encoded | Answered:
        if isinstance(task, Encode):
            self.traffic.take_back(task, worker.node, self._lives[worker.node])
            return Encoded((), (key_of(task),), self._seconds(task), 0)
        return Answered(tuple(Generated("", 1, self._scene.costs.answer_s) for _ in task.queries))

    def _lose(self, worker: _Worker, moment_s: float, *, blame: bool) -> None:
        """The worker is gone, with what it had in hand."""
        worker.life += 1
        if not worker.alive:
            return
        if worker.tasks:
            self.toll.lost_s += moment_s - worker.since_s
        for position, (task_id, _) in enumerate(worker.tasks):
            self._done.append(Finished(task_id, WorkerLost(started=blame and position == 0)))
        self.toll.num_lost += len(worker.tasks)
        self._roster.leave(worker)
        worker.tasks.clear()
        worker.alive = False
        worker.since_s = moment_s

    def _revive(self, worker: _Worker, moment_s: float) -> None:
        assert not worker.alive
        worker.alive = True
        self.toll.down_s += moment_s - worker.since_s
        self._roster.join(worker, str(worker.node))
        self._foresee_loss(moment_s, self._scene.faults.worker_mtbf_s, _What.CRASH, worker.index, worker.life)
