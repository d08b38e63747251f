"""A clock that goes on only when it is told to, in place of the one that stamps starts and commits."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, tzinfo

import pytest

STAMPED = ("pipeline.sink", "pipeline.commit")


class Clock:
    """Stands in for ``datetime`` where only ``datetime.now(UTC)`` is asked, and is a ``status.Clock`` itself."""

    def __init__(self) -> None:
        self._time = datetime(2026, 1, 1, 12, tzinfo=UTC)

    def now(self, zone: tzinfo) -> datetime:
        return self._time.astimezone(zone)

    def __call__(self) -> datetime:
        return self._time

    def wait(self, seconds: float) -> None:
        """Go on; back, where ``seconds`` are negative, as a clock does that is put right."""
        self._time += timedelta(seconds=seconds)

    def put_in(self, patch: pytest.MonkeyPatch) -> Clock:
        """Stamp what this process writes into run directories."""
        for module in STAMPED:
            patch.setattr(f"{module}.datetime", self)
        return self
