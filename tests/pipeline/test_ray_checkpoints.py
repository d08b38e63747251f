"""The program of docs/ray-data.md in a real Ray: with checkpoints and without, killed and run again."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import ray

from configs.schema import Job
from pipeline.ray_data import LongDocumentProcessor
from tests.docs.pages import ROOT, blocks
from tests.pipeline import processors
from tests.pipeline.hosts import log_of
from tests.pipeline.jobs import Bench, write_corpus

pytestmark = pytest.mark.cluster
pytest.importorskip("pandas", reason="Ray Data writes with it: pip install 'foveate[data]'")

LENGTHS = [300, 0, 200, 500, 260, 40, 700, 150, 333, 280, 120, 410, 90, 260, 350, 64]
CHUNKS = {f"doc{row}#{chunk}" for row, length in enumerate(LENGTHS) for chunk in range(-(-length // 128))}
[PROGRAM] = [block.text for block in blocks("python") if block.name.startswith("ray-data.md")]
COUNTED = PROGRAM.replace(
    "from pipeline.ray_data import LongDocumentProcessor",
    "from tests.pipeline.processors import CountingProcessor as LongDocumentProcessor",
)


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """A Ray of this module's own, with nothing left behind. Its socket paths must be short."""
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])))
        patch.delenv("RAY_ADDRESS", raising=False)
        quiet: dict[str, Any] = {"include_dashboard": False, "log_to_driver": False, "logging_level": "ERROR"}
        ray.init(address="local", num_cpus=4, _temp_dir=folder, **quiet)
        ray.data.DataContext.get_current().enable_progress_bars = False
        try:
            yield
        finally:
            ray.shutdown()
            shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def bench(tmp_path: Path, tiny_model: Path) -> Bench:
    """The folder that the program runs in: corpus.parquet and job.yaml."""
    made = Bench(tmp_path, tiny_model, LENGTHS)
    made.write_job(made.job())
    return made


@pytest.fixture
def forget_checkpoints() -> Iterator[None]:
    """Programs that run in this process say in its context what they want."""
    yield
    ray.data.DataContext.get_current().checkpoint_config = None


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [row for file in sorted(folder.glob("*.parquet")) for row in pq.read_table(file).to_pylist()]


