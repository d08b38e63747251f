"""Which worker gets which task: a pure state machine, without Ray and without a clock.

A task goes to one of the workers with the fewest in hand. Among the first ``LOOKAHEAD`` waiting tasks that one goes
whose kept sets would travel least: each is charged with the pieces that it would fetch here and find on the best
node there is (delay scheduling: Zaharia et al. 2010, "Delay Scheduling: A Simple Technique for Achieving Locality and
Fairness in Cluster Scheduling"). A task that fetches nothing is charged nothing, so without kept pairs tasks go out in
the order in which they came.

Invariants: a worker has at most ``TASKS_PER_WORKER`` tasks in hand, and none behind one of several pieces, which is
long enough for the driver to bring the next, and too long to wait behind while another worker is idle; no worker with
room goes without while a task waits; a task is passed over at most once for each worker, about the time that one task
takes; what lies where is only remembered, and being wrong about it costs time and nothing else; each step looks at a
bounded number of tasks, however many workers there are.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Hashable
from dataclasses import dataclass, field
from itertools import islice
from typing import Generic, TypeVar

from pipeline.pool import TASKS_PER_WORKER
from pipeline.traits import PLAIN, Traits

CHOICES_PER_WORKER = 1
"""Tasks that should wait here for each worker, so that one with room can be given what lies near it."""
LOOKAHEAD = 16
_REMEMBERED = 100_000
"""Names of what was left somewhere; the oldest are forgotten first."""

Worker = TypeVar("Worker", bound=Hashable)


@dataclass(eq=False)
class _Waiting(Generic[Worker]):
    """``homes``: pieces that the task will fetch, by the node where they should lie. ``avoids``: who failed with it."""

    task_id: int
    traits: Traits
    homes: dict[str, float]
    avoids: Worker | None
    num_passed: int = 0


@dataclass(eq=False)
class _Desk:
    """A worker's place. ``tasks``: in hand, the running one first; ``is_open``: whether it gets new ones."""

    node: str
    tasks: dict[int, Traits] = field(default_factory=dict)
    is_open: bool = True

    @property
    def has_room(self) -> bool:
        """Whether it may be given a task."""
        is_long = any(traits.num_pieces > 1 for traits in self.tasks.values())
        return self.is_open and len(self.tasks) < TASKS_PER_WORKER and not is_long


