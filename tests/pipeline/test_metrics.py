"""Metrics: what is declared, what a run records, and what Prometheus finds at a node of a real Ray."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from cache_store.store import StoreCounters, TieredStore
from cache_store.tiers.memory import MemoryTier
from configs.schema import Job
from pipeline.commit import Totals
from pipeline.directory import open_directory
from pipeline.driver import Attempt
from pipeline.errands import Extent, FreshParts
from pipeline.ledger import FinishedPart
from pipeline.loop import Loop
from pipeline.pool import PoolState
from pipeline.telemetry.metrics import MAX_ERRORS, MetricsWatch
from pipeline.telemetry.watch import Moment
from tests.cache_store.blocks import make_block
from tests.deploy.test_grafana import BOARD, values_named
from tests.docs.pages import ROOT, table_rows
from tests.pipeline import hosts
from tests.pipeline.fakes import prepared
from tests.pipeline.jobs import Bench
from tests.pipeline.scrape import SERIES, Sample, scrape, total
from tests.pipeline.test_cluster import drive
from workers import metrics
from workers.metrics import METRICS, Meter, Metric, StoreTeller

LENGTHS = [700, 0, 900, 300, 1500, 40]


class Recorded(Meter):
    """Remembers everything."""

    def __init__(self) -> None:
        self.sums: Counter[tuple[str, ...]] = Counter()
        self.gauges: dict[tuple[str, ...], float] = {}
        self.observed: Counter[tuple[str, ...]] = Counter()

    def add(self, metric: Metric, amount: float, *labels: str) -> None:
        assert metric.kind == "counter" and len(labels) == len(metric.tags) and amount > 0
        self.sums[metric.name, *labels] += amount  # type: ignore[assignment]

    def set(self, metric: Metric, value: float, *labels: str) -> None:
        assert metric.kind == "gauge" and len(labels) == len(metric.tags)
        self.gauges[metric.name, *labels] = value

    def observe(self, metric: Metric, value: float, *labels: str) -> None:
        assert metric.kind == "histogram" and len(labels) == len(metric.tags)
        self.observed[metric.name, *labels] += 1


def test_every_metric_is_declared_once_and_as_prometheus_wants_it() -> None:
    assert {id(m) for m in vars(metrics).values() if isinstance(m, Metric)} == {id(m) for m in METRICS}
    assert len({metric.name for metric in METRICS}) == len(METRICS)
    for metric in METRICS:
        assert metric.name.startswith("foveate_") and metric.help
        assert metric.name.endswith("_total") == (metric.kind == "counter")
        assert bool(metric.buckets) == (metric.kind == "histogram")
        assert list(metric.buckets) == sorted(set(metric.buckets)) and all(bound > 0 for bound in metric.buckets)


def test_the_page_lists_every_metric() -> None:
    rows = table_rows(ROOT / "docs" / "observability.md", "### Every metric")[1:]
    assert [row[:3] for row in rows] == [
        [f"`ray_{m.name}`", m.kind, ", ".join(f"`{tag}`" for tag in m.tags) or "none"] for m in METRICS
    ]


def watched(job: Job, meter: Meter) -> Attempt:
    """Run ``job`` here, with metrics."""
    attempt = Attempt.begin(job, open_directory)
    plan = attempt.state.plan
    with attempt.pool() as pool:
        loop = Loop(
            attempt.reader,
            pool,
            batch_size=job.answer.batch_size,
            chunk_tokens=job.read.chunk_tokens,
            total=Extent(len(plan.parts), plan.rows, plan.tokens),
            done=Extent(0, 0, 0),
            watch=MetricsWatch(meter),
        )
        loop.run(FreshParts(attempt.state, attempt.corpus, keep=False))
    return attempt


def test_counters_are_what_the_commit_records_say(tmp_path: Path, tiny_model: Path) -> None:
    bench, meter = Bench(tmp_path, tiny_model, LENGTHS), Recorded()
    attempt = watched(bench.job(), meter)
    totals, sums = Totals.of(attempt.state.committed().values()), meter.sums
    assert sums["foveate_commits_total",] == totals.parts > 1
    documents = {status: sums["foveate_documents_total", status] for status in ("answered", "failed", "partly")}
    assert documents == {"answered": 5, "failed": 1, "partly": 0}
    assert sums["foveate_questions_total", "answered", ""] == totals.answered
    errors = {key[2]: count for key, count in sums.items() if key[:2] == ("foveate_questions_total", "failed")}
    assert errors == totals.errors and errors
    assert sums["foveate_tokens_total", "read"] == totals.document_tokens
    assert sums["foveate_tokens_total", "generated"] == totals.generated_tokens
    assert meter.observed["foveate_relevance_kept",] == totals.answered
    assert sums["foveate_seconds_total", "encode"] == pytest.approx(totals.seconds_encode)
    for stage in ("encode", "answer", "prepare", "choose", "commit"):
        assert meter.observed["foveate_task_seconds", stage] and sums["foveate_seconds_total", stage] > 0
    assert sums["foveate_driver_seconds_total", "busy"] > 0 and sums["foveate_driver_seconds_total", "waiting"] > 0
    assert meter.gauges["foveate_run_documents", "done"] == meter.gauges["foveate_run_documents", "all"] == 6
    assert meter.gauges["foveate_run_tokens", "done"] == meter.gauges["foveate_run_tokens", "all"]
    assert (meter.gauges["foveate_tasks", "waiting"], meter.gauges["foveate_tasks", "running"]) == (0, 0)


def test_lost_workers_are_counted_once_each() -> None:
    meter = Recorded()
    watch = MetricsWatch(meter)
    for lost in ({}, {"died": 2}, {"died": 2, "hung": 1}, {"died": 3, "hung": 1}):
        pool = PoolState(num_waiting=3, num_running=4, num_ready=2, num_starting=1, lost=lost)
        watch.turned(0.0, lambda pool=pool: Moment(pool, 10, 1, 2, 3, 4))  # type: ignore[misc]
        watch.close(None)
    assert {key: count for key, count in meter.sums.items() if key[0] == metrics.LOST.name} == {
        (metrics.LOST.name, "died"): 3,
        (metrics.LOST.name, "hung"): 1,
    }
    assert meter.gauges[metrics.TASKS.name, "waiting"] == 13
    assert meter.gauges[metrics.ENGINES.name, "starting"] == 1


def test_the_labels_of_errors_are_limited() -> None:
    meter, names = Recorded(), [f"Error{n}" for n in range(MAX_ERRORS + 20)]
    watch = MetricsWatch(meter)
    for index, name in enumerate([*names, names[0]]):
        [failure] = prepared(index, num_unfit=1).failures
        failure = type(failure)(**{**vars(failure), "error": name})
        watch.committed(FinishedPart(index, (), (failure,), 1, 1, ()))
    watch.close(None)
    labels = {key[2]: count for key, count in meter.sums.items() if key[0] == metrics.QUESTIONS.name}
    assert len(labels) == MAX_ERRORS + 1 and labels["other"] == 20 and labels["Error0"] == 2


def test_a_store_is_told_of_as_what_came_since() -> None:
    first, second = make_block(0), make_block(1)
    store, meter = TieredStore([MemoryTier(first.num_bytes, "memory")]), Recorded()
    teller = StoreTeller(meter, lambda: store.counters)
    store.get(first.key)
    store.put(first)
    store.get(first.key)
    teller.tell()
    teller.tell()
    assert meter.sums == {(metrics.STORE_MISSES.name,): 1, (metrics.STORE_HITS.name, "memory"): 1}
    assert meter.gauges == {(metrics.STORE_BYTES.name, "memory"): first.num_bytes}
    store.put(second)
    teller.tell_sometimes()
    assert (metrics.STORE_EVENTS.name, "evictions") not in meter.sums, "told a moment ago"
    teller.tell()
    assert meter.sums[metrics.STORE_EVENTS.name, "evictions"] == 1
    assert isinstance(store.counters, StoreCounters)


def test_a_local_run_imports_neither_ray_nor_opentelemetry(tmp_path: Path, tiny_model: Path) -> None:
    bench = Bench(tmp_path, tiny_model, [300])
    file = bench.write_job(bench.job())
    program = (
        "import sys; from configs.load import load_job; from pipeline import driver\n"
        f"driver.run(load_job({str(file)!r}))\n"
        "print([name for name in ('ray', 'opentelemetry') if name in sys.modules])"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FOVEATE_")}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "[]\n", done.stderr


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """URL at which a Ray of this module's own exports metrics, every second."""
    import ray

    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    with pytest.MonkeyPatch.context() as patch, socket.socket() as probe:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        patch.delenv("RAY_ADDRESS", raising=False)
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        try:
            ray.init(
                address="local",
                num_cpus=2,
                include_dashboard=False,
                log_to_driver=False,
                logging_level="ERROR",
                _temp_dir=folder,
                _metrics_export_port=port,
                _system_config={"metrics_report_interval_ms": 1000},
            )
            [node] = ray.nodes()
            yield f"http://{node['NodeManagerAddress']}:{port}/metrics"
        finally:
            ray.shutdown()
            shutil.rmtree(folder, ignore_errors=True)


