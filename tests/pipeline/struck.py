"""Drivers of whole runs whose store is struck: in the middle of a run, by a kernel that refuses, by SIGKILL.

Those that change their process for good are for processes of their own (``drivers.start``).
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import pytest

from cache_store.store import StoreCounters
from configs.schema import Job
from pipeline import driver
from workers.engine import Engine
from workers.loading import load_engine
from workers.messages import Answered, Ask, Encode, Encoded
from workers.selection.profile import Profile


class StruckEngine:
    """A real engine; ``midway`` is called once, before it reads its second chunk."""

    def __init__(self, engine: Engine, midway: Callable[[], None]) -> None:
        self.engine, self._midway, self._num_read = engine, midway, 0

    def work(self, task: Encode | Ask) -> Encoded | Answered:
        if isinstance(task, Encode):
            self._num_read += 1
            if self._num_read == 2:
                self._midway()
        return self.engine.work(task)

    def free(self, names: Sequence[str]) -> None:
        self.engine.free(names)

    def close(self) -> None:
        self.engine.close()


def drive(job: Job, midway: Callable[[], None] = lambda: None) -> StoreCounters:
    """Run ``job``; what its store counted."""
    made: list[StruckEngine] = []

    def load(job: Job, profile: Profile | None) -> StruckEngine:
        made.append(StruckEngine(load_engine(job, profile), midway))
        return made[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(driver, "load_engine", load)
        driver.run(job)
    [struck] = made
    return struck.engine.store.counters


def drive_with_small_files(job: Job, max_file_bytes: int, report: Path) -> None:
    """Run ``job`` where the kernel refuses to let a file grow further; writes what the store counted."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (max_file_bytes, max_file_bytes))
    report.write_text(json.dumps(asdict(drive(job))))


class Moment(NamedTuple):
    """The ``nth`` time that Python is about to make the system call that audits as ``event`` for a path of the store
    that matches ``path``. ``whole``: how many entries have their name by then."""

    event: str
    path: str
    nth: int
    whole: int


def drive_and_die(job: Job, store: Path, moment: Moment) -> None:
    """Run ``job`` and be killed while an entry is written."""
    seen = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        if event == moment.event and isinstance(arguments[0], os.PathLike | str):
            path = PurePath(arguments[0])
            seen += path.is_relative_to(store) and path.relative_to(store).match(moment.path)
            if seen == moment.nth:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    driver.run(job)


def drive_and_die_in_a_write(job: Job, num_bytes: int) -> None:
    """Run ``job`` and be killed by the kernel once a file is longer than ``num_bytes``."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, num_bytes))
    driver.run(job)
