"""The virtual clock of a driver, which is one process: what it does itself takes its time, and nothing overlaps it.

Invariants: virtual time never goes back; ``busy_s`` is what was spent and not waited for; real CPU time is taken
while the driver's own code runs, and stands still while the simulation stands in for engines, reader and disk.
"""

from __future__ import annotations

import time
from collections import Counter
from types import TracebackType


class Clock:
    """Used as a context by every stand-in: inside it, the driver's real time stands still."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.busy_s: Counter[str] = Counter()
        """Virtual seconds that the driver worked, by what at."""
        self._real_ns = 0
        self._since_ns = time.thread_time_ns()

    def start(self) -> None:
        """The driver's own code begins here."""
        self._since_ns = time.thread_time_ns()

    def spend(self, seconds: float, what: str) -> None:
        """The driver works for so long."""
        self.now_s += seconds
        self.busy_s[what] += seconds  # type: ignore[assignment]  # a Counter adds floats as well

    def wait_until(self, moment_s: float) -> None:
        """The driver has nothing to do before then."""
        self.now_s = max(self.now_s, moment_s)

    @property
    def real_s(self) -> float:
        """CPU seconds of this thread in the driver's own code so far; asked inside the context."""
        return self._real_ns / 1e9

    def __enter__(self) -> None:
        self._real_ns += time.thread_time_ns() - self._since_ns

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._since_ns = time.thread_time_ns()
