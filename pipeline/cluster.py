"""Engines as Ray actors, on this machine or on many.

An engine waits for a machine, loads its model, works, and is stopped again. Engines that wait are what makes an
autoscaler add machines, and machines without engines are what makes it take them away.

Invariants: only an engine that has loaded its model is given tasks, so one that the cluster cannot place yet holds up
nobody; an engine is started for a task that nobody has room for, and never for less; one without work is stopped after
``pool.idle_seconds``; one on a machine that will go gets nothing new, and its loss is nobody's fault; of another one's
tasks only the one that ran is to blame; a dead, sick or hung engine is replaced, and engines that cannot start end the
run with the reason instead of starting for ever; only a Ray that was started here is stopped here.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from configs.schema import RayWorkers
from pipeline.errors import WorkersUnavailable
from pipeline.joining import connect, draining_nodes, free_resources
from pipeline.pool import TASKS_PER_WORKER, Done, Finished, Loss, Pool, PoolState, Task, WorkerLost
from pipeline.roster import CHOICES_PER_WORKER, Roster
from pipeline.starts import Starts
from pipeline.traits import PLAIN, Traits
from workers import logs
from workers.actors import EngineActor, Place
from workers.border import Works
from workers.messages import WorkError

MAX_ERRORS_IN_A_ROW = 2
"""Errors of the machine after which an engine is replaced: a broken device fails everything it is given."""
_PATIENCE_S = 60.0
_FAREWELL_S = 60.0
_LOOK_S = 1.0
"""How often engines are looked after; each look asks the cluster which machines will go."""

_log = logging.getLogger(__name__)


@dataclass(eq=False)
class _Engine:
    """An actor. ``placed`` comes when it has a machine, then ``loaded`` when it has its model. ``since_s``: when it
    began what it is at: waiting for a machine, loading, the task that runs, or having none."""

    actor: Any
    placed: ray.ObjectRef[Place]
    loaded: ray.ObjectRef[None]
    since_s: float
    place: Place | None = None
    is_ready: bool = False
    is_leaving: bool = False
    running: dict[ray.ObjectRef[Any], int] = field(default_factory=dict)
    """What will come back of which task."""
    errors_in_a_row: int = 0


class RayPool(Pool[Task, Done]):
    """Actors that each run one engine, started as there is work for them and stopped when there is none."""

    def __init__(
        self,
        make_engine: Callable[[], Works[Task, Done]],
        settings: RayWorkers,
        actor_class: Any = EngineActor,
        holds: Callable[[], object] | None = None,
        traits: Callable[[Task], Traits] = lambda task: PLAIN,
    ) -> None:
        """Connects to the cluster, or starts one. ``holds``: opens what must live as long as the pool and longer than
        any worker; ``traits``: of a task. Raises ``JobError`` where there is no such cluster."""
        self._settings = settings
        self._ours = connect(settings)
        self._held = holds() if holds is not None else None
        self._traits = traits
        num_threads = max(1, int(settings.num_cpus))
        self._actor_class = actor_class.options(
            num_cpus=settings.num_cpus,
            num_gpus=settings.num_gpus,
            runtime_env={"env_vars": {"OMP_NUM_THREADS": str(num_threads), **logs.for_workers()}},
        )
        self._arguments = (make_engine, num_threads)
        self._engines: list[_Engine] = []
        self._awaited: dict[ray.ObjectRef[Any], _Engine] = {}
        self._farewells: dict[ray.ObjectRef[None], _Engine] = {}
        self._roster: Roster[_Engine] = Roster()
        self._tasks: dict[int, Task] = {}
        self._lost: Counter[Loss] = Counter()
        self._starts = Starts()
        self._quiet_since_s = self._looked_s = self._needed_s = time.monotonic()

    @property
    def num_workers(self) -> int:
        """As ``Pool.num_workers``."""
        return self._settings.workers

    @property
    def max_tasks(self) -> int:
        """As ``Pool.max_tasks``."""
        return self.num_workers * (TASKS_PER_WORKER + CHOICES_PER_WORKER)

    @property
    def state(self) -> PoolState:
        """As ``Pool.state``."""
        roster = self._roster
        num_starting = len(self._engines) - roster.num_workers
        lost = {cause.value: count for cause, count in self._lost.items()}
        return PoolState(roster.num_waiting, roster.num_in_hand, roster.num_workers, num_starting, lost)

    def submit(self, task_id: int, task: Task) -> None:
        """As ``Pool.submit``."""
        self._tasks[task_id] = task
        self._roster.submit(task_id, self._traits(task))
        self._hand_out()

    def wait(self, timeout_s: float) -> list[Finished[Done]]:
        """As ``Pool.wait``. Raises ``WorkersUnavailable`` when no worker can start."""
        finished: list[Finished[Done]] = []
        for ref in self._arrived(timeout_s):
            engine = self._awaited.pop(ref, None)
            if engine is not None:  # otherwise lost with an earlier result of this round
                finished += self._take(engine, ref)
        now_s = time.monotonic()
        if now_s - self._looked_s > _LOOK_S:
            self._looked_s = now_s
            finished += self._replace_hung(now_s)
            self._spare(draining_nodes())
            self._let_go(now_s)
            self._warn_if_stuck(now_s)
        self._hand_out()
        return finished

    def free(self, keys: Sequence[str]) -> None:
        """As ``Pool.free``: every worker is told, none is waited for."""
        if keys:
            for engine in self._engines:
                if engine.is_ready:
                    engine.actor.free.remote(keys)

    def close(self, *, abandon: bool) -> None:
        """As ``Pool.close``. What workers still write is waited for, unless abandoned."""
        closing = [] if abandon else [engine.actor.close.remote() for engine in self._engines if engine.is_ready]
        if waited := [*closing, *(() if abandon else self._farewells)]:
            ray.wait(waited, num_returns=len(waited), timeout=_FAREWELL_S)
        for engine in [*self._engines, *self._farewells.values()]:
            ray.kill(engine.actor)
        self._engines.clear()
        self._farewells.clear()
        self._awaited.clear()
        self._held = None
        if self._ours:
            ray.shutdown()

    # -- tasks out, results in -------------------------------------------------------------------

    def _hand_out(self) -> None:
        """Give waiting tasks to engines with room, and start an engine for each that is left."""
        while (given := self._roster.next()) is not None:
            task_id, engine = given
            if not engine.running:
                engine.since_s = time.monotonic()
            ref = engine.actor.attempt.remote(self._tasks[task_id])
            engine.running[ref] = task_id
            self._awaited[ref] = engine
        needed = min(self.num_workers, self._roster.num_workers + self._roster.num_waiting)
        while len(self._engines) < needed and not self._starts.pause_s:
            actor = self._actor_class.remote(*self._arguments)
            engine = _Engine(actor, actor.place.remote(), actor.load.remote(), time.monotonic())
            self._engines.append(engine)
            self._awaited[engine.placed] = engine

    def _arrived(self, timeout_s: float) -> list[ray.ObjectRef[Any]]:
        """What came back; at least one within ``timeout_s``, if any comes."""
        awaited = [*self._awaited, *self._farewells]
        if not awaited:
            time.sleep(min(timeout_s, self._starts.pause_s))
            return []
        done, _ = ray.wait(awaited, timeout=timeout_s)
        if done:
            done, _ = ray.wait(awaited, num_returns=len(awaited), timeout=0)
        for ref in done:
            if (gone := self._farewells.pop(ref, None)) is not None:
                ray.kill(gone.actor)
        return list(done)

    def _take(self, engine: _Engine, ref: ray.ObjectRef[Any]) -> list[Finished[Done]]:
        if engine.is_ready:
            return self._take_result(engine, ref)
        try:
            answer = ray.get(ref)
        except RayError as error:
            return self._take_failed_start(engine, error)
        engine.since_s = time.monotonic()
        if ref == engine.placed:
            engine.place = answer
            self._awaited[engine.loaded] = engine
        else:
            assert engine.place is not None
            engine.is_ready = True
            self._starts.succeeded()
            self._roster.join(engine, engine.place.node_id)
        return []

    def _take_failed_start(self, engine: _Engine, error: RayError) -> list[Finished[Done]]:
        if isinstance(error, RayTaskError):
            return self._replace(engine, Loss.START_RAISED, str(error.cause or error))
        return self._replace(engine, Loss.PREEMPTED if _is_preempted(engine, error) else Loss.START_DIED, str(error))

    def _take_result(self, engine: _Engine, ref: ray.ObjectRef[Any]) -> list[Finished[Done]]:
        task_id = engine.running[ref]
        try:
            result = ray.get(ref)
        except RayTaskError as error:
            result = WorkError("infrastructure", type(error.cause or error).__name__, str(error))
        except RayError as error:
            if _is_preempted(engine, error):
                return self._replace(engine, Loss.PREEMPTED, str(error))
            return self._replace(engine, Loss.DIED, str(error), blame=True)
        del engine.running[ref]
        engine.since_s = time.monotonic()
        is_sick = isinstance(result, WorkError) and result.kind == "infrastructure"
        self._roster.finish(engine, task_id, failed=is_sick)
        del self._tasks[task_id]
        engine.errors_in_a_row = engine.errors_in_a_row + 1 if is_sick else 0
        finished = [Finished(task_id, result)]
        if engine.errors_in_a_row == MAX_ERRORS_IN_A_ROW:
            finished += self._replace(engine, Loss.BROKEN, f"{result.error}: {result.message}")
        return finished

    # -- engines that go -------------------------------------------------------------------------

    def _replace(self, engine: _Engine, cause: Loss, reason: str, *, blame: bool = False) -> list[Finished[Done]]:
        """Give up an engine; the next one starts when there is work for it. ``blame``: the task that it ran may have
        been the cause. Its tasks come back."""
        self._lost[cause] += 1
        reason = _in_short(reason)
        where = f"at {engine.place}" if engine.place else "without a machine"
        _log.warning("lost the worker %s (%s): %s", where, cause, reason)
        if not engine.is_ready:
            self._count_failed_start(cause, reason)
        lost = self._roster.leave(engine) if engine.is_ready else []
        self._forget(engine)
        ray.kill(engine.actor)
        for task_id in lost:
            del self._tasks[task_id]
        return [
            Finished(task_id, WorkerLost(started=blame and position == 0, why=f"{cause}: {reason}"))
            for position, task_id in enumerate(lost)
        ]

    def _count_failed_start(self, cause: Loss, reason: str) -> None:
        if cause is Loss.START_DIED:
            self._starts.died()
        elif cause is not Loss.PREEMPTED:
            self._starts.raised()
        if self._starts.are_hopeless:
            raise WorkersUnavailable(
                f"{self._starts.number_in_a_row} times in a row workers could not start (pool.num_cpus: "
                f"{self._settings.num_cpus}, pool.num_gpus: {self._settings.num_gpus}); the last one said: {reason}"
            )

    def _forget(self, engine: _Engine) -> None:
        self._engines.remove(engine)
        refs: list[ray.ObjectRef[Any]] = [engine.placed, engine.loaded, *engine.running]
        for ref in refs:
            self._awaited.pop(ref, None)

    def _replace_hung(self, now_s: float) -> list[Finished[Done]]:
        """Replace engines that are at their task, or at loading, longer than the job allows."""
        finished: list[Finished[Done]] = []
        for engine in list(self._engines):
            busy_s = now_s - engine.since_s
            if engine.running:
                first = next(iter(self._roster.tasks_of(engine).values()))
                if busy_s > (allowed_s := self._settings.task_seconds * first.num_pieces):
                    reason = f"no result within {allowed_s:g} s (pool.task_seconds: {self._settings.task_seconds:g})"
                    finished += self._replace(engine, Loss.HUNG, reason, blame=True)
            elif engine.place and not engine.is_ready and busy_s > self._settings.start_seconds:
                reason = f"its model was not loaded within pool.start_seconds: {self._settings.start_seconds:g}"
                finished += self._replace(engine, Loss.HUNG, reason)
        return finished

    def _let_go(self, now_s: float) -> None:
        """Stop engines that nobody needs: that have no task, or that still start for tasks which are done."""
        idle_s = self._settings.idle_seconds
        for engine in [engine for engine in self._engines if engine.is_ready and not engine.running]:
            if engine.is_leaving or (now_s - engine.since_s > idle_s and not self._roster.num_waiting):
                self._dismiss(engine)
        starting = [engine for engine in self._engines if not engine.is_ready]
        needed = self._roster.num_waiting
        if len(starting) <= needed:
            self._needed_s = now_s
        elif now_s - self._needed_s > idle_s:
            for engine in starting[needed:]:
                self._dismiss(engine)
        for ref, engine in list(self._farewells.items()):
            if now_s - engine.since_s > _FAREWELL_S:
                ray.kill(self._farewells.pop(ref).actor)

    def _spare(self, draining: frozenset[str]) -> None:
        """Give nothing new to engines whose machine will go; those that still load there start elsewhere."""
        going = [engine for engine in self._engines if engine.place and engine.place.node_id in draining]
        for engine in going:
            if not engine.is_ready:
                _log.info("the machine of the worker at %s will go: another loads its model elsewhere", engine.place)
                self._dismiss(engine)
            elif not engine.is_leaving:
                _log.info("the machine of the worker at %s will go: it gets nothing new", engine.place)
                engine.is_leaving = True
                self._roster.rest(engine)

    def _dismiss(self, engine: _Engine) -> None:
        """Stop an engine that has no task, once what it still writes is written."""
        self._forget(engine)
        if engine.is_ready:
            self._roster.leave(engine)
            engine.since_s = time.monotonic()
            self._farewells[engine.actor.close.remote()] = engine
        else:
            ray.kill(engine.actor)

    def _warn_if_stuck(self, now_s: float) -> None:
        if not self._roster.num_waiting or any(engine.place for engine in self._engines):
            self._quiet_since_s = now_s
        elif now_s - self._quiet_since_s > _PATIENCE_S:
            self._quiet_since_s = now_s
            _log.warning(
                "no worker for %.0f s; each needs pool.num_cpus: %s and pool.num_gpus: %s, and free now are: %s",
                _PATIENCE_S, self._settings.num_cpus, self._settings.num_gpus, free_resources(),
            )  # fmt: skip


def _is_preempted(engine: _Engine, error: RayError) -> bool:
    """Whether an engine was lost with its machine, of which Ray had been told that it would go. Ray itself says so only
    where the machine outlived the time that it was given, to the millisecond."""
    return engine.is_leaving or (isinstance(error, RayActorError) and error.preempted)


def _in_short(reason: str) -> str:
    """What Ray says of a death, on one line, without its advice and the actor's particulars."""
    lines = reason.partition(" Some common causes")[0].splitlines()
    return " ".join(line.strip() for line in lines if not line.startswith("\t"))
