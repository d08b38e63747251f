"""When engines come and go: on need, when idle, when they hang, when their machine must go."""

from __future__ import annotations

import logging
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster

from configs.schema import RayWorkers
from pipeline import starts
from pipeline.cluster import RayPool
from pipeline.errors import WorkersUnavailable
from pipeline.pool import Finished, WorkerLost
from tests.cache_store.clusters import STORE_BYTES, ray_cluster
from tests.pipeline.waiters import DeadStart, SlowStart, Wait, Waiter

pytestmark = pytest.mark.cluster

WaiterPool = RayPool[Wait, int]
PATIENCE_S = 100.0


@pytest.fixture(scope="module")
def head() -> Iterator[Cluster]:
    """A head without CPUs for anybody."""
    with ray_cluster(num_cpus=0) as cluster:
        yield cluster


@pytest.fixture
def cluster(head: Cluster) -> Iterator[Cluster]:
    """The head and a node with two CPUs. They go with the test: Ray lists a killed node as alive for 13 s."""
    head.add_node(num_cpus=2, object_store_memory=STORE_BYTES)
    yield head
    for node in list(head.worker_nodes):
        head.remove_node(node)  # type: ignore[no-untyped-call]
    end_s = time.monotonic() + PATIENCE_S
    while left := nodes_with_cpus():
        assert time.monotonic() < end_s, left
        time.sleep(0.1)


def pool_of(make: Callable[[], Waiter] = Waiter, **settings: Any) -> WaiterPool:
    return RayPool(make, RayWorkers(**{"workers": 2, "idle_seconds": 1, **settings}))