def scraped(url: str, totals: Totals) -> list[Sample]:
    """A scrape in which everything has arrived: each process reports every second, and once more when it ends."""
    patience_s = time.monotonic() + 120
    tokens = totals.document_tokens + totals.generated_tokens
    while True:
        samples = scrape(url)
        missing = SERIES.keys() - {sample.name for sample in samples}
        counted = (total(samples, metrics.COMMITS), total(samples, metrics.TOKENS))
        found = total(samples, metrics.STORE_HITS, tier="files") > 0
        if not missing and counted == (totals.parts, tokens) and found:
            return samples
        assert time.monotonic() < patience_s, f"missing: {missing}, {counted} of {(totals.parts, tokens)}, {found}"
        time.sleep(0.5)


@pytest.mark.cluster
def test_prometheus_finds_every_metric_with_its_labels_and_the_values_of_the_run(
    tmp_path: Path, tiny_model: Path, endpoint: str
) -> None:
    """Kept pairs in a memory of almost no size and in files: engines look for them, and find them in both."""
    tiers = [{"kind": "memory", "max_bytes": "30KiB"}, {"kind": "files", "path": str(tmp_path / "kept")}]
    job = Bench(tmp_path, tiny_model, LENGTHS).job(
        pool={"kind": "ray", "workers": 2}, store={"tiers": tiers}, answer={"over": "kept", "batch_size": 3}
    )
    attempt = drive(job, hosts.DyingHost)
    totals = Totals.of(attempt.state.committed().values())
    samples = scraped(endpoint, totals)
    assert {sample.name for sample in samples} == SERIES.keys()
    assert all(sample.labels.keys() == SERIES[sample.name] for sample in samples)
    assert total(samples, metrics.DOCUMENTS, status="answered") == 5
    assert total(samples, metrics.DOCUMENTS, status="failed") == 1
    assert total(samples, metrics.QUESTIONS, outcome="answered", error="") == totals.answered
    for error, count in totals.errors.items():
        assert total(samples, metrics.QUESTIONS, outcome="failed", error=error) == count
    assert total(samples, metrics.RELEVANCE) == totals.answered
    assert total(samples, metrics.TOKENS, phase="generated") == totals.generated_tokens
    assert total(samples, metrics.LOST) == total(samples, metrics.LOST, cause="died") == 1
    there = {(sample.name, *label) for sample in samples for label in sample.labels.items()}
    assert values_named(BOARD) <= there and values_named(BOARD)
    assert total(samples, metrics.STORE_MISSES) > 0
    assert {sample.labels["tier"] for sample in samples if "store_bytes" in sample.name} == {"memory", "files"}
