"""Every metric that Foveate exports, each declared once, and what records them.

Invariants: labels have few values (no document, no question, no run is one); whoever records names a ``Metric`` of
this table and gives a value for each of its labels; a meter that records nothing is the default, so nobody asks
whether metrics are wanted. Ray puts ``ray_`` before each name and adds labels of its own (docs/observability.md).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Literal

from cache_store.store import StoreCounters

Kind = Literal["counter", "gauge", "histogram"]

_SECONDS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
_SHARES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


@dataclass(frozen=True, eq=False)
class Metric:
    """A metric as it is declared, equal to itself only. ``name``: without Ray's prefix, of a counter with ``_total``;
    ``tags``: its labels; ``buckets``: upper bounds, of a histogram."""

    name: str
    kind: Kind
    help: str
    tags: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


DOCUMENTS = Metric(
    "foveate_documents_total",
    "counter",
    "Documents committed: answered (all questions), partly, failed (none), unasked (it has no question)",
    ("status",),
)
QUESTIONS = Metric(
    "foveate_questions_total",
    "counter",
    "Questions committed: answered or failed, and then the class of error (of an answer: empty)",
    ("outcome", "error"),
)
COMMITS = Metric("foveate_commits_total", "counter", "Parts committed")
TOKENS = Metric(
    "foveate_tokens_total",
    "counter",
    "Tokens: read by an engine, found in the store instead, or generated",
    ("phase",),
)
SECONDS = Metric(
    "foveate_seconds_total",
    "counter",
    "Seconds of work: of engines (encode, answer), of the driver (prepare, choose, commit)",
    ("stage",),
)
TASK_SECONDS = Metric(
    "foveate_task_seconds",
    "histogram",
    "Seconds of one piece of work: a message of chunks, a batch of questions, a document, a part",
    ("stage",),
    _SECONDS,
)
DRIVER_SECONDS = Metric(
    "foveate_driver_seconds_total",
    "counter",
    "Seconds of the driver: busy, or waiting for engines",
    ("state",),
)
TASKS = Metric("foveate_tasks", "gauge", "Tasks that wait for an engine, or are in the hands of one", ("state",))
ENGINES = Metric("foveate_engines", "gauge", "Engines that are ready, or load their model", ("state",))
LOST = Metric("foveate_workers_lost_total", "counter", "Workers that were given up, and replaced", ("cause",))
RELEVANCE = Metric(
    "foveate_relevance_kept",
    "histogram",
    "Share of a question's relevance that the kept blocks hold; one for each answer",
    (),
    _SHARES,
)
RUN_DOCUMENTS = Metric("foveate_run_documents", "gauge", "Documents of the run: done (any start), or all", ("extent",))
RUN_TOKENS = Metric("foveate_run_tokens", "gauge", "Tokens of the run: done (any start), or all, guessed", ("extent",))
STORE_BYTES = Metric(
    "foveate_store_bytes",
    "gauge",
    "Bytes of kept entries that an engine knows of; of a tier that engines share, all know the same",
    ("tier",),
)
STORE_HITS = Metric("foveate_store_hits_total", "counter", "Entries that engines found in the store", ("tier",))
STORE_MISSES = Metric("foveate_store_misses_total", "counter", "Entries that engines looked for in vain")
STORE_EVENTS = Metric(
    "foveate_store_events_total", "counter", "What else happened in engines' stores, as StoreCounters", ("event",)
)

METRICS: tuple[Metric, ...] = (
    DOCUMENTS, QUESTIONS, COMMITS, TOKENS, SECONDS, TASK_SECONDS, DRIVER_SECONDS, TASKS, ENGINES, LOST, RELEVANCE,
    RUN_DOCUMENTS, RUN_TOKENS, STORE_BYTES, STORE_HITS, STORE_MISSES, STORE_EVENTS,
)  # fmt: skip


class Meter:
    """Takes values of metrics; this one throws them away. ``labels``: a value for each of ``metric.tags``, in order."""

    def add(self, metric: Metric, amount: float, *labels: str) -> None:
        """A counter grows, by more than 0."""

    def set(self, metric: Metric, value: float, *labels: str) -> None:
        """A gauge has this value now."""

    def observe(self, metric: Metric, value: float, *labels: str) -> None:
        """One more value of a histogram."""


_BY_TIER = {"hits", "num_bytes"}
_EVENTS = tuple(field.name for field in fields(StoreCounters) if field.name not in {*_BY_TIER, "misses"})
STORE_INTERVAL_S = 10.0
"""As often as Ray exports. Asking more often would be in vain, and a tier in Ray's memory asks over the network."""


class StoreTeller:
    """Tells a meter what became of one store since it was last asked."""

    def __init__(self, meter: Meter, counters: Callable[[], StoreCounters]) -> None:
        """``counters``: asks the store."""
        self._meter, self._counters = meter, counters
        self._told: dict[tuple[Metric, str], int] = {}
        self._told_s = float("-inf")

    def tell_sometimes(self) -> None:
        """``tell``, unless that was a moment ago."""
        if time.monotonic() - self._told_s >= STORE_INTERVAL_S:
            self.tell()

    def tell(self) -> None:
        """Bring the meter up to date."""
        now = self._counters()
        self._told_s = time.monotonic()
        self._grow(STORE_HITS, now.hits)
        self._grow(STORE_MISSES, {"": now.misses})
        self._grow(STORE_EVENTS, {event: getattr(now, event) for event in _EVENTS})
        for tier, num_bytes in now.num_bytes.items():
            self._meter.set(STORE_BYTES, num_bytes, tier)

    def _grow(self, metric: Metric, totals: Mapping[str, int]) -> None:
        for label, total in totals.items():
            grown = total - self._told.get((metric, label), 0)
            if grown:
                self._meter.add(metric, grown, *([label] if metric.tags else []))
                self._told[metric, label] = total
