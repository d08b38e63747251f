"""Metrics of a run, as its driver sees it.

Invariants: documents, questions and relevance are counted when their part is committed, so these counters are what
the commit records of this start say; sums are kept here and go to the meter about once a second, so an event costs the
driver a few dictionary entries; the classes of error that get a label of their own are limited in number.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable

from pipeline.ledger import FinishedPart
from pipeline.pool import Result
from pipeline.telemetry.watch import Moment, Watch
from workers import metrics
from workers.messages import Answered, Ask, Encode, Encoded
from workers.metrics import Meter, Metric

INTERVAL_S = 1.0
MAX_ERRORS = 30
"""Classes of error with a label of their own; what comes later is ``other``."""


class MetricsWatch(Watch):
    """Records what a loop does."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._sums: Counter[tuple[Metric, tuple[str, ...]]] = Counter()
        self._errors: set[str] = set()
        self._lost: Counter[str] = Counter()
        self._look: Callable[[], Moment] | None = None
        self._told_s = self._turned_s = time.perf_counter()

    def finished(self, task_id: int, task: Encode | Ask, result: Result) -> None:
        """Count tokens and engine seconds of what came back done."""
        if isinstance(result, Encoded) and isinstance(task, Encode):
            phase = "found" if result.cache_hits == len(task.chunks) else "read"
            self._add(metrics.TOKENS, sum(len(chunk.token_ids) for chunk in task.chunks), phase)
            self.spent("encode", result.seconds)
        elif isinstance(result, Answered):
            self._add(metrics.TOKENS, sum(answer.num_tokens for answer in result.answers), "generated")
            self.spent("answer", sum(answer.seconds for answer in result.answers))

    def spent(self, stage: str, seconds: float) -> None:
        """As ``Watch.spent``, and the engines' ``encode`` and ``answer``."""
        self._add(metrics.SECONDS, seconds, stage)
        self._meter.observe(metrics.TASK_SECONDS, seconds, stage)

    def turned(self, waited_s: float, look: Callable[[], Moment]) -> None:
        """Add up the driver's time; now and then tell all."""
        now_s = time.perf_counter()
        self._add(metrics.DRIVER_SECONDS, waited_s, "waiting")
        self._add(metrics.DRIVER_SECONDS, max(0.0, now_s - self._turned_s - waited_s), "busy")
        self._turned_s, self._look = now_s, look
        if now_s - self._told_s >= INTERVAL_S:
            self._tell()

    def committed(self, part: FinishedPart) -> None:
        """Count the outcomes of a part."""
        answered = Counter((answer.source_file, answer.source_row) for answer in part.answers)
        failed = Counter((failure.source_file, failure.source_row) for failure in part.failures)
        self._add(metrics.COMMITS, 1)
        self._add(metrics.DOCUMENTS, len(answered.keys() - failed.keys()), "answered")
        self._add(metrics.DOCUMENTS, len(failed.keys() - answered.keys()), "failed")
        self._add(metrics.DOCUMENTS, len(answered.keys() & failed.keys()), "partly")
        self._add(metrics.DOCUMENTS, part.num_documents - len(answered.keys() | failed.keys()), "unasked")
        self._add(metrics.QUESTIONS, len(part.answers), "answered", "")
        for error, count in Counter(failure.error for failure in part.failures).items():
            self._add(metrics.QUESTIONS, count, "failed", self._bounded(error))
        for answer in part.answers:
            self._meter.observe(metrics.RELEVANCE, answer.relevance_kept)

    def close(self, error: BaseException | None) -> None:
        """Tell the rest."""
        self._tell()

    def _add(self, metric: Metric, amount: float, *labels: str) -> None:
        self._sums[metric, labels] += amount  # type: ignore[assignment]  # a Counter adds floats as well

    def _bounded(self, error: str) -> str:
        if len(self._errors) < MAX_ERRORS:
            self._errors.add(error)
        return error if error in self._errors else "other"

    def _tell(self) -> None:
        self._told_s = time.perf_counter()
        sums, self._sums = self._sums, Counter()
        for (metric, labels), amount in sums.items():
            if amount > 0:
                self._meter.add(metric, amount, *labels)
        if self._look is not None:
            self._tell_moment(self._look())

    def _tell_moment(self, now: Moment) -> None:
        pool = now.pool
        gauges: Iterable[tuple[Metric, str, int]] = (
            (metrics.TASKS, "waiting", now.num_ready + pool.num_waiting),
            (metrics.TASKS, "running", pool.num_running),
            (metrics.ENGINES, "ready", pool.num_ready),
            (metrics.ENGINES, "starting", pool.num_starting),
            (metrics.RUN_DOCUMENTS, "done", now.documents),
            (metrics.RUN_DOCUMENTS, "all", now.documents_total),
            (metrics.RUN_TOKENS, "done", now.tokens),
            (metrics.RUN_TOKENS, "all", now.tokens_total),
        )
        for metric, label, value in gauges:
            self._meter.set(metric, value, label)
        for cause, count in pool.lost.items():
            if count > self._lost[cause]:
                self._meter.add(metrics.LOST, count - self._lost[cause], cause)
                self._lost[cause] = count