class Roster(Generic[Worker]):
    """See the module. Tasks come by ``submit``, workers by ``join``; ``next`` says who gets what."""

    def __init__(self) -> None:
        self._waiting: deque[_Waiting[Worker]] = deque()
        self._desks: dict[Worker, _Desk] = {}
        self._room: tuple[dict[Worker, None], ...] = tuple({} for _ in range(TASKS_PER_WORKER))
        """Open workers by the number of tasks in hand, each list in the order in which they got there."""
        self._nodes: Counter[str] = Counter()
        self._left: OrderedDict[str, Counter[str]] = OrderedDict()
        """What was left where: name -> pieces by node."""
        self._tried: dict[int, Worker | None] = {}
        """Tasks that came back undone, and who failed with them; None: it was lost with its worker."""
        self.num_in_hand = 0
        """Tasks that run, or wait behind one that does."""

    @property
    def num_waiting(self) -> int:
        """Tasks in nobody's hands."""
        return len(self._waiting)

    @property
    def num_workers(self) -> int:
        """Workers that joined and did not leave."""
        return len(self._desks)

    def tasks_of(self, worker: Worker) -> dict[int, Traits]:
        """What a worker has in hand, the running one first."""
        return self._desks[worker].tasks

    # -- workers -----------------------------------------------------------------------------------

    def join(self, worker: Worker, node: str) -> None:
        """A worker is ready, on ``node``."""
        self._desks[worker] = _Desk(node)
        self._nodes[node] += 1
        self._file(worker)

    def rest(self, worker: Worker) -> None:
        """Give a worker no more tasks; it keeps what it has in hand."""
        desk = self._desks[worker]
        self._unfile(worker)
        desk.is_open = False

    def leave(self, worker: Worker) -> list[int]:
        """A worker is gone: its tasks, the running one first, which are nobody's now."""
        self._unfile(worker)
        desk = self._desks.pop(worker)
        self._nodes[desk.node] -= 1
        self.num_in_hand -= len(desk.tasks)
        self._tried.update(dict.fromkeys(desk.tasks))
        return list(desk.tasks)

    # -- tasks -------------------------------------------------------------------------------------

    def submit(self, task_id: int, traits: Traits = PLAIN) -> None:
        """A task waits for a worker. One that came back undone, known by its id, waits in front of all others."""
        homes: dict[str, float] = {}
        for name, wanted in traits.near.items():
            left = self._left.get(name, Counter())
            for node, pieces in left.items():
                homes[node] = homes.get(node, 0.0) + wanted * pieces / left.total()
        put = self._waiting.appendleft if task_id in self._tried else self._waiting.append
        put(_Waiting(task_id, traits, homes, self._tried.pop(task_id, None)))

    def next(self) -> tuple[int, Worker] | None:
        """The next task to hand out, and to whom; it is in that worker's hands now. None: none waits, or none has
        room."""
        if not self._waiting or (worker := self._roomiest(self._waiting[0].avoids)) is None:
            return None
        index = self._cheapest_for(self._desks[worker].node)
        for passed in islice(self._waiting, index):
            passed.num_passed += 1
        task = self._waiting[index]
        del self._waiting[index]
        self._unfile(worker)
        self._desks[worker].tasks[task.task_id] = task.traits
        self.num_in_hand += 1
        self._file(worker)
        return task.task_id, worker

    def finish(self, worker: Worker, task_id: int, *, failed: bool = False) -> None:
        """A worker is done with a task. ``failed``: if it is submitted again, another worker should try."""
        self._unfile(worker)
        desk = self._desks[worker]
        traits = desk.tasks.pop(task_id)
        self.num_in_hand -= 1
        self._file(worker)
        if failed:
            self._tried[task_id] = worker
        elif traits.leaves is not None:
            self._remember(traits.leaves, desk.node, traits.num_pieces)

    def _remember(self, name: str, node: str, num_pieces: int) -> None:
        self._left.setdefault(name, Counter())[node] += num_pieces
        self._left.move_to_end(name)
        if len(self._left) > _REMEMBERED:
            self._left.popitem(last=False)

    def _roomiest(self, avoided: Worker | None) -> Worker | None:
        """The one that has waited longest among those with the fewest tasks; ``avoided`` only if there is no other."""
        for row in self._room:
            for worker in row:
                if worker != avoided:
                    return worker
        return avoided if avoided in self._desks and self._has_room(avoided) else None

    def _has_room(self, worker: Worker | None) -> bool:
        return any(worker in row for row in self._room)

    def _cheapest_for(self, node: str) -> int:
        """Index of the waiting task whose kept sets would travel least to ``node``; the first of several."""
        cheapest, least = 0, float("inf")
        for index, task in enumerate(islice(self._waiting, LOOKAHEAD)):
            detour = self._detour(task, node)
            if detour < least:
                cheapest, least = index, detour
            if not least or task.num_passed >= len(self._desks):
                break
        return cheapest

    def _detour(self, task: _Waiting[Worker], node: str) -> float:
        """Pieces that travel if the task is done on ``node`` and not on the best of the nodes with workers."""
        if not task.homes:
            return 0.0
        best = max((pieces for home, pieces in task.homes.items() if self._nodes[home]), default=0.0)
        return max(0.0, best - task.homes.get(node, 0.0))

    # -- the lists of workers with room --------------------------------------------------------------

    def _file(self, worker: Worker) -> None:
        desk = self._desks[worker]
        if desk.has_room:
            self._room[len(desk.tasks)][worker] = None

    def _unfile(self, worker: Worker) -> None:
        desk = self._desks[worker]
        if len(desk.tasks) < TASKS_PER_WORKER:
            self._room[len(desk.tasks)].pop(worker, None)
