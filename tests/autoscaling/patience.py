"""Engines that wait for the test, so that what a test wants to see lasts until it was seen."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from configs.schema import Job
from pipeline import driver
from tests.autoscaling.processes import LIMIT_S, wait_until
from workers.engine import Engine
from workers.loading import load_engine
from workers.messages import Answered, Ask, Encode, Encoded
from workers.selection.profile import Profile

LAST_ROW = ":5"
"""How the name of the last document of a corpus of six ends."""


class PatientEngine:
    """A real engine. It does what ``waits`` says of only when there is a file at ``gate``."""

    def __init__(self, engine: Engine, waits: Callable[[Encode | Ask], bool], gate: Path) -> None:
        self._engine, self._waits, self._gate = engine, waits, gate

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def work(self, task: Encode | Ask) -> Encoded | Answered:
        deadline_s = time.monotonic() + 2 * LIMIT_S
        while self._waits(task) and not self._gate.exists() and time.monotonic() < deadline_s:
            time.sleep(0.1)
        return self._engine.work(task)


def reading_the_last_document(task: Encode | Ask) -> bool:
    return isinstance(task, Encode) and task.document.endswith(LAST_ROW)


def answering(task: Encode | Ask) -> bool:
    return isinstance(task, Ask)


@contextmanager
def patient_engines(
    job: Job, waits: Callable[[Encode | Ask], bool], until: Callable[[], bool], otherwise: Callable[[], str]
) -> Iterator[None]:
    """Have every engine of ``job`` wait where ``waits``, until ``until`` was seen true; fails with ``otherwise``."""
    gate = Path(f"{job.output.path}.gate")

    def open_gate() -> None:
        try:
            wait_until(until, otherwise)
        finally:
            gate.touch()

    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(1) as executor:
        patch.setattr(driver, "load_engine", partial(_load, waits, gate))
        opened = executor.submit(open_gate)
        yield
        opened.result()


def _load(waits: Callable[[Encode | Ask], bool], gate: Path, job: Job, profile: Profile | None) -> PatientEngine:
    return PatientEngine(load_engine(job, profile), waits, gate)
