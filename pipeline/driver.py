"""A job from beginning to end, and a second chance for its failures.

Invariants: nothing is done before the model, the corpus and the output directory were checked; the same
call on the same directory resumes; what is committed stays, whatever is raised; ``auto`` was resolved once,
before the first task, and what it became is part of the run's identity.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

from configs.load import identity_record, job_record
from configs.schema import Job
from pipeline.checking import Checked, check_answers
from pipeline.commit import Totals
from pipeline.corpus import CorpusFiles, open_corpus
from pipeline.directory import RunDirectory, existing_directory, open_directory
from pipeline.errands import NOTHING, WHOLE, Extent, FailedQuestions, FreshParts, Share
from pipeline.errors import DirectoryError
from pipeline.loop import Loop, Progress, StopRequest
from pipeline.objects import local_path
from pipeline.plan import make_plan, verify_unchanged
from pipeline.pool import EnginePool, LocalPool
from pipeline.reading import DocumentReader
from pipeline.records import ANSWERS, FAILURES, JOB, read_job
from pipeline.scheduler import OnRead
from pipeline.sink import RunState
from pipeline.telemetry.opening import refuse_unavailable, watch_of
from pipeline.traits import traits_of
from workers import logs
from workers.loading import (
    find_or_calibrate,
    load_engine,
    load_method,
    load_reading,
    resolve_runtime,
    with_dtype,
)
from workers.selection.profile import Profile

__all__ = ["Progress", "StopRequest", "Summary", "retry_failed", "run"]

FEW_FAILURES = 10
"""``output.max_failed_fraction`` speaks only once this many questions failed: one of three is no trend."""
PREPARE_THREADS = 4
"""More would wait for each other: a fifth of preparing holds Python's lock."""
_SHOWN_CHECKS = 1000

Report = Callable[[Progress], None]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Summary:
    """What a run came to. ``checked``: the first thousand answers with an expected one; ``num_checked`` and
    ``num_correct`` count them all. ``output`` is the run's directory, ``answers`` and ``failures`` lie in it; paths or
    URLs."""

    totals: Totals
    output: str
    answers: str
    failures: str
    checked: tuple[Checked, ...]
    num_checked: int
    num_correct: int
    elapsed_s: float


def run(
    job: Job,
    *,
    progress: Report | None = None,
    stop: StopRequest | None = None,
    on_read: OnRead | None = None,
    share: Share = WHOLE,
) -> Summary:
    """Run ``job``, or resume it where its output directory says it was begun. ``on_read`` hears of every message that
    this call reads or finds in the store; ``share`` says where it begins, beside other drivers of the same run.

    Raises ``JobError`` or ``ModelError`` for what the user must mend, ``TooManyFailures`` once more than
    ``output.max_failed_fraction`` of the planned questions (and, unless it is 0, at least ``FEW_FAILURES``) failed,
    ``Interrupted`` after ``stop``, ``OSError`` where saving failed. All but the first leave a directory that
    the same call resumes.
    """
    started_s = time.monotonic()
    attempt = Attempt.begin(job, open_directory)
    if not attempt.state.is_finished:
        errand = FreshParts(attempt.state, attempt.corpus, keep=job.store.keep, share=share)
        with attempt.state.farewell(), attempt.pool() as pool:
            attempt.loop(pool, progress, stop, on_read=on_read).run(errand, attempt.max_failed)
    attempt.state.finish()  # of a finished run too: a driver killed later may have left files that nobody names
    return attempt.summary(started_s)


def retry_failed(directory: str, *, progress: Report | None = None, stop: StopRequest | None = None) -> Summary:
    """Ask the retryable failures of the committed parts of ``directory`` again. Each part that had any gets a
    new revision: answers stay, old failures are replaced by new outcomes. Raises as ``run`` does."""
    started_s = time.monotonic()
    job = _stored_job(existing_directory(directory))
    job = job.model_copy(update={"output": job.output.model_copy(update={"path": directory})})
    attempt = Attempt.begin(job, existing_directory)
    errand = FailedQuestions(attempt.state, attempt.corpus, keep=job.store.keep)
    if errand.records:
        with attempt.state.farewell(), attempt.pool() as pool:
            attempt.loop(pool, progress, stop, errand.extent).run(errand)
    if attempt.state.is_finished:
        attempt.state.finish()
    return attempt.summary(started_s)


