"""How long to leave alone what did not answer: a second, and twice as long each time, up to a minute.

Pure but for the clock that it is given. Invariants: calls that fail together count once; any answer ends the rest
and the growth.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

FIRST_S = 1.0
LONGEST_S = 60.0


class CoolOff:
    """Whether to ask again. ``clock``: seconds, from any start."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._length_s = 0.0
        self._ends_s = float("-inf")

    @property
    def remaining_s(self) -> float:
        """Seconds until it may be asked again; 0 where it may be asked now."""
        return max(0.0, self._ends_s - self._clock())

    def no_answer(self) -> None:
        """Start to rest, longer than the last time if nothing was heard since; a rest that has begun goes on."""
        with self._lock:
            if not self.remaining_s:
                self._length_s = min(2 * self._length_s or FIRST_S, LONGEST_S)
                self._ends_s = self._clock() + self._length_s

    def answered(self) -> None:
        """Rest no longer."""
        with self._lock:
            self._length_s, self._ends_s = 0.0, float("-inf")
