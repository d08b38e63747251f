"""kill -9, Ctrl-C and a second driver: the rows are those of a run that nobody disturbed."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest

from pipeline.directory import existing_directory
from pipeline.driver import run
from pipeline.status import read_status
from tests.pipeline import drivers
from tests.pipeline.jobs import Bench

LENGTHS = [700, 0, 900, 300, 1500, 40]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Bench:
    return Bench(tmp_path_factory.mktemp("kill"), tiny_model, LENGTHS)


@pytest.fixture(scope="module")
def clean_rows(bench: Bench) -> list[dict[str, Any]]:
    summary = run(bench.job("clean"))
    assert summary.totals.parts >= 3
    return bench.rows("clean")


@pytest.mark.parametrize(
    ("prefix", "moment"),
    [
        ("_job/plan", "before"),
        ("data/part-00000", "before"),
        ("data/part-00001", "after"),
        ("_job/commits/part-00001", "before"),
        ("_job/commits/part-00001", "after"),
        ("_SUCCESS", "before"),
        ("_SUCCESS", "after"),
    ],
)
def test_kill_9_and_the_same_command_again(
    bench: Bench, clean_rows: list[dict[str, Any]], prefix: str, moment: str
) -> None:
    output = f"{prefix.replace('/', '-')}-{moment}"
    job = bench.job(output)
    assert drivers.finish(drivers.start(drivers.drive_and_die, job, prefix, moment)) == -signal.SIGKILL
    run(job)
    assert bench.rows(output) == clean_rows
    assert read_status(existing_directory(job.output.path)).orphans == ()


def test_ctrl_c_stops_cleanly_and_the_same_command_resumes(bench: Bench, clean_rows: list[dict[str, Any]]) -> None:
    job = bench.job("interrupted")
    assert drivers.finish(drivers.start(drivers.drive_until_interrupted, job, 1)) == 130
    before = read_status(existing_directory(job.output.path))
    assert not before.is_finished
    assert 1 <= before.totals.parts < before.parts
    assert before.orphans == ()
    run(job)
    after = read_status(existing_directory(job.output.path))
    assert after.is_finished
    assert [epoch.epoch for epoch in after.epochs] == [1, 2]
    assert bench.rows("interrupted") == clean_rows


def test_drivers_with_a_share_each_commit_their_own_and_what_a_dead_one_left(
    bench: Bench, clean_rows: list[dict[str, Any]]
) -> None:
    """Of three, the second never comes."""
    job = bench.job("shared")
    barrier = drivers.SERVER.Barrier(2)
    processes = [drivers.start(drivers.drive_together, job, barrier, share) for share in ("1/3", "3/3")]
    assert [drivers.finish(process) for process in processes] == [0, 0]
    assert bench.rows("shared") == clean_rows
    status = read_status(existing_directory(job.output.path))
    assert status.is_finished and status.orphans == ()


def test_two_drivers_at_once_commit_every_part_once(bench: Bench, clean_rows: list[dict[str, Any]]) -> None:
    job = bench.job("together")
    barrier = drivers.SERVER.Barrier(2)
    processes = [drivers.start(drivers.drive_together, job, barrier) for _ in range(2)]
    assert [drivers.finish(process) for process in processes] == [0, 0]
    assert bench.rows("together") == clean_rows
    status = read_status(existing_directory(job.output.path))
    assert status.is_finished
    assert status.orphans == ()
