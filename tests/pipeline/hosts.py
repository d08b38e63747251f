"""Actors that are killed, poisoned or broken. Each writes down the chunks it is given, beside the run's output."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from configs.schema import Job
from workers.actors import EngineHost
from workers.border import Works, attempt
from workers.engine import Engine
from workers.errors import ModelError
from workers.messages import Answered, Ask, Encode, Encoded, WorkError

MakeEngine = partial[Engine]
"""``load_engine`` with the job and its profile."""
MARKED = ":4"
"""How the name of row 4 ends."""


def log_of(job: Job) -> Path:
    """Chunks that were begun with."""
    return Path(f"{job.output.path}.log")


def read_log_of(job: Job) -> Path:
    """Chunks that were read by a model, and not found in a store."""
    return Path(f"{job.output.path}.read")


def held_by(job: Job) -> Path:
    """Written once ``HeldHost`` holds on to a chunk: the chunk, the worker's process and its raylet's."""
    return Path(f"{job.output.path}.held")


def counted(log: Path) -> Counter[str]:
    """How often each chunk is in a log; chunk 2 of row 4 is ``4#2``."""
    return Counter(log.read_text().split()) if log.exists() else Counter()


def first(job: Job) -> bool:
    """Whether nobody has asked before, in any process."""
    try:
        Path(f"{job.output.path}.mark").touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def die() -> None:
    """Be killed, once Ray has sent what this process did before: a kill may take the last result along."""
    time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGKILL)


class LoggingHost(EngineHost):
    """An engine that writes down each chunk when it begins with it."""

    def __init__(self, make_engine: MakeEngine, num_threads: int) -> None:
        super().__init__(make_engine, num_threads)
        self._job: Job = make_engine.args[0]

    def attempt(self, task: Encode | Ask) -> Encoded | Answered | WorkError:
        if isinstance(task, Encode):
            _note(log_of(self._job), task)
        done = self.work(task)
        if isinstance(task, Encode) and isinstance(done, Encoded) and not done.cache_hits:
            _note(read_log_of(self._job), task)
        return done

    def work(self, task: Encode | Ask) -> Encoded | Answered | WorkError:
        done: Encoded | Answered | WorkError = super().attempt(task)
        return done


def _note(path: Path, task: Encode) -> None:
    with path.open("a") as log:
        log.write(f"{_name(task)}\n")


def _name(task: Encode) -> str:
    return f"{task.document.rpartition(':')[2]}#{task.chunks[0].index}"


class DyingHost(LoggingHost):
    """The first to meet chunk 2 of row 4 is killed, as the kernel kills a process that uses too much memory."""

    def work(self, task: Encode | Ask) -> Encoded | Answered | WorkError:
        marked = isinstance(task, Encode) and task.document.endswith(MARKED) and task.chunks[0].index == 2
        if marked and first(self._job):
            die()
        return super().work(task)


class PoisonedHost(LoggingHost):
    """Whoever meets row 4 is killed."""

    def work(self, task: Encode | Ask) -> Encoded | Answered | WorkError:
        if isinstance(task, Encode) and task.document.endswith(MARKED):
            die()
        return super().work(task)


class HeldHost(LoggingHost):
    """The first to begin its third chunk, or a later one, once a part is committed says where, and stays at it."""

    def __init__(self, make_engine: MakeEngine, num_threads: int) -> None:
        super().__init__(make_engine, num_threads)
        self._num_begun = 0

    def work(self, task: Encode | Ask) -> Encoded | Answered | WorkError:
        if isinstance(task, Encode):
            self._num_begun += 1
            committed = Path(self._job.output.path, "_job", "commits")
            if self._num_begun > 2 and committed.exists() and any(committed.iterdir()) and first(self._job):
                self._stay(_name(task))
        return super().work(task)

    def _stay(self, chunk: str) -> None:
        report = held_by(self._job).with_suffix(".draft")
        report.write_text(f"{chunk} {os.getpid()} {os.getppid()}")
        report.rename(held_by(self._job))
        time.sleep(600)


class SickHost(LoggingHost):
    """The first actor has a broken device: all its work fails, at once."""

    def __init__(self, make_engine: MakeEngine, num_threads: int) -> None:
        super().__init__(make_engine, num_threads)
        self._sick = first(self._job)

    def work(self, task: Encode | Ask) -> Encoded | Answered | WorkError:
        return WorkError("infrastructure", "CudaError", "broken") if self._sick else super().work(task)


class BrokenHost(EngineHost):
    """Cannot load its model."""

    def load(self) -> None:
        raise ModelError("model.source: no such model on this node")


class CrampedHost(LoggingHost):
    """Its memory is too small for chunks of more than 64 tokens, and its allocator says so."""

    def work(self, task: Encode | Ask) -> Encoded | Answered | WorkError:
        return attempt(_CrampedEngine(self._engine), task)


class _CrampedEngine:
    def __init__(self, engine: Works[Any, Any]) -> None:
        self._engine = engine

    def work(self, task: Encode | Ask) -> Encoded | Answered:
        if isinstance(task, Encode) and max(len(chunk.token_ids) for chunk in task.chunks) > 64:
            torch.empty(1 << 60, dtype=torch.uint8)
        done: Encoded | Answered = self._engine.work(task)
        return done

    def free(self, names: Sequence[str]) -> None:
        self._engine.free(names)

    def close(self) -> None:
        self._engine.close()
