"""Ray clusters of several nodes on this machine, and drivers of jobs on them, for tests that kill either.

Invariants: a cluster has ports and a short folder of its own, and leaves nothing behind; the test's own process joins
none, so it outlives whatever it does to them.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster

from configs.schema import Job
from pipeline import cli, cluster, driver
from tests.pipeline import drivers

STORE_BYTES = 100 * 2**20
"""Of each node's object store: about the least that Ray allows."""
NOTHING: Mapping[str, str] = {}
PATIENCE_S = 120.0


class Nodes:
    """A head, whose CPUs are for nobody, and nodes for workers. A node is known by its raylet's process id."""

    def __init__(self, folder: str, num_cpus: int, gcs_patience_s: int) -> None:
        self._num_cpus = num_cpus
        self._num_started = 0
        self._cluster: Any = Cluster()
        port, agent = free_ports(2)
        self._cluster.add_node(
            temp_dir=folder,
            num_cpus=0,
            gcs_server_port=port,
            dashboard_agent_listen_port=agent,
            object_store_memory=STORE_BYTES,
            include_dashboard=False,
            _system_config={"gcs_rpc_server_reconnect_timeout_s": gcs_patience_s},
        )

    @property
    def address(self) -> str:
        """Where drivers join."""
        return str(self._cluster.address)

    @property
    def raylets(self) -> list[int]:
        """The nodes for workers that are there."""
        return [_raylet(node) for node in self._cluster.worker_nodes]

    def add(self) -> None:
        """Start another node for workers. It has an address of its own: no driver takes it for its own node."""
        self._num_started += 1
        there = f"127.0.{1 + self._num_started // 250}.{1 + self._num_started % 250}"
        settings = {"num_cpus": self._num_cpus, "object_store_memory": STORE_BYTES, "node_ip_address": there}
        self._cluster.add_node(wait=False, **settings)

    def vanish(self, raylet: int) -> None:
        """Kill all of a node's processes at once, as happens to a machine that loses power."""
        for process in (raylet, *children(raylet)):
            kill(process)
        self.bury(raylet)

    def bury(self, raylet: int) -> None:
        """Clear away what is left of a node whose raylet was killed, and expect it no more."""
        self._cluster.remove_node(self._node(raylet), allow_graceful=False)

    def kill_gcs(self) -> None:
        """Kill the process that knows the cluster."""
        self._cluster.head_node.kill_gcs_server()

    def start_gcs(self) -> None:
        """Start it again, where it was."""
        self._cluster.head_node.start_gcs_server()

    def close(self) -> None:
        """End what is left of it."""
        self._cluster.shutdown()

    def _node(self, raylet: int) -> Any:
        [node] = [node for node in self._cluster.worker_nodes if _raylet(node) == raylet]
        return node


@contextmanager
def nodes(
    num_workers: int, *, num_cpus: int = 1, gcs_patience_s: int = 60, environment: Mapping[str, str] = NOTHING
) -> Iterator[Nodes]:
    """A cluster with so many nodes for workers. ``gcs_patience_s``: how long all processes wait for one that does not
    answer (Ray's own default is 60); ``environment``: further variables of the cluster's processes."""
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"RAY_AUTH_MODE": "disabled", **environment}.items():
            patch.setenv(name, value)
        patch.delenv("RAY_ADDRESS", raising=False)
        made = None
        try:
            made = Nodes(folder, num_cpus, gcs_patience_s)
            for _ in range(num_workers):
                made.add()
            yield made
        finally:
            if made is not None:
                made.close()
            shutil.rmtree(folder, ignore_errors=True)


def free_ports(count: int) -> list[int]:
    """Ports that nobody uses now."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def drive(job: Job, host: type) -> None:
    """Run ``job`` with actors of class ``host``."""
    with _hosted(host):
        driver.run(job)


def drive_command(job_file: Path, host: type) -> None:
    """The same as the command line does it, for signals."""
    with _hosted(host):
        cli.main(["run", str(job_file)])


@contextmanager
def driving(work: Callable[..., None], *arguments: Any) -> Iterator[BaseProcess]:
    """``work`` in a process of its own, which does not outlive this context."""
    process = drivers.start(work, *arguments)
    try:
        yield process
    finally:
        process.kill()
        process.join()


@contextmanager
def _hosted(host: type) -> Iterator[None]:
    actors: Any = ray.remote(max_restarts=0, max_task_retries=0)(host)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cluster, "RayPool", partial(cluster.RayPool, actor_class=actors))
        yield


def children(process: int) -> list[int]:
    """Process ids of its children; none where it is gone."""
    found: list[int] = []
    with suppress(OSError):
        for task in Path(f"/proc/{process}/task").iterdir():
            found += map(int, (task / "children").read_text().split())
    return found


def processes_with(setting: str) -> list[str]:
    """Command lines of processes that were started with ``NAME=VALUE`` in their environment."""
    there = [folder for folder in Path("/proc").glob("[0-9]*") if setting in read_proc(folder / "environ")]
    return [read_proc(folder / "cmdline").replace("\0", " ")[:120] for folder in there]


def read_proc(path: Path | str) -> str:
    """A file of /proc; nothing where the process is gone."""
    with suppress(OSError):
        return Path(path).read_text(errors="replace")
    return ""


def kill(process: int) -> None:
    """SIGKILL it, where it still is."""
    with suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)


def eventually(happens: Callable[[], bool]) -> None:
    """Wait for it, as long as it takes on a busy machine."""
    until_s = time.monotonic() + PATIENCE_S
    while not happens():
        assert time.monotonic() < until_s, f"not within {PATIENCE_S:.0f} s"
        time.sleep(0.05)


def _raylet(node: Any) -> int:
    [process] = node.all_processes["raylet"]
    return int(process.process.pid)