@dataclass(frozen=True)
class Attempt:
    """One process's attempt at a job: everything checked and opened, no engine started yet."""

    job: Job
    profile: Profile | None
    reader: DocumentReader
    corpus: CorpusFiles
    state: RunState

    @classmethod
    def begin(cls, job: Job, open_at: Callable[[str], RunDirectory]) -> Attempt:
        """Check model, corpus and directory, cheapest first, and claim an epoch of the run."""
        refuse_unavailable()
        reading = load_reading(job)
        corpus = open_corpus(job.corpus, job.questions)
        directory = open_at(job.output.path)
        settled = with_dtype(job)
        profile = find_or_calibrate(settled, reading)
        method = load_method(job, reading, profile)
        reader = DocumentReader(job, reading, method.scorer, method.budget)
        # What the model is, whatever the job called it: `auto` and its value are the same job.
        model = {
            "dtype": settled.model.dtype,
            "weights": reading.source.weights,
            "tokenizer": reading.source.tokenizer,
            "profile": profile.digest if profile else None,
            "scorer": method.scorer.record,
            "budget": method.budget.record,
            "reading": method.record,
        }
        identity = identity_record(job) | {"model": model}
        plan = partial(make_plan, corpus, job.output.part_tokens)
        state = RunState.start(directory, job_record(job), identity, plan)
        with state.farewell():
            verify_unchanged(state.plan, corpus)
        logs.known(epoch=state.epoch)
        attempt = cls(settled, profile, reader, corpus, state)
        attempt.say_what_auto_became()
        return attempt

    def say_what_auto_became(self) -> None:
        """What runs, on what, and how much of it is done already: one line each."""
        model, pool, plan = self.job.model, self.job.pool, self.state.plan
        if pool.kind == "local":
            runtime = resolve_runtime(model)
            where = f"{runtime.device}, {runtime.dtype}, attention {runtime.attention}"
        else:
            where = f"Ray, {pool.num_cpus:g} CPU and {pool.num_gpus:g} GPU each, {model.dtype}"
        _log.info("%s: %d %s on %s", model.source, pool.workers, "worker" if pool.workers == 1 else "workers", where)
        done = len(self.state.committed())
        _log.info("%d documents in %d parts, %d of them committed", plan.rows, len(plan.parts), done)

    def pool(self) -> EnginePool:
        """Engines as the job wants them, started."""
        settings, make_engine = self.job.pool, partial(load_engine, self.job, self.profile)
        if settings.kind == "local":
            return LocalPool(make_engine, settings.workers)
        _keep_to_this_machine(settings.address)
        from pipeline.cluster import RayPool  # no Ray without a Ray pool

        return RayPool(make_engine, settings, holds=self._ledger(), traits=traits_of)

    def _ledger(self) -> Callable[[], object] | None:
        """What opens the books of a store in Ray's memory, so that they outlive every worker; None without one."""
        if not any(tier.kind == "ray" for tier in self.job.store.tiers):
            return None
        from cache_store.tiers.object_store import open_ledger

        return open_ledger

    def loop(
        self,
        pool: EnginePool,
        progress: Report | None,
        stop: StopRequest | None,
        total: Extent | None = None,
        on_read: OnRead | None = None,
    ) -> Loop:
        """A loop over the parts that are not committed yet, with the others counted as done; or over ``total``."""
        plan = self.state.plan
        return Loop(
            self.reader,
            pool,
            batch_size=self.job.answer.batch_size,
            chunk_tokens=self.job.read.chunk_tokens,
            total=total or Extent(len(plan.parts), plan.rows, plan.tokens),
            done=NOTHING if total else Extent.of(plan.parts, self.state.committed()),
            report=progress,
            stop=stop,
            on_read=on_read,
            watch=watch_of(self.job, self.state.epoch),
            # a carried document is one task: a part of them at once, so that the longest can go first
            least_window_tokens=self.job.output.part_tokens if self.job.read.context == "carried" else 0,
            # engines in this process want its cores for themselves
            prepare_threads=PREPARE_THREADS if self.job.pool.kind == "ray" else 0,
        )

    @property
    def max_failed(self) -> int:
        """How many questions may fail before the run stops itself."""
        plan, corpus = self.state.plan, self.corpus
        own = plan.rows - plan.unasked if corpus.corpus.question is not None else 0
        questions = plan.rows * len(corpus.asked) + own
        allowed = self.job.output.max_failed_fraction
        return max(FEW_FAILURES - 1, int(allowed * questions)) if allowed else 0

    def summary(self, started_s: float) -> Summary:
        """What all attempts together came to, up to now."""
        output = self.job.output.path.rstrip("/")
        if "://" not in output:  # a Ray job runs in a copy of the directory it was sent from: say which
            output = str(local_path(output).absolute())
        checks = check_answers(self.state, self.corpus)
        shown = tuple(islice(checks, _SHOWN_CHECKS))
        num_checked, num_correct = len(shown), sum(check.correct for check in shown)
        for check in checks:
            num_checked += 1
            num_correct += check.correct
        return Summary(
            totals=Totals.of(self.state.committed().values()),
            output=output,
            answers=f"{output}/{ANSWERS}",
            failures=f"{output}/{FAILURES}",
            checked=shown,
            num_checked=num_checked,
            num_correct=num_correct,
            elapsed_s=time.monotonic() - started_s,
        )


def _keep_to_this_machine(address: str) -> None:
    """Let a Ray that this process starts listen on loopback only, instead of on every interface. Ray has one switch for
    it, made for macOS, and looks at it when it is imported. Who joins a cluster must be reachable from its machines."""
    joins = address not in ("auto", "local") or (address == "auto" and ("RAY_ADDRESS" in os.environ or _ray_is_here()))
    if not joins and "ray" not in sys.modules:
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")


def _ray_is_here() -> bool:
    """Whether a node of a cluster runs on this machine, which ``auto`` would join; found as Ray finds it."""
    for name in Path("/proc").glob("[0-9]*/comm"):
        with suppress(OSError):  # it has ended meanwhile
            if name.read_text().strip() in ("gcs_server", "raylet"):
                return True
    return False


def _stored_job(directory: RunDirectory) -> Job:
    stored, _ = read_job(directory)
    try:
        return Job.model_validate(stored)
    except ValueError as error:
        raise DirectoryError(f"{directory.url}: {JOB} is damaged or of another version: {error}") from error
