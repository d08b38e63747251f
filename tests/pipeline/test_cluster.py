"""Engines as Ray actors: the rows of a local run, whoever dies on the way."""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import ray

from configs.schema import Job
from pipeline.cluster import RayPool
from pipeline.directory import open_directory
from pipeline.driver import Attempt, run
from pipeline.errands import FreshParts
from pipeline.errors import WorkersUnavailable
from pipeline.status import read_status
from tests.pipeline import drivers, hosts
from tests.pipeline.jobs import Bench, by_question
from workers.loading import load_engine

pytestmark = pytest.mark.cluster

LENGTHS = [700, 0, 900, 300, 1500, 40]
CHUNKS = sum(-(-length // 128) for length in LENGTHS)
RAY = {"kind": "ray", "workers": 2}


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """A Ray of this module's own, with nothing left behind. Its socket paths must be short."""
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        patch.delenv("RAY_ADDRESS", raising=False)
        quiet = {"include_dashboard": False, "log_to_driver": False, "logging_level": "ERROR"}
        ray.init(address="local", num_cpus=4, _temp_dir=folder, **quiet)
        try:
            yield
        finally:
            ray.shutdown()
            shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Bench:
    return Bench(tmp_path_factory.mktemp("cluster"), tiny_model, LENGTHS)


@pytest.fixture(scope="module")
def local_rows(bench: Bench) -> list[dict[str, Any]]:
    run(bench.job("local"))
    return bench.rows("local")


def drive(job: Job, host: type) -> Attempt:
    """Run ``job`` with actors of class ``host``."""
    attempt = Attempt.begin(job, open_directory)
    assert attempt.job.pool.kind == "ray"
    actors = ray.remote(max_restarts=0, max_task_retries=0)(host)
    make_engine = partial(load_engine, attempt.job, attempt.profile)
    with RayPool(make_engine, attempt.job.pool, actors) as pool:
        attempt.loop(pool, None, None).run(FreshParts(attempt.state, attempt.corpus, keep=False))
    attempt.state.finish()
    return attempt


def encodes(job: Job) -> Counter[str]:
    """How often each chunk was begun."""
    return Counter(hosts.log_of(job).read_text().split())


def test_rows_equal_those_of_a_local_run(bench: Bench, local_rows: list[dict[str, Any]]) -> None:
    job = bench.job("ray", pool=RAY)
    run(job)
    assert bench.rows("ray") == local_rows
    assert ray.is_initialized(), "a cluster that was there before must stay"


def test_workers_share_kept_pairs_in_rays_memory_and_nothing_of_it_stays(bench: Bench) -> None:
    kept = {"answer": {"over": "kept", "batch_size": 3}}
    run(bench.job("kept-local", **kept))
    run(bench.job("kept-ray", pool=RAY, store={"tiers": [{"kind": "ray"}]}, **kept))
    assert bench.rows("kept-ray") == bench.rows("kept-local")
    assert not ray.util.list_named_actors(), "an actor of ours would keep its node"


def test_what_workers_write_behind_is_written_when_the_run_is_over(bench: Bench, tmp_path: Path) -> None:
    files = {"kind": "files", "path": str(tmp_path), "pending_bytes": "1GiB"}
    job = bench.job("behind", pool=RAY, store={"tiers": [{"kind": "memory"}, files], "keep": True})
    run(job)
    assert len(list(tmp_path.rglob("*.safetensors"))) == CHUNKS * len(job.questions)


def test_a_killed_worker_costs_only_what_it_held(bench: Bench, local_rows: list[dict[str, Any]]) -> None:
    job = bench.job("dying", pool=RAY)
    drive(job, hosts.DyingHost)
    assert bench.rows("dying") == local_rows
    assert encodes(job)["4#2"] == 2
    assert encodes(job).total() == CHUNKS + 1


def test_a_poison_document_is_quarantined(bench: Bench, local_rows: list[dict[str, Any]]) -> None:
    job = bench.job("poison", pool={**RAY, "workers": 1})
    drive(job, hosts.PoisonedHost)
    rows, clean = by_question(bench.rows("poison")), by_question(local_rows)
    assert rows.keys() == clean.keys()
    for key, row in rows.items():
        if key[0] == "doc4":
            assert (row["error"], row["retryable"], row["attempts"]) == ("Quarantined", True, 2)
        elif "answer" in row:
            assert row.keys() == clean[key].keys()
    assert encodes(job)["4#0"] == 2
    assert not encodes(job).keys() & {f"4#{index}" for index in range(2, CHUNKS)}


def test_a_worker_with_a_broken_device_is_replaced(bench: Bench, local_rows: list[dict[str, Any]]) -> None:
    job = bench.job("sick", pool=RAY)
    drive(job, hosts.SickHost)
    assert bench.rows("sick") == local_rows


def test_workers_that_cannot_start_end_the_run_with_the_reason(bench: Bench) -> None:
    job = bench.job("broken", pool={"kind": "ray", "workers": 1})
    with pytest.raises(WorkersUnavailable, match="no such model on this node"):
        drive(job, hosts.BrokenHost)
    assert read_status(open_directory(job.output.path)).totals.parts == 0


@pytest.mark.parametrize("address", ["127.0.0.1:1", "somewhere"])
def test_a_wrong_address_is_an_error_that_names_it(bench: Bench, address: str) -> None:
    """In a process without a cluster of its own."""
    process = drivers.start(drivers.expect_job_error, bench.job("nowhere", pool={**RAY, "address": address}), address)
    assert drivers.finish(process) == 0


def test_without_a_cluster_one_is_started_and_stopped(bench: Bench, local_rows: list[dict[str, Any]]) -> None:
    job = bench.job("alone", pool={**RAY, "workers": 1, "address": "local"})
    assert drivers.finish(drivers.start(drivers.drive_with_own_ray, job)) == 0
    assert bench.rows("alone") == local_rows
