"""``foveate evaluate``: items are made, tried by all methods on all workers, and written down as they come.

    DIR/trials/ITEM.json   what came of one item, written when it is done
    DIR/results.parquet    all rows: also a checkpoint, for a machine that has only this file
    DIR/results.md, *.svg  tables and plots

Invariants: a row is known by a digest of everything that decides it (method, budget, prompt, weights, item), so the
same command goes on where it stopped, a changed method is tried anew, and nothing else is; the order of trials is
fixed, first items of all tasks first, so that half an evaluation is a smaller one.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

from blake3 import blake3

from configs.evaluation import Evaluation
from pipeline.errors import JobError
from pipeline.evaluation.results import Result, read_results, write_results
from pipeline.evaluation.tasks.base import Item
from pipeline.evaluation.tasks.sizer import Sizer
from pipeline.evaluation.tasks.table import make_items
from pipeline.evaluation.trial import Bench, Trial, Tried
from pipeline.pool import TASKS_PER_WORKER, LocalPool, Pool, WorkerLost
from workers.loading import load_model, load_profile, load_reading
from workers.messages import WorkError
from workers.method import needs_profile

_log = logging.getLogger(__name__)

Key = tuple[str, int | None]
"""A method's name and its budget."""
MAX_LOSSES = 3
"""Workers that may be lost over one trial."""


@dataclass(frozen=True)
class Plan:
    """What is to be tried, and what is known already. ``digests[item][key]``: what a row must have been made of."""

    trials: tuple[Trial, ...]
    known: tuple[Result, ...]
    digests: Mapping[str, Mapping[Key, str]]


def evaluate(evaluation: Evaluation) -> list[Result]:
    """Try all that is not known yet; all rows, in the order of items and methods. Raises ``JobError`` for items that
    cannot be made and for trials that failed (the others stay), ``ModelError`` and ``BackendUnavailable`` as a run."""
    directory = Path(evaluation.output.path)
    reading = load_reading(evaluation.job(evaluation.methods[0], None))
    items = _items(evaluation)
    plan = _plan(evaluation, reading.source.weights, items, _known(directory))
    _log.info("%d items, %d of them still to be tried", len(items), len(plan.trials))
    failed = []
    if plan.trials:
        with _pool(evaluation) as pool:
            failed = _try_all(pool, plan, directory)
    plan = _plan(evaluation, reading.source.weights, items, _known(directory))
    rows = sorted(plan.known, key=_order(evaluation, items))
    write_results(directory / "results.parquet", rows)
    if failed:
        raise JobError(f"{len(failed)} of {len(items)} items failed; the same command tries them again: {failed[0]}")
    return rows


def load_bench(evaluation: Evaluation) -> Bench:
    """What a worker needs: the model, loaded, and its retrieval heads where a method wants them."""
    job = evaluation.job(evaluation.methods[0], None)
    reading = load_reading(job)
    wants = any(needs_profile(evaluation.job(method, None).keep) for method in evaluation.methods)
    profile = load_profile(job, reading) if wants else None
    return Bench(evaluation, reading, load_model(job.model, reading.source, reading.frame), profile)


def _items(evaluation: Evaluation) -> list[Item]:
    """All items; the first of all tasks and lengths, then the second, and so on."""
    try:
        made = list(make_items(evaluation.tasks, Sizer.of(evaluation.base), evaluation.counts, evaluation.seed))
    except ValueError as error:
        raise JobError(str(error)) from error
    place: dict[tuple[str, int], int] = {}
    ranked = []
    for item in made:
        rank = place[item.task, item.length] = place.get((item.task, item.length), -1) + 1
        ranked.append((rank, item))
    return [item for _, item in sorted(ranked, key=lambda pair: (pair[0], pair[1].length))]


