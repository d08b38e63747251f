"""Engines as Ray actors, on this machine or on many.

Invariants: only an actor that has loaded its model is given tasks, so a worker that the cluster cannot place
yet holds up nobody; each has at most ``TASKS_PER_WORKER`` in hand, and of a dead one's tasks only the one
that ran is to blame; a dead or sick actor is replaced, and workers that cannot start end the run with the
reason instead of starting for ever; only a Ray that was started here is stopped here.
"""

from __future__ import annotations

import logging
import math
import socket
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from configs.schema import RayWorkers
from pipeline.errors import JobError, WorkersUnavailable
from pipeline.pool import TASKS_PER_WORKER, Done, Finished, Pool, Task, WorkerLost
from workers.actors import EngineActor, Place
from workers.border import Works
from workers.messages import WorkError

MAX_FAILED_STARTS = 3
"""In a row, before the run gives up on its workers."""
MAX_ERRORS_IN_A_ROW = 2
"""Errors of the machine after which an actor is replaced: a broken device fails everything it is given."""
_PATIENCE_S = 60.0
_FAREWELL_S = 60.0
_KNOCK_S = 10.0
_QUIET: dict[str, Any] = {"logging_level": logging.WARNING, "log_to_driver": False}

_log = logging.getLogger(__name__)


@dataclass(eq=False)
class _Worker:
    """An actor. ``tasks``: what is in its hands, the running one first; ``place``: None until it is ready."""

    actor: Any
    ready: ray.ObjectRef[Place]
    place: Place | None = None
    tasks: dict[int, ray.ObjectRef[Any]] = field(default_factory=dict)
    errors_in_a_row: int = 0


class RayPool(Pool[Task, Done]):
    """Actors that each run one engine, started as there is work for them."""

    def __init__(
        self,
        make_engine: Callable[[], Works[Task, Done]],
        settings: RayWorkers,
        actor_class: Any = EngineActor,
        holds: Callable[[], object] | None = None,
    ) -> None:
        """Connects to the cluster, or starts one. ``holds``: opens what must live as long as the pool and longer than
        any worker. Raises ``JobError`` where there is no such cluster."""
        self._settings = settings
        self._ours = connect(settings)
        self._held = holds() if holds is not None else None
        num_threads = max(1, int(settings.num_cpus))
        self._actor_class = actor_class.options(
            num_cpus=settings.num_cpus,
            num_gpus=settings.num_gpus,
            runtime_env={"env_vars": {"OMP_NUM_THREADS": str(num_threads)}},
        )
        self._arguments = (make_engine, num_threads)
        self._workers: list[_Worker] = []
        self._waiting: deque[tuple[int, Task]] = deque()
        self._failed_on: dict[int, _Worker] = {}
        self._failed_starts = 0
        self._quiet_since_s = time.monotonic()

    @property
    def num_workers(self) -> int:
        """As ``Pool.num_workers``."""
        return self._settings.workers

    @property
    def places(self) -> tuple[Place, ...]:
        """Where the workers are that are ready."""
        return tuple(worker.place for worker in self._workers if worker.place is not None)

    def submit(self, task_id: int, task: Task) -> None:
        """As ``Pool.submit``."""
        self._waiting.append((task_id, task))
        self._hand_out()

    def wait(self, timeout_s: float) -> list[Finished[Done]]:
        """As ``Pool.wait``. Raises ``WorkersUnavailable`` when no worker can start."""
        refs = {worker.ready: worker for worker in self._workers if worker.place is None}
        refs |= {ref: worker for worker in self._workers for ref in worker.tasks.values()}
        if not refs:
            return []
        done, _ = ray.wait(list(refs), timeout=timeout_s)
        if done:
            done, _ = ray.wait(list(refs), num_returns=len(refs), timeout=0)
        finished: list[Finished[Done]] = []
        for ref in done:
            worker = refs[ref]
            if worker not in self._workers:
                continue  # lost with an earlier result of this round
            if ref == worker.ready:
                finished += self._take_ready(worker)
            else:
                finished += self._take_result(worker, ref)
        self._hand_out()
        self._warn_if_stuck()
        return finished

    def free(self, keys: Sequence[str]) -> None:
        """As ``Pool.free``: every worker is told, none is waited for."""
        if keys:
            for worker in self._workers:
                worker.actor.free.remote(keys)

    def close(self, *, abandon: bool) -> None:
        """As ``Pool.close``. What workers still write is waited for, unless abandoned."""
        closing = [] if abandon else [worker.actor.close.remote() for worker in self._workers if worker.place]
        if closing:
            ray.wait(closing, num_returns=len(closing), timeout=_FAREWELL_S)
        for worker in self._workers:
            ray.kill(worker.actor)
        self._workers.clear()
        self._held = None
        if self._ours:
            ray.shutdown()

    def _hand_out(self) -> None:
        """Give waiting tasks to workers with room, and start workers while there is more work than workers."""
        while self._waiting:
            task_id, task = self._waiting[0]
            room = [w for w in self._workers if w.place is not None and len(w.tasks) < TASKS_PER_WORKER]
            if not room:
                break
            avoided = self._failed_on.get(task_id)
            worker = min(room, key=lambda worker: (worker is avoided, len(worker.tasks)))
            worker.tasks[task_id] = worker.actor.attempt.remote(task)
            self._waiting.popleft()
        outstanding = len(self._waiting) + sum(len(worker.tasks) for worker in self._workers)
        while len(self._workers) < min(self.num_workers, outstanding):
            actor = self._actor_class.remote(*self._arguments)
            self._workers.append(_Worker(actor, actor.place.remote()))

    def _take_ready(self, worker: _Worker) -> list[Finished[Done]]:
        try:
            worker.place = ray.get(worker.ready)
            self._failed_starts = 0
        except RayError as error:
            self._failed_starts += not (isinstance(error, RayActorError) and error.preempted)
            if self._failed_starts == MAX_FAILED_STARTS:
                raise WorkersUnavailable(
                    f"{MAX_FAILED_STARTS} workers in a row could not start (pool.num_cpus: "
                    f"{self._settings.num_cpus}, pool.num_gpus: {self._settings.num_gpus}); the last one said: {error}"
                ) from error
            _log.warning("a worker could not start: %s", error)
            return self._replace(worker, blame=False)
        return []

    def _take_result(self, worker: _Worker, ref: ray.ObjectRef[Any]) -> list[Finished[Done]]:
        task_id = next(task_id for task_id, own in worker.tasks.items() if own == ref)
        try:
            result = ray.get(ref)
        except RayTaskError as error:
            result = WorkError("infrastructure", type(error.cause or error).__name__, str(error))
        except RayError as error:
            _log.warning("lost the worker at %s: %s", worker.place, error)
            return self._replace(worker, blame=not (isinstance(error, RayActorError) and error.preempted))
        del worker.tasks[task_id]
        self._failed_on.pop(task_id, None)
        finished = [Finished(task_id, result)]
        if isinstance(result, WorkError) and result.kind == "infrastructure":
            self._failed_on[task_id] = worker
            worker.errors_in_a_row += 1
            if worker.errors_in_a_row == MAX_ERRORS_IN_A_ROW:
                _log.warning("replacing the worker at %s after %s: %s", worker.place, result.error, result.message)
                finished += self._replace(worker, blame=False)
        else:
            worker.errors_in_a_row = 0
        return finished

    def _replace(self, worker: _Worker, *, blame: bool) -> list[Finished[Done]]:
        """Give up a worker; the next one starts when there is work for it. ``blame``: the task that it ran
        may have been the cause."""
        self._workers.remove(worker)
        ray.kill(worker.actor)
        lost = [WorkerLost(started=blame and position == 0) for position in range(len(worker.tasks))]
        return [Finished(task_id, result) for task_id, result in zip(worker.tasks, lost, strict=True)]

    def _warn_if_stuck(self) -> None:
        now_s = time.monotonic()
        if self.places or not self._waiting:
            self._quiet_since_s = now_s
        elif now_s - self._quiet_since_s > _PATIENCE_S:
            self._quiet_since_s = now_s
            _log.warning(
                "no worker for %.0f s; each needs pool.num_cpus: %s and pool.num_gpus: %s, and free now are: %s",
                _PATIENCE_S, self._settings.num_cpus, self._settings.num_gpus, _free_resources(),
            )  # fmt: skip


