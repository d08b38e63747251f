"""``foveate evaluate``: items are made, tried by all methods on all workers, and written down as they come.

Invariants: the same command goes on where it stopped, a changed method is tried anew, and nothing else is; the order
of trials is fixed, first items of all tasks first, so that half an evaluation is a smaller one; a stop ends between
trials and loses none.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

from configs.evaluation import Evaluation
from pipeline.errors import JobError
from pipeline.evaluation.checkpoint import Checkpoint
from pipeline.evaluation.identity import Identity, Key
from pipeline.evaluation.results import Result
from pipeline.evaluation.tasks.base import Item
from pipeline.evaluation.tasks.sizer import Sizer
from pipeline.evaluation.tasks.table import make_items
from pipeline.evaluation.trial import Bench, Trial, Tried
from pipeline.loop import StopRequest
from pipeline.pool import LocalPool, Pool, WorkerLost
from pipeline.traits import Traits
from workers.loading import Reading, load_model, load_profile, load_reading, with_dtype
from workers.messages import WorkError
from workers.method import needs_profile
from workers.selection.profile import Profile

_log = logging.getLogger(__name__)

MAX_LOSSES = 3
"""Workers that may be lost over one trial."""
_GLANCE_S = 1.0
"""How often a wish to stop is looked for."""


@dataclass(frozen=True)
class Evaluated:
    """What is known of an evaluation. ``rows``: in the order of its tasks, lengths, items and methods; ``items``: how
    many it has; ``left``: of how many rows are missing; ``failures``: why, of those that were tried now and failed."""

    rows: tuple[Result, ...]
    items: int
    left: int
    failures: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Sheet:
    """An item's rows: what each must have been made of, those there are, and what is still to be tried."""

    item: Item
    digests: dict[Key, str]
    rows: tuple[Result, ...]
    trial: Trial | None


def evaluate(evaluation: Evaluation, stop: StopRequest | None = None, *, tries: bool = True) -> Evaluated:
    """Try all that is not known yet (nothing without ``tries``), and publish all rows that are. Raises ``JobError`` for
    items that cannot be made and a directory that cannot be used; ``ModelError`` and ``BackendUnavailable`` as a run.
    """
    checkpoint = Checkpoint(evaluation.output.path)
    items = _items(evaluation)
    evaluation = _settled(evaluation)
    reading = load_reading(evaluation.job(evaluation.methods[0], None))
    profile = _profile(evaluation, reading)
    identity = Identity(evaluation, reading, profile)
    sheets = _sheets(evaluation, items, identity, checkpoint)
    todo = [sheet for sheet in sheets if sheet.trial is not None]
    _log.info("%d items, %d of them still to be tried", len(items), len(todo))
    failures: list[str] = []
    if todo and tries:
        with _pool(evaluation, profile) as pool:
            failures = _Trials(pool, todo, checkpoint, stop or StopRequest()).run()
        sheets = _sheets(evaluation, items, identity, checkpoint)
    rows = sorted((row for sheet in sheets for row in sheet.rows), key=_order(evaluation, items))
    if rows:
        checkpoint.publish(rows)
    return Evaluated(tuple(rows), len(items), sum(sheet.trial is not None for sheet in sheets), tuple(failures))


def load_bench(evaluation: Evaluation, profile: Profile | None) -> Bench:
    """What a worker needs: the model, loaded, and its retrieval heads where a method wants them."""
    job = evaluation.job(evaluation.methods[0], None)
    reading = load_reading(job)
    return Bench(evaluation, reading, load_model(job.model, reading.source, reading.frame), profile)


def _settled(evaluation: Evaluation) -> Evaluation:
    """With ``model.dtype: auto`` settled for all workers, as a run settles it."""
    job = evaluation.job(evaluation.methods[0], None).model_copy(update={"pool": evaluation.pool})
    base = evaluation.base.model_copy(update={"model": with_dtype(job).model})
    return evaluation.model_copy(update={"base": base})


def _profile(evaluation: Evaluation, reading: Reading) -> Profile | None:
    """Retrieval heads, found once and here, where any method wants them."""
    wanting = (evaluation.job(method, None) for method in evaluation.methods if method.baseline is None)
    return next((load_profile(job, reading) for job in wanting if needs_profile(job.keep)), None)


def _items(evaluation: Evaluation) -> list[Item]:
    """All items; the first of all tasks and lengths, then the second, and so on."""
    try:
        made = list(make_items(evaluation.tasks, Sizer.of(evaluation.base), evaluation.counts, evaluation.seed))
    except ValueError as error:
        raise JobError(str(error)) from error
    return [item for _, item in sorted(_ranked(made), key=lambda pair: (pair[0], pair[1].length))]