def once(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Outcomes by row, without what a clock measured; a row that is there twice fails."""
    found = {row["id"]: [{k: v for k, v in e.items() if k[:8] != "seconds_"} for e in row["answers"]] for row in rows}
    assert len(found) == len(rows)
    return found


def expected(bench: Bench) -> dict[str, Any]:
    job = LongDocumentProcessor.arguments(bench.job())["fn_constructor_kwargs"]
    return once(LongDocumentProcessor(**job)(pq.read_table(bench.corpus)).to_pylist())


def chunks(job: Job) -> Counter[str]:
    """How often each chunk was begun."""
    log = log_of(job)
    return Counter(log.read_text().split() if log.exists() else [])


def until(true: Callable[[], Any]) -> None:
    """Wait until something becomes true."""
    for _ in range(6000):
        if true():
            return
        time.sleep(0.02)
    raise AssertionError("it did not happen within two minutes")


def start(program: str, folder: Path) -> subprocess.Popen[bytes]:
    """The program in a process of its own, as a driver of this module's cluster."""
    path = folder / "program.py"
    path.write_text(program)
    address = ray.get_runtime_context().gcs_address
    with (folder / "program.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, path.name], cwd=folder, env=os.environ | {"RAY_ADDRESS": address}, stdout=log, stderr=log
        )


def finish(program: subprocess.Popen[bytes], folder: Path) -> None:
    assert program.wait(timeout=240) == 0, (folder / "program.log").read_text()[-3000:]


def _with_lengths(batch: pa.Table) -> pa.Table:
    return batch.append_column("length", pc.utf8_length(batch["id"]))


def test_without_checkpoints_every_row_comes_out_once(bench: Bench) -> None:
    """One worker of two threads, and a step before it."""
    documents = ray.data.read_parquet(str(bench.corpus)).map_batches(_with_lengths, batch_format="pyarrow")
    rows = documents.map_batches(
        LongDocumentProcessor,
        batch_size=3,
        compute=ray.data.ActorPoolStrategy(size=1),
        **LongDocumentProcessor.arguments(bench.job(), num_cpus=2),
    ).take_all()
    assert once(rows) == expected(bench)
    texts = pq.read_table(bench.corpus).to_pylist()
    assert sorted((row["id"], row["text"]) for row in rows) == sorted((row["id"], row["text"]) for row in texts)
    assert all(row["length"] == len(row["id"]) for row in rows)


@pytest.mark.timeout(600)
def test_a_killed_program_is_resumed_and_reads_nothing_twice(bench: Bench) -> None:
    job, checkpoints = bench.job(), bench.root / "checkpoints"
    hold = processors.hold_of(job.output.path)
    hold.touch()
    program = start(COUNTED, bench.root)
    until(lambda: len([*checkpoints.glob("*[0-9].parquet")]) >= 2 or program.poll() is not None)
    program.send_signal(signal.SIGKILL)
    program.wait()
    until(lambda: not any(alive(pid) for pid in processors.pids_of(job)))
    hold.unlink()

    done = {row["id"] for file in checkpoints.glob("*[0-9].parquet") for row in pq.read_table(file).to_pylist()}
    assert done and processors.MARKED not in done
    log_of(job).unlink()
    finish(start(COUNTED, bench.root), bench.root)
    assert chunks(job) == {chunk: 1 for chunk in CHUNKS if chunk.partition("#")[0] not in done}
    assert once(rows_of(bench.root / "answered")) == expected(bench)

    log_of(job).unlink()
    finish(start(COUNTED, bench.root), bench.root)
    assert not chunks(job), "a finished program that is run again reads nothing"
    assert once(rows_of(bench.root / "answered")) == expected(bench)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_killed_worker_costs_its_block(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, forget_checkpoints: None
) -> None:
    """The program as it stands in the page, with a worker that dies."""
    monkeypatch.chdir(bench.root)
    exec(COUNTED.replace("CountingProcessor", "DyingProcessor"), {})
    assert once(rows_of(bench.root / "answered")) == expected(bench)
    read = chunks(bench.job())
    again = {chunk.partition("#")[0] for chunk, times in read.items() if times == 2}
    assert read.keys() == CHUNKS and max(read.values()) <= 2 and len(again) <= 4


def leave_half_renamed(done: Path) -> None:
    """As a kill between the copy and the deletion does."""
    shutil.copy(done, done.with_name(f"{done.stem}.pending.parquet"))


def test_ray_loses_rows_at_a_kill_within_its_commit_and_whole_checkpoints_do_not(
    tmp_path: Path, forget_checkpoints: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If Ray no longer loses them it has closed its gap, and pipeline/ray_checkpoints.py can go."""
    monkeypatch.chdir(tmp_path)
    write_corpus(tmp_path / "corpus.parquet", LENGTHS)
    whole = re.sub(r"map_batches\(.*?\n\)", "map_batches(lambda batch: batch, batch_size=4)", PROGRAM, flags=re.S)
    alone = re.sub(r".*checkpoint_manager_cls.*\n", "", whole)

    def left_after(program: str) -> list[str]:
        exec(program, {})
        return sorted(row["id"] for row in rows_of(tmp_path / "answered"))

    assert left_after(alone) == sorted(f"doc{row}" for row in range(len(LENGTHS)))
    first, second, *_ = sorted((tmp_path / "checkpoints").iterdir())
    leave_half_renamed(first)
    kept = left_after(alone)
    assert len(kept) == len(LENGTHS) - 4
    leave_half_renamed(second)
    assert left_after(whole) == kept