def connect(settings: RayWorkers) -> bool:
    """Join the cluster that ``pool.address`` means, or for ``auto`` without one, and for ``local``, start one on
    this machine. Whether this process must disconnect (and stop what it started) at the end."""
    if ray.is_initialized():
        return False
    if settings.address not in ("auto", "local"):
        _refuse_silence(settings.address)
    if settings.address != "local":
        try:
            ray.init(address=settings.address, **_QUIET)
            return True
        except (ConnectionError, ValueError) as error:
            if settings.address != "auto":
                raise JobError(f"pool.address: {settings.address}: no Ray cluster there: {error}") from error
    num_cpus = math.ceil(settings.workers * settings.num_cpus)
    ray.init(address="local", num_cpus=num_cpus, include_dashboard=False, **_QUIET)
    if settings.num_gpus > _free_resources().get("GPU", 0):
        ray.shutdown()
        raise JobError(
            f"pool.num_gpus: {settings.num_gpus}: this machine has no such GPU and no cluster was found; allowed: 0, "
            "or the pool.address of a cluster that has"
        )
    return True


def _refuse_silence(address: str) -> None:
    """Knock before Ray does, which waits for minutes where nobody listens."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        raise JobError(f"pool.address: {address}; allowed: auto, local, HOST:PORT or ray://HOST:PORT")
    try:
        socket.create_connection((host, int(port)), timeout=_KNOCK_S).close()
    except OSError as error:
        raise JobError(f"pool.address: {address}: no Ray cluster there: {error}") from error


def _free_resources() -> dict[str, float]:
    resources: dict[str, float] = ray.available_resources()  # type: ignore[no-untyped-call]
    return resources
