"""Actors that are killed, poisoned or broken. Each writes down the chunks it is given, beside the run's output."""

from __future__ import annotations

import os
import signal
import time
from functools import partial
from pathlib import Path

from configs.schema import Job
from workers.actors import EngineHost
from workers.engine import Engine
from workers.errors import ModelError
from workers.messages import Answered, Ask, Encode, Encoded, WorkError

MakeEngine = partial[Engine]
"""``load_engine`` with the job and its profile."""
MARKED = ":4"
"""How the name of row 4 ends."""


def log_of(job: Job) -> Path:
    return Path(f"{job.output.path}.log")


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
            with log_of(self._job).open("a") as log:
                log.write(f"{task.document.rpartition(':')[2]}#{task.chunks[0].index}\n")
        return self.work(task)

    def work(self, task: Encode | Ask) -> Encoded | Answered | WorkError:
        done: Encoded | Answered | WorkError = super().attempt(task)
        return done


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


class SickHost(LoggingHost):
    """The first actor has a broken device: all its work fails, at once."""

    def __init__(self, make_engine: MakeEngine, num_threads: int) -> None:
        super().__init__(make_engine, num_threads)
        self._sick = first(self._job)

    def work(self, task: Encode | Ask) -> Encoded | Answered | WorkError:
        return WorkError("infrastructure", "CudaError", "broken") if self._sick else super().work(task)


class BrokenHost(EngineHost):
    """Cannot load its model."""

    def __init__(self, make_engine: MakeEngine, num_threads: int) -> None:
        raise ModelError("model.source: no such model on this node")