def _plan(evaluation: Evaluation, weights: str, items: list[Item], known: Iterable[Result]) -> Plan:
    """What is left to try, and the rows that stand."""
    methods = {
        (method.name, budget): (method, _digest(evaluation.job(method, budget).model_dump(mode="json"), weights))
        for method in evaluation.methods
        for budget in evaluation.budgets_of(method)
    }
    rows = {(row.item, row.method, row.budget): row for row in known}
    digests: dict[str, dict[Key, str]] = {}
    trials: list[Trial] = []
    standing: list[Result] = []
    seen: dict[tuple[str, int], int] = {}
    for item in items:
        rank = seen[item.task, item.length] = seen.get((item.task, item.length), -1) + 1
        compares = rank < evaluation.fidelity_items
        wanted = {
            key: _digest(digest, asdict(item), compares, evaluation.share_reading)
            for key, (method, digest) in methods.items()
            if rank < (method.max_items or rank + 1) and item.length <= (method.max_length or item.length)
        }
        digests[item.id] = wanted
        done = {key: row for key in wanted if (row := rows.get((item.id, *key))) and row.settings == wanted[key]}
        standing += done.values()
        # What was refused may be possible by now: a gate is trained, a head map found.
        done = {key: row for key, row in done.items() if row.error is None}
        if missing := tuple(key for key in wanted if key not in done):
            trials.append(Trial(item, missing, compares))
    return Plan(tuple(trials), tuple(standing), digests)


def _digest(*parts: object) -> str:
    return blake3(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:32]


def _known(directory: Path) -> Iterator[Result]:
    """Rows of earlier runs; what was written last counts."""
    if (table := directory / "results.parquet").is_file():
        yield from read_results(table)
    for path in sorted((directory / "trials").glob("*.json")):
        yield from (Result(**row) for row in json.loads(path.read_text()))


def _pool(evaluation: Evaluation) -> Pool[Trial, Tried]:
    make_bench = partial(load_bench, evaluation)
    if evaluation.pool.kind == "local":
        return LocalPool(make_bench, evaluation.pool.workers)
    from pipeline.cluster import RayPool  # no Ray without a Ray pool

    return RayPool(make_bench, evaluation.pool)


def _try_all(pool: Pool[Trial, Tried], plan: Plan, directory: Path) -> list[str]:
    """Run the trials, a few at a time, and write down each; the reasons of those that failed."""
    started_s = time.monotonic()
    waiting = list(enumerate(plan.trials))[::-1]
    running: dict[int, Trial] = {}
    losses: dict[int, int] = {}
    failed: list[str] = []
    while waiting or running:
        while waiting and len(running) < TASKS_PER_WORKER * pool.num_workers:
            index, trial = waiting.pop()
            running[index] = trial
            pool.submit(index, trial)
        for finished in pool.wait(60.0):
            trial = running.pop(finished.task_id)
            match finished.result:
                case Tried(results):
                    _write(directory, trial, results, plan.digests[trial.item.id])
                case WorkError(error=error, message=message):
                    failed.append(f"{trial.item.id}: {error}: {message}")
                case WorkerLost():
                    losses[finished.task_id] = losses.get(finished.task_id, 0) + 1
                    if losses[finished.task_id] < MAX_LOSSES:
                        waiting.append((finished.task_id, trial))
                    else:
                        failed.append(f"{trial.item.id}: {MAX_LOSSES} workers were lost over it")
            done = len(plan.trials) - len(waiting) - len(running)
            left_s = (time.monotonic() - started_s) / max(1, done) * (len(plan.trials) - done)
            _log.info("%s done, %d of %d; about %.0f min left", trial.item.id, done, len(plan.trials), left_s / 60)
    return failed


def _write(directory: Path, trial: Trial, results: Iterable[Result], digests: Mapping[Key, str]) -> None:
    """An item's rows beside those that earlier runs wrote, the whole file or nothing."""
    path = directory / "trials" / f"{trial.item.id}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    before = json.loads(path.read_text()) if path.is_file() else []
    rows = [asdict(replace(row, settings=digests[row.method, row.budget])) for row in results]
    made = {(row["method"], row["budget"]) for row in rows}
    kept = [row for row in before if (row["method"], row["budget"]) not in made]
    staged = path.with_suffix(".unfinished")
    staged.write_text(json.dumps([*kept, *rows], indent=1) + "\n")
    staged.replace(path)


def _order(evaluation: Evaluation, items: list[Item]) -> Callable[[Result], tuple[int, ...]]:
    """Rows by task, length, item, method and budget, as the evaluation names them."""
    tasks = {task.label: index for index, task in enumerate(evaluation.tasks)}
    methods = {method.name: index for index, method in enumerate(evaluation.methods)}
    places = {item.id: index for index, item in enumerate(items)}
    return lambda row: (
        tasks.get(row.task, len(tasks)), row.length, places[row.item], methods[row.method], row.budget or 0,
    )  # fmt: skip
