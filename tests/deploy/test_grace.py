"""A worker pod's last seconds, on a real node: started as KubeRay starts it, with our settings, told to end."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deploy.rendered import ray_cluster, templates, values
from tests.pipeline.nodes import free_ports

DRIVER = """
import os, pathlib, signal, sys
from configs.schema import RayWorkers
from pipeline.cluster import RayPool
from pipeline.joining import draining_nodes
from tests.pipeline.waiters import Wait, Waiter
address, node, folder = sys.argv[1], int(sys.argv[2]), pathlib.Path(sys.argv[3])
short, long = (Wait(folder / f"{name}.end", folder / f"{name}.begun") for name in ("short", "long"))
with RayPool(Waiter, RayWorkers(workers=1, address=address)) as pool:
    pool.submit(1, short)
    pool.submit(2, long)
    while not short.begun.exists():
        pool.wait(0.1)
    os.kill(node, signal.SIGTERM)
    finished = []
    while len(finished) < 2:
        finished += pool.wait(0.1)
        if draining_nodes():
            short.path.touch()
    for item in finished:
        print(item.task_id, "ended" if isinstance(item.result, int) else f"lost, to blame: {item.result.started}")
    print(pool.state.lost)
"""


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Address of a head, and a worker node that is the last command of a bash, as in a pod."""
    spot = {"name": "spot", "grace_seconds": 15}
    pod = templates(ray_cluster(values_=values(workers={"groups": [spot]}))["spec"])["spot"]["spec"]
    for variable in pod["containers"][0]["env"]:
        monkeypatch.setenv(variable["name"], variable["value"])
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    port, *others = free_ports(3)
    ray = f"{sys.executable} -m ray.scripts.scripts start --block --disable-usage-stats"
    head = f"{ray} --head --port={port} --num-cpus=0 --include-dashboard=false --temp-dir={folder}"
    worker = f"{ray} --address=127.0.0.1:{port} --num-cpus=1"
    nodes = []
    try:
        for command, agent in zip((head, worker), others, strict=True):
            line = f"ulimit -n 4096; {command} --dashboard-agent-listen-port={agent}"
            nodes.append(
                subprocess.Popen(["/bin/bash", "-c", "--", line], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            )
            wait_for_nodes(f"127.0.0.1:{port}", len(nodes), nodes[-1])
        yield f"127.0.0.1:{port}", nodes[-1]
    finally:
        for process in reversed(nodes):
            process.terminate()
            process.wait(timeout=60)
        shutil.rmtree(folder, ignore_errors=True)


def wait_for_nodes(address: str, count: int, process: subprocess.Popen[bytes]) -> None:
    """Until Ray at ``address`` knows so many nodes."""
    program = f"import ray; ray.init('{address}', log_to_driver=False); print(len(ray.nodes()))"
    while process.poll() is None:
        asked = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
        if asked.stdout.strip() == str(count):
            return
    raise AssertionError(f"ray start ended with {process.returncode}")


@pytest.mark.cluster
def test_a_pod_that_must_go_finishes_its_chunk_and_is_not_blamed(
    node: tuple[str, subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    address, worker = node
    arguments = [address, str(worker.pid), str(tmp_path)]
    done = subprocess.run([sys.executable, "-c", DRIVER, *arguments], capture_output=True, text=True, env=os.environ)
    assert done.stdout.splitlines() == ["1 ended", "2 lost, to blame: False", "{'preempted': 1}"], done.stderr[-2000:]
    worker.wait(timeout=60)
