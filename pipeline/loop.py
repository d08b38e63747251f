"""The driver's loop: rows into the scheduler, tasks into the pool, finished parts to whoever commits them.

Invariants: rows are read only when the scheduler wants them, so memory does not grow with the corpus; the
next part's rows go in before the last part is done, so no worker idles at a border; leaving the loop early
leaves committed parts committed and everything else untouched.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass

from pipeline.ahead import Coming, prepared_ahead
from pipeline.errands import NOTHING, Errand, Extent
from pipeline.errors import Interrupted, TooManyFailures
from pipeline.ledger import FinishedPart
from pipeline.outcome import Failure
from pipeline.pool import EnginePool
from pipeline.reading import DocumentReader
from pipeline.scheduler import OnRead, Scheduler
from pipeline.telemetry.watch import Moment, TimedReader, Watch
from workers.messages import Ask, Encode

_WAIT_S = 0.2
_BYTES_PER_TOKEN = 4
_WINDOW_CHUNKS_PER_WORKER = 8


class StopRequest:
    """A wish to stop, set by a signal handler or another thread; the loop looks at it often."""

    def __init__(self) -> None:
        self._wished = threading.Event()

    def set(self) -> None:
        """Ask the run to stop."""
        self._wished.set()

    is_watched = False
    """Whether a loop looks at it yet. Before that nothing is begun, and an interrupt may end the process."""

    @property
    def is_set(self) -> bool:
        """Whether somebody asked."""
        return self._wished.is_set()


@dataclass(frozen=True)
class Progress:
    """Where a run is. ``tokens_total`` is an estimate that ends exact; ``failed`` counts questions."""

    parts: int
    parts_total: int
    documents: int
    documents_total: int
    tokens: int
    tokens_total: int
    failed: int
    elapsed_s: float


class Loop:
    """Works through an errand. One use: ``run``."""

    def __init__(
        self,
        reader: DocumentReader,
        pool: EnginePool,
        *,
        batch_size: int,
        chunk_tokens: int,
        total: Extent,
        done: Extent,
        report: Callable[[Progress], None] | None = None,
        stop: StopRequest | None = None,
        on_read: OnRead | None = None,
        watch: Watch | None = None,
        least_window_tokens: int = 0,
        prepare_threads: int = 0,
    ) -> None:
        """``done``: what earlier attempts have committed; ``report`` hears of every change, ``watch`` of every step.
        ``least_window_tokens``: so much is read in ahead of the workers, whatever they need; ``prepare_threads`` as
        ``prepared_ahead`` has it."""
        self._watch = watch or Watch()
        self._reader = TimedReader(reader, self._watch)
        self._pool = pool
        self._num_slots = pool.max_tasks
        self._scheduler = Scheduler(
            self._reader,
            batch_size=batch_size,
            window_tokens=max(least_window_tokens, pool.num_workers * _WINDOW_CHUNKS_PER_WORKER * chunk_tokens),
            num_slots=self._num_slots,
            on_read=on_read,
        )
        self._total, self._before, self._elsewhere, self._done = total, done, NOTHING, done
        self._report = report or (lambda progress: None)
        self._stop = stop or StopRequest()
        self._prepare_threads = prepare_threads
        self._in_pool: dict[int, Encode | Ask] = {}
        self._num_parts_done = 0
        self._seen_tokens = self._seen_bytes = 0
        self._all_seen = False
        self._started_s = time.monotonic()

    def run(self, errand: Errand, max_failed: int | None = None) -> None:
        """Work until the errand's rows are exhausted and every part is committed.

        Raises ``Interrupted`` when asked to stop, ``TooManyFailures`` when more than ``max_failed`` questions
        have failed, now and before, and whatever the errand raises.
        """
        with self._watch:
            self._run(errand, max_failed)

    def _run(self, errand: Errand, max_failed: int | None) -> None:
        self._stop.is_watched = True
        with closing(prepared_ahead(errand.rows(), self._reader.prepare, self._prepare_threads)) as rows:
            self._work_through(errand, rows, max_failed)

    def _work_through(self, errand: Errand, rows: Generator[Coming], max_failed: int | None) -> None:
        upcoming = next(rows, None)
        self._tell()
        while upcoming is not None or not self._scheduler.idle:
            if self._stop.is_set:
                raise Interrupted("stopped before the end; the same command resumes")
            wanted = upcoming is not None and self._scheduler.wants_rows
            if wanted and upcoming is not None:
                self._take(upcoming)
                upcoming = next(rows, None)
                self._all_seen = upcoming is None
            if errand.elsewhere is not self._elsewhere:
                self._elsewhere = errand.elsewhere
                self._done = self._before + self._elsewhere
            self._submit()
            self._collect(0 if wanted else _WAIT_S)
            self._tell()
            self._refuse_too_many(max_failed)
            for part in self._scheduler.take_finished():
                self._commit(errand, part)
                self._pool.free(errand.unwanted(part))
                self._num_parts_done += 1
                self._tell()

    def _take(self, coming: Coming) -> None:
        row = coming.row
        if coming.prepare is None:
            self._scheduler.close_part(row.part)
            return
        preparation = coming.prepare()
        prepared = preparation.prepared
        self._watch.spent("prepare", preparation.seconds)
        self._seen_tokens += prepared.num_tokens
        self._seen_bytes += len(prepared.document.text.encode(errors="replace"))
        self._scheduler.add(row.part, prepared, row.only)
        self._watch.took(row.part, prepared)

    def _submit(self) -> None:
        while len(self._in_pool) < self._num_slots and (next_task := self._scheduler.next_task()) is not None:
            task_id, task = next_task
            self._pool.submit(task_id, task)
            self._in_pool[task_id] = task
            self._watch.submitted(task_id, task)

    def _collect(self, timeout_s: float) -> None:
        """Take in what the pool has done."""
        started_s = time.perf_counter()
        finished = self._pool.wait(timeout_s) if self._in_pool else []
        waited_s = time.perf_counter() - started_s
        for item in finished:
            self._watch.finished(item.task_id, self._in_pool.pop(item.task_id), item.result)
            self._scheduler.finish(item.task_id, item.result)
        self._watch.turned(waited_s, self._moment)

    def _commit(self, errand: Errand, part: FinishedPart) -> None:
        started_s = time.perf_counter()
        is_ours = errand.commit(part)
        self._watch.spent("commit", time.perf_counter() - started_s)
        if is_ours:
            self._watch.committed(part)

    def _refuse_too_many(self, max_failed: int | None) -> None:
        failed = self._done.failed + self._scheduler.num_failed
        if max_failed is not None and failed > max_failed:
            classes = ", ".join(f"{error} {count}" for error, count in self._scheduler.errors.most_common())
            raise TooManyFailures(
                f"{failed} questions failed ({classes or 'in earlier starts'}), and output.max_failed_fraction allows "
                f"{max_failed}{_where(self._scheduler.last_failure)}. Mend the cause or allow more, and run the same "
                "command again; what is committed stays"
            )

    def _moment(self) -> Moment:
        now = self._progress()
        return Moment(
            pool=self._pool.state,
            num_ready=self._scheduler.num_ready,
            documents=now.documents,
            documents_total=now.documents_total,
            tokens=now.tokens,
            tokens_total=now.tokens_total,
        )

    def _tell(self) -> None:
        self._report(self._progress())

    def _progress(self) -> Progress:
        scheduler, done, total = self._scheduler, self._done, self._total
        unseen_bytes = (total.tokens - done.tokens) * _BYTES_PER_TOKEN - self._seen_bytes
        tokens_per_byte = self._seen_tokens / self._seen_bytes if self._seen_tokens else 1 / _BYTES_PER_TOKEN
        unseen_tokens = 0 if self._all_seen else round(max(0, unseen_bytes) * tokens_per_byte)
        return Progress(
            parts=done.parts + self._num_parts_done,
            parts_total=total.parts,
            documents=done.documents + scheduler.num_documents_done,
            documents_total=total.documents,
            tokens=done.read_tokens + scheduler.encoded_tokens,
            tokens_total=done.read_tokens + self._seen_tokens + unseen_tokens,
            failed=done.failed + scheduler.num_failed,
            elapsed_s=time.monotonic() - self._started_s,
        )


def _where(failure: Failure | None) -> str:
    """The last failure as an example, with its place."""
    if failure is None:
        return ""
    return f"; the last one: {failure.source_file} row {failure.source_row}: {failure.error}: {failure.message}"
