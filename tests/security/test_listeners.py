"""What a run opens to the network: nothing, and with a Ray of its own only what this machine alone can reach."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.pipeline.jobs import Bench
from tests.security.sockets import Listener, listeners, marked

DASHBOARD_PORT = 8265


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "::1", "::"])
def test_a_listener_is_seen_where_it_is(host: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as server:
        server.bind((host, 0))
        server.listen()
        port = server.getsockname()[1]
        (found,) = [one for one in listeners(os.getpid()) if one.port == port]
    assert (found.address, found.is_loopback) == (host, host in ("127.0.0.1", "::1"))
    assert not [one for one in listeners(os.getpid()) if one.port == port]


@pytest.fixture
def ray_folder() -> Iterator[str]:
    """Where a Ray of this test's own puts its sockets: their paths must be short."""
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def heard_of(command: list[str], environment: dict[str, str]) -> set[Listener]:
    """Run a command to its good end; everything that it or a process that it began ever listened on."""
    mark = f"FOVEATE_TEST_MARK={uuid.uuid4().hex}"
    name, _, value = mark.partition("=")
    found: set[Listener] = set()
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(command, env={**environment, name: value}, stdout=said, stderr=said)
        try:
            while process.poll() is None:
                found |= {one for number in marked(mark) for one in listeners(number)}
                time.sleep(0.5)
        finally:
            process.kill()
            process.wait()
        said.seek(0)
        assert process.returncode == 0, said.read()
    return found


def run_command(bench: Bench, **changes: object) -> list[str]:
    return [sys.executable, "-m", "pipeline", "run", str(bench.write_job(bench.job(**changes)))]


@pytest.fixture
def environment() -> dict[str, str]:
    """As a user has it, without what says where a Ray is."""
    drop = ("RAY_ADDRESS", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER")
    return {name: value for name, value in os.environ.items() if name not in drop}


def test_a_local_run_opens_nothing(tmp_path: Path, tiny_model: Path, environment: dict[str, str]) -> None:
    assert heard_of(run_command(Bench(tmp_path, tiny_model, [900, 300])), environment) == set()


@pytest.mark.cluster
def test_a_ray_of_our_own_serves_this_machine_alone(
    tmp_path: Path, tiny_model: Path, environment: dict[str, str], ray_folder: str
) -> None:
    """Seen are GCS, raylet, agents and workers: without them the look was too short."""
    pool = {"kind": "ray", "workers": 1, "address": "local"}
    command = run_command(Bench(tmp_path, tiny_model, [900, 300]), pool=pool)
    found = heard_of(command, {**environment, "RAY_TMPDIR": ray_folder})
    assert {"gcs_server", "raylet"} <= {one.command for one in found} and len(found) >= 6
    assert DASHBOARD_PORT not in {one.port for one in found}
    assert not sorted(one for one in found if not one.is_loopback)