class Tasks:
    """Tasks that end when they are told to. Who does which is the pool's affair: engines that are ready at the same
    moment are given tasks in turn, one that is ready first gets the first ones."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def wait(self, name: str) -> Wait:
        return Wait(self._folder / f"{name}.end", self._folder / f"{name}.begun")

    def end(self, *names: str) -> None:
        for name in names:
            self.wait(name).path.touch()

    def begun(self) -> set[str]:
        return {path.stem for path in self._folder.glob("*.begun")}


@pytest.fixture
def tasks(tmp_path: Path) -> Tasks:
    return Tasks(tmp_path)


def until(pool: WaiterPool, holds: Callable[[list[Finished[int]]], bool]) -> list[Finished[int]]:
    """What comes back until ``holds`` says that it is enough."""
    finished: list[Finished[int]] = []
    end_s = time.monotonic() + PATIENCE_S
    while not holds(finished):
        assert time.monotonic() < end_s, f"{pool.state}, {finished}"
        finished += pool.wait(0.1)
    return finished


def alive(process: int) -> bool:
    stat = Path(f"/proc/{process}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


def test_an_idle_engine_is_stopped_while_another_works_and_comes_again_on_need(cluster: Cluster, tasks: Tasks) -> None:
    tasks.end("before", "again")
    with pool_of(idle_seconds=3) as pool:
        assert pool.state.num_starting == 0, "nothing is started before there is work"
        for task_id in (-1, -2, -3, -4):
            pool.submit(task_id, tasks.wait("before"))
        until(pool, lambda finished: len(finished) == 4 and pool.state.num_ready == 2)
        pool.submit(1, tasks.wait("short"))
        pool.submit(2, tasks.wait("long"))
        tasks.end("short")
        [short] = until(pool, lambda finished: len(finished) == 1)
        assert (short.task_id, pool.state.num_ready) == (1, 2)
        until(pool, lambda _: pool.state.num_ready == 1)
        until(pool, lambda _: not alive(short.result))  # type: ignore[arg-type]
        until(pool, lambda _: ray.available_resources().get("CPU") == 1)  # type: ignore[no-untyped-call]
        pool.submit(3, tasks.wait("again"))
        pool.submit(4, tasks.wait("again"))
        tasks.end("long")
        finished = until(pool, lambda finished: len(finished) == 3)
        assert {item.task_id for item in finished} == {2, 3, 4}
        assert not pool.state.lost, "an engine that was not needed is not lost"
        until(pool, lambda _: pool.state.num_ready == 0)
        until(pool, lambda _: ray.available_resources().get("CPU") == 2)  # type: ignore[no-untyped-call]


def test_engines_that_wait_for_a_machine_are_let_go_when_their_work_is_done_by_others(
    cluster: Cluster, tasks: Tasks
) -> None:
    with pool_of(workers=6) as pool:
        for task_id in range(6):
            pool.submit(task_id, tasks.wait(str(task_id)))
        until(pool, lambda _: pool.state.num_ready == 2)
        assert pool.state.num_starting >= 2, "one for each task that nobody has room for"
        until(pool, lambda _: len(tasks.begun()) == 2)
        slow = min(tasks.begun())

        def all_others_end(finished: list[Finished[int]]) -> bool:
            tasks.end(*tasks.begun() - {slow})
            return len(finished) == 4

        until(pool, all_others_end)
        until(pool, lambda _: pool.state.num_starting == 0)
        assert pool.state.num_running == 2, "one works, with a task behind it"
        tasks.end(*"012345")
        until(pool, lambda finished: len(finished) == 2)


def test_a_hung_engine_is_replaced_and_only_its_running_task_is_to_blame(cluster: Cluster, tasks: Tasks) -> None:
    with pool_of(workers=1, task_seconds=1) as pool:
        pool.submit(1, tasks.wait("never"))
        pool.submit(2, tasks.wait("behind"))
        running, behind = until(pool, lambda finished: len(finished) == 2)
        assert (running.task_id, behind.task_id) == (1, 2)
        assert isinstance(running.result, WorkerLost) and isinstance(behind.result, WorkerLost)
        assert (running.result.started, behind.result.started) == (True, False)
        assert "no result within 1 s (pool.task_seconds: 1)" in running.result.why
        assert pool.state.lost == {"hung": 1}
        tasks.end("never", "behind")
        pool.submit(2, tasks.wait("behind"))
        pool.submit(1, tasks.wait("never"))
        again = until(pool, lambda finished: len(finished) == 2)
        assert all(alive(item.result) for item in again if isinstance(item.result, int))
        assert {item.task_id for item in again} == {1, 2}


def test_an_engine_that_hangs_while_it_loads_is_replaced_and_in_the_end_the_run_says_why(
    cluster: Cluster, tasks: Tasks, tmp_path: Path
) -> None:
    slow = SlowStart(tmp_path / "loaded", tmp_path / "loading")
    with pool_of(slow, workers=1, start_seconds=1) as pool:
        pool.submit(1, tasks.wait("any"))
        with pytest.raises(WorkersUnavailable, match=r"its model was not loaded within pool\.start_seconds: 1"):
            until(pool, lambda finished: bool(finished))
    assert len(slow.processes()) == 3
    assert len(set(slow.processes())) == 3


def test_a_machine_that_must_go_ends_what_it_has_and_gets_nothing_new(cluster: Cluster, tasks: Tasks) -> None:
    with pool_of(workers=3, idle_seconds=60) as pool:
        for task_id in range(5):
            pool.submit(task_id, tasks.wait(str(task_id)))
        until(pool, lambda _: len(tasks.begun()) == 2)
        [going] = nodes_with_cpus()
        cluster.add_node(num_cpus=2, object_store_memory=STORE_BYTES)
        until(pool, lambda _: len(tasks.begun()) == 3)
        drain(cluster, going)
        tasks.end(*"01234")
        finished = until(pool, lambda finished: len(finished) == 5)
        assert all(isinstance(item.result, int) for item in finished), "nothing was lost"
        tasks_by_process = Counter(item.result for item in finished)
        assert sorted(tasks_by_process.values()) == [1, 2, 2]
        until(pool, lambda _: pool.state.num_ready == 1)
        tasks.end("5", "6")
        pool.submit(5, tasks.wait("5"))
        pool.submit(6, tasks.wait("6"))
        later = until(pool, lambda finished: len(finished) == 2)
        assert {item.result for item in later} == {min(tasks_by_process, key=tasks_by_process.__getitem__)}
        assert not pool.state.lost


def test_an_engine_that_loads_on_a_machine_that_must_go_starts_elsewhere(
    cluster: Cluster, tasks: Tasks, tmp_path: Path
) -> None:
    slow = SlowStart(tmp_path / "loaded", tmp_path / "loading")
    with pool_of(slow, workers=1) as pool:
        pool.submit(1, tasks.wait("any"))
        until(pool, lambda _: slow.begun.exists())
        [first] = slow.processes()
        [going] = nodes_with_cpus()
        cluster.add_node(num_cpus=2, object_store_memory=STORE_BYTES)
        drain(cluster, going)
        until(pool, lambda _: len(slow.processes()) == 2)
        tasks.end("any")
        slow.path.touch()
        [done] = until(pool, lambda finished: len(finished) == 1)
        assert done.result == slow.processes()[1]
        assert not alive(first)
        assert not pool.state.lost, "it had nothing to lose"


def test_a_machine_that_vanishes_while_many_load_on_it_is_one_failure_to_start(
    cluster: Cluster, tasks: Tasks, tmp_path: Path
) -> None:
    slow = SlowStart(tmp_path / "loaded", tmp_path / "loading")
    going = cluster.add_node(num_cpus=3, object_store_memory=STORE_BYTES)
    with pool_of(slow, workers=5) as pool:
        for task_id in range(5):
            pool.submit(task_id, tasks.wait("any"))
        until(pool, lambda _: slow.begun.exists() and len(slow.processes()) == 5)
        cluster.remove_node(going, allow_graceful=False)  # type: ignore[no-untyped-call]
        until(pool, lambda _: pool.state.lost.get("died at its start") == 3)
        tasks.end("any")
        slow.path.touch()
        finished = until(pool, lambda finished: len(finished) == 5)
        assert {item.result for item in finished} <= set(slow.processes())


def test_engines_that_die_whenever_they_load_end_the_run_with_the_reason(
    cluster: Cluster, tasks: Tasks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(starts, "_FIRST_PAUSE_S", 0.05)
    with pool_of(DeadStart(), workers=2) as pool:
        pool.submit(1, tasks.wait("any"))
        with pytest.raises(WorkersUnavailable, match=r"5 times in a row workers could not start .* The actor died"):
            until(pool, lambda finished: bool(finished))


def test_a_machine_that_goes_before_its_time_is_nobodys_fault(
    cluster: Cluster, tasks: Tasks, caplog: pytest.LogCaptureFixture
) -> None:
    with pool_of(workers=1) as pool:
        pool.submit(1, tasks.wait("running"))
        pool.submit(2, tasks.wait("behind"))
        until(pool, lambda _: "running" in tasks.begun())
        [going] = nodes_with_cpus()
        cluster.add_node(num_cpus=2, object_store_memory=STORE_BYTES)
        drain(cluster, going)
        with caplog.at_level(logging.INFO, logger="pipeline.cluster"):
            until(pool, lambda _: "it gets nothing new" in caplog.text)
        kill(cluster, going)
        lost = until(pool, lambda finished: len(finished) == 2)
        assert [(item.task_id, isinstance(item.result, WorkerLost) and item.result.started) for item in lost] == [
            (1, False),
            (2, False),
        ]
        assert pool.state.lost == {"preempted": 1}


def nodes_with_cpus() -> list[dict[str, Any]]:
    """As Ray lists them."""
    return [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]


def kill(cluster: Cluster, node: dict[str, Any]) -> None:
    """A node vanishes, as a machine without power."""
    [process] = [process for process in cluster.worker_nodes if process.node_id == node["NodeID"]]
    cluster.remove_node(process, allow_graceful=False)  # type: ignore[no-untyped-call]


def drain(cluster: Cluster, node: dict[str, Any]) -> None:
    """Tell a node that it will be taken away in ten minutes, as the cloud tells a spot machine's."""
    command = ["drain-node", "--address", cluster.address, "--node-id", node["NodeID"]]
    reasons = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "wanted elsewhere"]
    deadline = ["--deadline-remaining-seconds", "600"]
    ray_program = [sys.executable, "-m", "ray.scripts.scripts"]
    subprocess.run([*ray_program, *command, *deadline, *reasons], check=True, capture_output=True)
