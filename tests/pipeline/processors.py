"""Processors of a Ray Data pipeline that count what they read, and wait or die at a row that is marked.

``JOB.output.path`` names what they leave and look for: ``.log`` (a line for each chunk that is begun), ``.pids`` (their
processes), ``.hold`` (while it exists, whoever meets the marked row waits), ``.mark`` (the first who met it).
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pyarrow as pa

from configs.schema import Job
from pipeline.ray_data import LongDocumentProcessor
from tests.pipeline.hosts import first, log_of
from workers.messages import Answered, Ask, Encode, Encoded

MARKED = "doc9"


def hold_of(output: str) -> Path:
    return Path(f"{output}.hold")


def pids_of(job: Job) -> list[int]:
    """Processes of workers so far."""
    return [int(path.name) for path in Path(f"{job.output.path}.pids").iterdir()]


class _Counted:
    """An engine that writes down each chunk, by its document's id, when it begins with it."""

    def __init__(self, engine: Any, of: CountingProcessor) -> None:
        self._engine, self._of = engine, of

    def work(self, task: Encode | Ask) -> Encoded | Answered:
        if isinstance(task, Encode):
            row = int(task.document.rpartition(":")[2])
            with log_of(self._of.job).open("a") as log:
                log.write(f"{self._of.ids[row]}#{task.chunks[0].index}\n")
        done: Encoded | Answered = self._engine.work(task)
        return done

    def free(self, names: Sequence[str]) -> None:
        self._engine.free(names)

    def close(self) -> None:
        self._engine.close()


class CountingProcessor(LongDocumentProcessor):
    """Writes down what it reads, and waits at the marked row."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.job: Job = arguments["job"]
        self.ids: list[str] = []
        pids = Path(f"{self.job.output.path}.pids")
        pids.mkdir(exist_ok=True)
        (pids / str(os.getpid())).touch()
        pool = cast(Any, self._pool)
        pool._engine = _Counted(pool._engine, self)

    def __call__(self, batch: pa.Table) -> pa.Table:
        self.ids = batch["id"].to_pylist()
        if MARKED in self.ids:
            self.meet()
        return super().__call__(batch)

    def meet(self) -> None:
        while hold_of(self.job.output.path).exists():
            time.sleep(0.02)


class DyingProcessor(CountingProcessor):
    """The first to meet the marked row is killed."""

    def meet(self) -> None:
        if first(self.job):
            os.kill(os.getpid(), signal.SIGKILL)
