"""An engine that waits for files, for tests of who runs engines: it does what its task says, and needs no model."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_GLANCE_S = 0.02


@dataclass(frozen=True)
class Wait:
    """Come back once there is a file ``path``; ``begun`` is written when the task begins."""

    path: Path
    begun: Path


class Waiter:
    """Its result is the process that it runs in."""

    def work(self, task: Wait) -> int:
        task.begun.touch()
        await_file(task.path)
        return os.getpid()

    def free(self, names: Sequence[str]) -> None:
        """Keeps nothing."""

    def close(self) -> None:
        """Writes nothing."""


@dataclass(frozen=True)
class SlowStart:
    """Makes a ``Waiter`` once there is a file; ``begun`` gets a line for each one that begins to be made."""

    path: Path
    begun: Path

    def __call__(self) -> Waiter:
        with self.begun.open("a") as begun:
            begun.write(f"{os.getpid()}\n")
        await_file(self.path)
        return Waiter()

    def processes(self) -> list[int]:
        """In which it began, in order."""
        return [int(line) for line in self.begun.read_text().split()]


@dataclass(frozen=True)
class DeadStart:
    """Takes its process with it, as what needs more memory than there is."""

    def __call__(self) -> Waiter:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("not reached")


def await_file(path: Path) -> None:
    while not path.exists():
        time.sleep(_GLANCE_S)
