"""When workers may be started, after some could not.

A worker whose start raises an error will hardly do better the next time. One that died may have gone with its machine,
and others with it, and Ray hears of the machine's end after theirs: until then it places the next one there, to die as
well. So deaths at about the same time count once, nobody is started for a while after them, and each while is longer.
"""

from __future__ import annotations

import time
from collections.abc import Callable

MAX_ERRORS = 3
"""In a row, before no worker is expected to start any more."""
MAX_DEATHS = 5
"""In a row, each after a pause: 1, 2, 4 and 8 seconds, which is about what Ray needs to see a machine gone."""
_FIRST_PAUSE_S = 1.0


class Starts:
    """What became of the workers started so far."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """``clock``: seconds, from anywhere."""
        self._clock = clock
        self._errors = self._deaths = 0
        self._resumes_s = clock()

    @property
    def pause_s(self) -> float:
        """For how long nobody is to be started; 0 if anybody may be."""
        return max(0.0, self._resumes_s - self._clock())

    @property
    def are_hopeless(self) -> bool:
        """Whether too many have failed in a row."""
        return self._errors >= MAX_ERRORS or self._deaths >= MAX_DEATHS

    @property
    def number_in_a_row(self) -> int:
        """Of failures since the last success; deaths at about the same time are one."""
        return self._errors + self._deaths

    def succeeded(self) -> None:
        """A worker is ready."""
        self._errors = self._deaths = 0

    def raised(self) -> None:
        """A worker's start ended with an error, or took too long."""
        self._errors += 1

    def died(self) -> None:
        """A worker's process was gone before it was ready."""
        if not self.pause_s:
            self._resumes_s = self._clock() + _FIRST_PAUSE_S * 2**self._deaths
            self._deaths += 1