def _ranked(items: list[Item]) -> Iterator[tuple[int, Item]]:
    """Each item and its place among those of its task and length."""
    seen: dict[tuple[str, int], int] = {}
    for item in items:
        rank = seen[item.task, item.length] = seen.get((item.task, item.length), -1) + 1
        yield rank, item


def _sheets(evaluation: Evaluation, items: list[Item], identity: Identity, checkpoint: Checkpoint) -> list[_Sheet]:
    """What is known of each item, and what is left to try."""
    known = {(row.item, row.method, row.budget, row.settings): row for row in checkpoint.rows()}
    methods = {method.name: method for method in evaluation.methods}
    sheets = []
    for rank, item in _ranked(items):
        compares = rank < evaluation.fidelity_items
        digests = {
            key: digest
            for key, digest in identity.of(item, compares=compares).items()
            if methods[key[0]].tries(rank, item.length)
        }
        found = {key: known.get((item.id, *key, digest)) for key, digest in digests.items()}
        missing = tuple(key for key, row in found.items() if row is None)
        rows = tuple(row for row in found.values() if row is not None)
        sheets.append(_Sheet(item, digests, rows, Trial(item, missing, compares) if missing else None))
    return sheets


def _pool(evaluation: Evaluation, profile: Profile | None) -> Pool[Trial, Tried]:
    make_bench = partial(load_bench, evaluation, profile)
    if evaluation.pool.kind == "local":
        return LocalPool(make_bench, evaluation.pool.workers)
    from pipeline.cluster import RayPool  # no Ray without a Ray pool

    return RayPool(make_bench, evaluation.pool, traits=lambda trial: Traits(len(trial.contenders)))


class _Trials:
    """Runs trials on a pool and writes each down. One to a worker and none waiting behind it: they take seconds to
    minutes, and a stop waits for those that are begun."""

    def __init__(
        self, pool: Pool[Trial, Tried], sheets: list[_Sheet], checkpoint: Checkpoint, stop: StopRequest
    ) -> None:
        self._pool = pool
        self._sheets = dict(enumerate(sheets))
        self._checkpoint = checkpoint
        self._stop = stop
        self._losses = dict.fromkeys(self._sheets, 0)
        self._done = 0
        self.failures: list[str] = []

    def run(self) -> list[str]:
        """Try everything, or until asked to stop; the reasons of what failed."""
        self._stop.is_watched = True
        started_s = time.monotonic()
        waiting, running = list(self._sheets)[::-1], set[int]()
        while running or (waiting and not self._stop.is_set):
            while waiting and len(running) < self._pool.num_workers and not self._stop.is_set:
                index = waiting.pop()
                running.add(index)
                trial = self._sheets[index].trial
                assert trial is not None
                self._pool.submit(index, trial)
            for finished in self._pool.wait(_GLANCE_S):
                running.remove(finished.task_id)
                if self._again(finished.task_id, finished.result):
                    waiting.append(finished.task_id)
                    continue
                self._done += 1
                left_s = (time.monotonic() - started_s) / self._done * (len(self._sheets) - self._done)
                name = self._sheets[finished.task_id].item.id
                _log.info("%s, %d of %d; about %.0f min left", name, self._done, len(self._sheets), left_s / 60)
        return self.failures

    def _again(self, index: int, result: Tried | WorkError | WorkerLost) -> bool:
        """Take a result; whether the trial must be run again."""
        sheet = self._sheets[index]
        match result:
            case Tried(results):
                rows = [replace(row, settings=sheet.digests[row.method, row.budget]) for row in results]
                self._checkpoint.add(sheet.item.id, rows)
            case WorkError(error=error, message=message):
                self.failures.append(f"{sheet.item.id}: {error}: {message}")
            case WorkerLost(started=started):
                self._losses[index] += started
                if self._losses[index] < MAX_LOSSES:
                    return True
                self.failures.append(f"{sheet.item.id}: {MAX_LOSSES} workers were lost over it")
        return False


def _order(evaluation: Evaluation, items: list[Item]) -> Callable[[Result], tuple[int, ...]]:
    """Rows by task, length, item, method and budget, as the evaluation names them."""
    tasks = {task.label: index for index, task in enumerate(evaluation.tasks)}
    methods = {method.name: index for index, method in enumerate(evaluation.methods)}
    places = {item.id: index for index, item in enumerate(items)}
    return lambda row: (
        tasks.get(row.task, len(tasks)), row.length, places[row.item], methods[row.method], row.budget or 0,
    )  # fmt: skip
