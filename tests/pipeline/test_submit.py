"""A job sent to a Ray cluster with its directory, end to end."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipeline.directory import existing_directory
from pipeline.driver import run
from pipeline.errors import JobError
from pipeline.status import Phase, read_status
from pipeline.submit import entrypoint, relative_to_working_directory, submit
from tests.pipeline.jobs import Bench
from tests.pipeline.nodes import eventually, free_ports

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


@pytest.fixture(scope="module")
def dashboard() -> Iterator[str]:
    """URL of the dashboard of a Ray head with ports and a folder of its own."""
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    names = ("port", "dashboard-port", "ray-client-server-port", "dashboard-agent-listen-port")
    ports = dict(zip(names, free_ports(4), strict=True))
    options = [f"--{name}={port}" for name, port in ports.items()]
    command = ["ray.scripts.scripts", "start", "--head", "--block", "--num-cpus=2", f"--temp-dir={folder}"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.delenv("RAY_ADDRESS", raising=False)
        patch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
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


@pytest.fixture
def sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory that is sent, which is where we are: our packages as they are now."""
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / "sent" / package, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.chdir(tmp_path / "sent")
    return tmp_path / "sent"


def reads_well(log: str) -> bool:
    """Whether nothing but what we say is in it: no traceback, and no line of Ray's about itself."""
    return not re.search(r"Traceback|^.*\b(INFO|WARNING|ERROR)\b.*\.py:\d+|\(raylet\)", log, re.MULTILINE)


@pytest.mark.cluster
def test_a_submitted_job_runs_on_the_cluster_with_this_directory(
    tmp_path: Path, tiny_model: Path, dashboard: str, sent: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    bench = Bench(tmp_path, tiny_model, [300, 0, 500])
    run(bench.job("local"))
    capfd.readouterr()
    job = bench.job("submitted", pool={"kind": "ray", "workers": 1})
    bench.write_job(job).rename(sent / "job.yaml")
    log: list[str] = []
    assert submit(Path("job.yaml"), dashboard, ["output.max_failed_fraction=0.5"], write=log.append) == 0, "".join(log)
    assert bench.rows("submitted") == bench.rows("local")
    said = "".join(log)
    assert reads_well(said) and capfd.readouterr() == ("", "")
    wanted = (
        "submitted raysubmit_",
        "Running entrypoint",
        "1 worker on Ray",
        "3/3 documents",
        "answered  4",
        "SUCCEEDED",
    )
    places = [said.find(words) for words in wanted]
    assert -1 not in places and places == sorted(places), said


@pytest.mark.cluster
def test_a_job_that_fails_says_why_once_and_hands_on_its_exit_code(
    tmp_path: Path, tiny_model: Path, dashboard: str, sent: Path
) -> None:
    bench = Bench(tmp_path, tiny_model, [300])
    job = bench.job("submitted", pool={"kind": "ray", "workers": 1})
    bench.write_job(job).rename(sent / "job.yaml")
    log: list[str] = []
    assert submit(Path("job.yaml"), dashboard, ["corpus.path=/nowhere.parquet"], write=log.append) == 2
    said = "".join(log)
    assert reads_well(said) and said.count("foveate: ") == 1 and "/nowhere.parquet" in said
    assert log[-1].endswith(": FAILED with exit code 2\n")


@pytest.mark.cluster
def test_a_stopped_job_is_resumed_by_the_same_command(
    tmp_path: Path, tiny_model: Path, dashboard: str, sent: Path
) -> None:
    """Submitted with our command and stopped with Ray's, then submitted with Ray's."""
    bench = Bench(tmp_path, tiny_model, [1500] * 60)
    run(bench.job("local"))
    job = bench.job("stopped", pool={"kind": "ray", "workers": 1})
    bench.write_job(job).rename(sent / "job.yaml")
    log: list[str] = []
    commits = Path(job.output.path, "_job", "commits")
    with ThreadPoolExecutor() as threads:
        submitted = threads.submit(submit, Path("job.yaml"), dashboard, write=log.append)
        eventually(lambda: (commits.exists() and any(commits.iterdir())) or submitted.done())
        ray_job(dashboard, "stop", log[0].split()[1].rstrip(";"))
        assert submitted.result() == 130, "".join(log)
    said = "".join(log)
    assert reads_well(said) and "Stopping cleanly" in said and "the same command resumes" in said
    status = read_status(existing_directory(job.output.path))
    assert status.phase == Phase.STOPPED and 0 < status.totals.parts < status.parts and status.orphans == ()
    again = ray_job(dashboard, "submit", "--working-dir", ".", "--", "python", "-m", "pipeline", "run", "job.yaml")
    assert f"60 parts, {status.totals.parts} of them committed" in again
    assert bench.rows("stopped") == bench.rows("local")


def ray_job(dashboard: str, verb: str, *arguments: str) -> str:
    """What ``ray job VERB`` printed, which must succeed."""
    command = [sys.executable, "-m", "ray.scripts.scripts", "job", verb, "--address", dashboard, *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
