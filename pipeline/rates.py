"""How fast a run goes, and what is left of it, from the times of its starts and commits.

Only commits say that work was done, and when. A start worked from its beginning to its last commit; what came after
is not known and not counted, and neither is the pause until the next start. Where several drivers worked at once,
their time counts once.

Invariants: pure, and without a clock of its own; whatever times come in, no rate is negative and none is infinite;
times are only compared within a start, whose clock is one machine's.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

NUM_RECENT = 20
_SILENCES = 3
_GRACE_S = 60.0
_RESOLUTION_S = 1e-3  # of the times in commit records


@dataclass(frozen=True)
class Done:
    """A part's first commit, at ``at_s`` by start ``start``. ``tokens`` were read, ``planned_tokens`` estimated."""

    start: int
    at_s: float
    documents: int
    tokens: int
    planned_tokens: int


@dataclass(frozen=True)
class Rate:
    """What ``parts`` parts came to, over the ``seconds`` (above 0) in which drivers worked."""

    parts: int
    documents: int
    tokens: int
    planned_tokens: int
    seconds: float

    @property
    def tokens_per_s(self) -> float:
        """Document tokens read in a second."""
        return self.tokens / self.seconds

    @property
    def documents_per_hour(self) -> float:
        """Documents finished in an hour."""
        return 3600 * self.documents / self.seconds

    def seconds_for(self, planned_tokens: int) -> float | None:
        """Time for so much more at this rate; None where it says nothing of that."""
        if planned_tokens == 0:
            return 0.0
        return planned_tokens * self.seconds / self.planned_tokens if self.planned_tokens else None


@dataclass(frozen=True)
class Rates:
    """Since the first start, and over the last ``NUM_RECENT`` commits; None where there was none, or no time in it."""

    overall: Rate | None
    recent: Rate | None


def rates_of(starts: Mapping[int, float], done: Sequence[Done]) -> Rates:
    """The rates of a run. ``starts``: when each start began, seconds since some moment, as ``Done.at_s``."""
    ordered = sorted(done, key=lambda one: one.at_s)
    if not ordered:
        return Rates(None, None)
    spans = _worked(starts, ordered)
    earlier = ordered[:-NUM_RECENT]
    return Rates(
        overall=_rate(ordered, _time(spans)),
        recent=_rate(ordered[-NUM_RECENT:], _time(spans, since_s=earlier[-1].at_s) if earlier else _time(spans)),
    )


def longest_gap_s(starts: Mapping[int, float], signs: Mapping[int, Collection[float]]) -> float | None:
    """The longest time between two signs of life of one start, of the last ``NUM_RECENT``: its beginning, and the
    times in ``signs``, of which each start there has one. None where no start gave another sign than its beginning."""
    found = []
    for start, times in signs.items():
        ordered = sorted({*times, starts.get(start, min(times))})
        found += [(later, later - sooner) for sooner, later in pairwise(ordered)]
    recent = sorted(found)[-NUM_RECENT:]
    return max((gap for _, gap in recent), default=None)


def is_silent(silent_s: float, gap_s: float) -> bool:
    """Whether a driver that gave signs of life at most ``gap_s`` apart should have given another by now."""
    return silent_s > _SILENCES * gap_s + _GRACE_S


def _worked(starts: Mapping[int, float], done: Sequence[Done]) -> list[tuple[float, float]]:
    """When somebody worked: spans without overlap, in order. A clock that was set back makes no negative one."""
    spans: dict[int, tuple[float, float]] = {}
    for one in done:
        begun_s, ended_s = spans.get(one.start, (starts.get(one.start, one.at_s), one.at_s))
        spans[one.start] = min(begun_s, one.at_s), max(ended_s, one.at_s)
    merged: list[tuple[float, float]] = []
    for begun_s, ended_s in sorted(spans.values()):
        if merged and begun_s <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(merged[-1][1], ended_s)
        else:
            merged.append((begun_s, ended_s))
    return merged


def _time(spans: Sequence[tuple[float, float]], since_s: float = float("-inf")) -> float:
    return sum(max(0.0, ended_s - max(begun_s, since_s)) for begun_s, ended_s in spans)


def _rate(done: Sequence[Done], seconds: float) -> Rate | None:
    if seconds < _RESOLUTION_S:
        return None
    return Rate(
        parts=len(done),
        documents=sum(one.documents for one in done),
        tokens=sum(one.tokens for one in done),
        planned_tokens=sum(one.planned_tokens for one in done),
        seconds=seconds,
    )
