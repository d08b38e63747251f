"""A run's progress as a person sees it: a bar on a terminal, a plain line every 30 seconds elsewhere.

Invariants: nothing here decides anything of the run; the clock is handed in; speed and time left count what
this process did, not what an earlier attempt had finished before it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar

from pipeline.quantities import duration
from workers import logs

if TYPE_CHECKING:
    from pipeline.driver import Progress

Clock = Callable[[], float]
EVERY_S = 30.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pace:
    """Tokens a second, and seconds left; None while nothing was done."""

    tokens_per_s: float
    left_s: float | None


class View:
    """Something to hand progress to. ``pace``: that of the last report, since the first one."""

    def __init__(self, clock: Clock) -> None:
        self.pace = Pace(0.0, None)
        self._clock = clock
        self._started_s = clock()
        self._tokens_before: int | None = None

    def __call__(self, progress: Progress) -> None:
        """Take in a report, and show it or not."""
        if self._tokens_before is None:
            self._tokens_before = progress.tokens
        elapsed_s = self._clock() - self._started_s
        speed = (progress.tokens - self._tokens_before) / elapsed_s if elapsed_s > 0 else 0.0
        left = progress.tokens_total - progress.tokens
        self.pace = Pace(speed, left / speed if speed > 0 else None)
        self.show(progress, in_words(progress, self.pace))

    def show(self, progress: Progress, words: str) -> None:
        """Bring ``words`` before the user's eyes, now or later."""
        raise NotImplementedError


class LineView(View):
    """One plain line at the first report, then at most one in ``EVERY_S``, and one at the end."""

    def __init__(self, write: Callable[[str], None], clock: Clock) -> None:
        super().__init__(clock)
        self._write = write
        self._last_s: float | None = None
        self._unsaid: str | None = None

    def show(self, progress: Progress, words: str) -> None:
        """Say it, or remember it for the end."""
        if self._last_s is not None and self._clock() - self._last_s < EVERY_S:
            self._unsaid = words
            return
        self._write(words)
        self._last_s, self._unsaid = self._clock(), None

    def close(self) -> None:
        """Say the last report, where it was not said."""
        if self._unsaid is not None:
            self._write(self._unsaid)
            self._unsaid = None


class BarView(View):
    """A task of a rich progress bar that somebody else keeps on the screen."""

    def __init__(self, bar: Bar, clock: Clock) -> None:
        super().__init__(clock)
        self._bar = bar
        self._task = bar.add_task("", total=None, words="starting")

    def show(self, progress: Progress, words: str) -> None:
        """Move the bar."""
        self._bar.update(self._task, total=progress.tokens_total, completed=progress.tokens, words=words)


@contextmanager
def shown_on(console: Console, clock: Clock) -> Iterator[View]:
    """A view on ``console``: a bar where that is a terminal, lines where it is not."""
    if console.is_terminal and not logs.wants_json():
        columns = (BarColumn(24), TextColumn("{task.fields[words]}", markup=False))
        with Bar(*columns, console=console, get_time=clock) as bar:
            yield BarView(bar, clock)
        return

    def write(words: str) -> None:
        if logs.wants_json():
            _log.info(words)
        else:
            console.print(words, markup=False, highlight=False, soft_wrap=True)

    lines = LineView(write, clock)
    try:
        yield lines
    finally:
        lines.close()


def in_words(progress: Progress, pace: Pace) -> str:
    """``12/40 documents, 1,024,000 tokens (30 %), 439 tokens/s, 12m 05s left, 0 failed``."""
    return (
        f"{progress.documents:,}/{progress.documents_total:,} documents, {progress.tokens:,} tokens "
        f"({_percent(progress)} %), {pace.tokens_per_s:,.0f} tokens/s, {_left(pace)}, {progress.failed:,} failed"
    )


def _percent(progress: Progress) -> int:
    return 100 * progress.tokens // progress.tokens_total if progress.tokens_total else 100


def _left(pace: Pace) -> str:
    return "time left unknown" if pace.left_s is None else f"{duration(pace.left_s)} left"
