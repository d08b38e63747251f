"""A job sent to a Ray cluster with its directory, end to end."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from pipeline.driver import run
from pipeline.errors import JobError
from pipeline.submit import entrypoint, relative_to_working_directory, submit
from tests.pipeline.jobs import Bench

ROOT = Path(__file__).parents[2]
PACKAGES = ("configs", "cache_store", "workers", "pipeline")


def test_the_entrypoint_is_quoted_for_a_shell() -> None:
    command = entrypoint(Path("my jobs/job.yaml"), ["questions[0].text=Who's there?", "pool.workers=4"])
    assert command == (
        "python -m pipeline run 'my jobs/job.yaml' --set 'questions[0].text=Who'\"'\"'s there?' --set pool.workers=4"
    )


def test_a_job_file_outside_the_directory_that_is_sent_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here" / "jobs").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    assert relative_to_working_directory(Path("jobs/a.yaml")) == Path("jobs/a.yaml")
    assert relative_to_working_directory(tmp_path / "here" / "a.yaml") == Path("a.yaml")
    with pytest.raises(JobError, match="only this directory is sent"):
        relative_to_working_directory(Path("../a.yaml"))


def test_no_cluster_is_an_error_that_names_the_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(JobError, match=r"http://127\.0\.0\.1:1"):
        submit(Path("job.yaml"), "http://127.0.0.1:1")


def free_ports(count: int) -> list[int]:
    """Ports that nobody uses now."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@pytest.fixture
def dashboard(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """URL of the dashboard of a Ray head with ports and a folder of its own."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    ports = dict(
        zip(
            ("port", "dashboard-port", "ray-client-server-port", "dashboard-agent-listen-port"),
            free_ports(4),
            strict=True,
        )
    )
    options = [f"--{name}={port}" for name, port in ports.items()]
    command = ["ray.scripts.scripts", "start", "--head", "--block", "--num-cpus=2", f"--temp-dir={folder}"]
    head = subprocess.Popen(
        [sys.executable, "-m", *command, *options, "--include-dashboard=true", "--disable-usage-stats"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield wait_for_dashboard(f"http://127.0.0.1:{ports['dashboard-port']}", head)
    finally:
        head.terminate()
        head.wait(timeout=60)
        shutil.rmtree(folder, ignore_errors=True)


def wait_for_dashboard(url: str, head: subprocess.Popen[bytes]) -> str:
    """``url``, once a client can talk to it."""
    from ray.job_submission import JobSubmissionClient

    while head.poll() is None:
        try:
            JobSubmissionClient(url).list_jobs()
            return url
        except (ConnectionError, RuntimeError):
            continue
    raise AssertionError(f"ray start ended with {head.returncode}")


@pytest.mark.cluster
def test_a_submitted_job_runs_on_the_cluster_with_this_directory(
    tmp_path: Path, tiny_model: Path, dashboard: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(tmp_path, tiny_model, [300, 0, 500])
    run(bench.job("local"))
    sent = tmp_path / "sent"
    for package in PACKAGES:
        shutil.copytree(ROOT / package, sent / package, ignore=shutil.ignore_patterns("__pycache__"))
    job = bench.job("submitted", pool={"kind": "ray", "workers": 1})
    bench.write_job(job).rename(sent / "job.yaml")
    monkeypatch.chdir(sent)
    log: list[str] = []
    assert submit(Path("job.yaml"), dashboard, ["output.max_failed_fraction=0.5"], write=log.append) == 0, "".join(log)
    assert bench.rows("submitted") == bench.rows("local")
    assert "SUCCEEDED" in log[-1]
    assert submit(Path("job.yaml"), dashboard, ["read.chunk_tokens=64"], write=log.append) == 2
    assert "read.chunk_tokens: 128 -> 64" in "".join(log)
