"""The driver's loop: rows into the scheduler, tasks into the pool, finished parts to whoever commits them.

Invariants: rows are read only when the scheduler wants them, so memory does not grow with the corpus; the
next part's rows go in before the last part is done, so no worker idles at a border; leaving the loop early
leaves committed parts committed and everything else untouched.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from pipeline.errands import Errand, Extent, Row
from pipeline.errors import Interrupted, TooManyFailures
from pipeline.outcome import Failure
from pipeline.pool import TASKS_PER_WORKER, EnginePool
from pipeline.reading import DocumentReader
from pipeline.scheduler import OnRead, Scheduler

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
    ) -> None:
        """``done``: what earlier attempts have committed; ``report`` hears of every change."""
        self._reader = reader
        self._pool = pool
        self._num_slots = pool.num_workers * TASKS_PER_WORKER
        self._scheduler = Scheduler(
            reader,
            batch_size=batch_size,
            window_tokens=pool.num_workers * _WINDOW_CHUNKS_PER_WORKER * chunk_tokens,
            num_slots=self._num_slots,
            on_read=on_read,
        )
        self._total, self._done = total, done
        self._report = report or (lambda progress: None)
        self._stop = stop or StopRequest()
        self._in_pool = 0
        self._num_parts_done = 0
        self._seen_tokens = self._seen_bytes = 0
        self._all_seen = False
        self._started_s = time.monotonic()

    def run(self, errand: Errand, max_failed: int | None = None) -> None:
        """Work until the errand's rows are exhausted and every part is committed.

        Raises ``Interrupted`` when asked to stop, ``TooManyFailures`` when more than ``max_failed`` questions
        have failed, now and before, and whatever the errand raises.
        """
        self._stop.is_watched = True
        rows = errand.rows()
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
            self._submit()
            self._collect(0 if wanted else _WAIT_S)
            self._tell()
            self._refuse_too_many(max_failed)
            for part in self._scheduler.take_finished():
                errand.commit(part)
                self._pool.free(errand.unwanted(part))
                self._num_parts_done += 1
                self._tell()

    def _take(self, row: Row) -> None:
        if row.document is None:
            self._scheduler.close_part(row.part)
            return
        prepared = self._reader.prepare(row.document)
        self._seen_tokens += prepared.num_tokens
        self._seen_bytes += len(row.document.text.encode(errors="replace"))
        self._scheduler.add(row.part, prepared, row.only)

    def _submit(self) -> None:
        while self._in_pool < self._num_slots and (task := self._scheduler.next_task()) is not None:
            self._pool.submit(*task)
            self._in_pool += 1

    def _collect(self, timeout_s: float) -> None:
        """Take in what the pool has done."""
        finished = self._pool.wait(timeout_s) if self._in_pool else []
        for item in finished:
            self._in_pool -= 1
            self._scheduler.finish(item.task_id, item.result)

    def _refuse_too_many(self, max_failed: int | None) -> None:
        failed = self._done.failed + self._scheduler.num_failed
        if max_failed is not None and failed > max_failed:
            classes = ", ".join(f"{error} {count}" for error, count in self._scheduler.errors.most_common())
            raise TooManyFailures(
                f"{failed} questions failed ({classes or 'in earlier starts'}), and output.max_failed_fraction allows "
                f"{max_failed}{_where(self._scheduler.last_failure)}. Mend the cause or allow more, and run the same "
                "command again; what is committed stays"
            )

    def _tell(self) -> None:
        scheduler, done, total = self._scheduler, self._done, self._total
        unseen_bytes = (total.tokens - done.tokens) * _BYTES_PER_TOKEN - self._seen_bytes
        tokens_per_byte = self._seen_tokens / self._seen_bytes if self._seen_tokens else 1 / _BYTES_PER_TOKEN
        unseen_tokens = 0 if self._all_seen else round(max(0, unseen_bytes) * tokens_per_byte)
        self._report(
            Progress(
                parts=done.parts + self._num_parts_done,
                parts_total=total.parts,
                documents=done.documents + scheduler.num_documents_done,
                documents_total=total.documents,
                tokens=done.read_tokens + scheduler.encoded_tokens,
                tokens_total=done.read_tokens + self._seen_tokens + unseen_tokens,
                failed=done.failed + scheduler.num_failed,
                elapsed_s=time.monotonic() - self._started_s,
            )
        )


def _where(failure: Failure | None) -> str:
    """The last failure as an example, with its place."""
    if failure is None:
        return ""
    return f"; the last one: {failure.source_file} row {failure.source_row}: {failure.error}: {failure.message}"
