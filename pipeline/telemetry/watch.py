"""What a loop tells whoever watches it, and how several watch at once.

Invariants: a watch changes nothing of the run; the one that does nothing is the default, so the loop never asks
whether somebody watches.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from pipeline.document import Document
from pipeline.ledger import FinishedPart
from pipeline.outcome import Answer
from pipeline.pool import PoolState, Result
from pipeline.prepared import Prepared, Selection
from pipeline.reading import DocumentReader
from workers.messages import Ask, Encode, Encoded, Generated


@dataclass(frozen=True)
class Moment:
    """A run at one moment. ``num_ready``: tasks that wait outside the pool; documents and tokens count what earlier
    starts have done too, and ``tokens_total`` is an estimate."""

    pool: PoolState
    num_ready: int
    documents: int
    documents_total: int
    tokens: int
    tokens_total: int


class Watch:
    """Hears what a loop does; this one does nothing about it. A context that lasts as long as the loop."""

    def took(self, part: int, prepared: Prepared) -> None:
        """A document was read in."""

    def submitted(self, task_id: int, task: Encode | Ask) -> None:
        """A task went into the pool."""

    def finished(self, task_id: int, task: Encode | Ask, result: Result) -> None:
        """It came back."""

    def spent(self, stage: str, seconds: float) -> None:
        """The driver worked so long at one ``prepare``, ``choose`` or ``commit``."""

    def turned(self, waited_s: float, look: Callable[[], Moment]) -> None:
        """A turn of the loop is over; in it the driver waited so long for the pool. ``look`` says where the run is."""

    def committed(self, part: FinishedPart) -> None:
        """The outcomes of a part are durable."""

    def close(self, error: BaseException | None) -> None:
        """The loop has ended."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(error)


class Watches(Watch):
    """Several watches as one."""

    def __init__(self, watches: Sequence[Watch]) -> None:
        self._watches = tuple(watches)

    def took(self, part: int, prepared: Prepared) -> None:
        """As ``Watch.took``."""
        for watch in self._watches:
            watch.took(part, prepared)

    def submitted(self, task_id: int, task: Encode | Ask) -> None:
        """As ``Watch.submitted``."""
        for watch in self._watches:
            watch.submitted(task_id, task)

    def finished(self, task_id: int, task: Encode | Ask, result: Result) -> None:
        """As ``Watch.finished``."""
        for watch in self._watches:
            watch.finished(task_id, task, result)

    def spent(self, stage: str, seconds: float) -> None:
        """As ``Watch.spent``."""
        for watch in self._watches:
            watch.spent(stage, seconds)

    def turned(self, waited_s: float, look: Callable[[], Moment]) -> None:
        """As ``Watch.turned``."""
        for watch in self._watches:
            watch.turned(waited_s, look)

    def committed(self, part: FinishedPart) -> None:
        """As ``Watch.committed``."""
        for watch in self._watches:
            watch.committed(part)

    def close(self, error: BaseException | None) -> None:
        """As ``Watch.close``; the last one that came is the first to go."""
        for watch in reversed(self._watches):
            watch.close(error)


class TimedReader:
    """A document reader that tells a watch how long it chooses."""

    def __init__(self, reader: DocumentReader, watch: Watch) -> None:
        self._reader, self._watch = reader, watch

    def prepare(self, document: Document) -> Prepared:
        """As ``DocumentReader.prepare``; whoever does so, in whichever thread, takes the time."""
        return self._reader.prepare(document)

    def cut_smaller(self, prepared: Prepared) -> Prepared | None:
        """As ``DocumentReader.cut_smaller``."""
        return self._reader.cut_smaller(prepared)

    def advance(self, prepared: Prepared, encoded: Sequence[Encoded]) -> Prepared | list[Selection]:
        """As ``DocumentReader.advance``."""
        started_s = time.perf_counter()
        next_step = self._reader.advance(prepared, encoded)
        self._watch.spent("choose", time.perf_counter() - started_s)
        return next_step

    def answer(
        self, prepared: Prepared, index: int, selection: Selection, generated: Generated, seconds_encode: float
    ) -> Answer:
        """As ``DocumentReader.answer``."""
        return self._reader.answer(prepared, index, selection, generated, seconds_encode)
