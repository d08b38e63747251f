"""What a step of decoding reads of the pairs that were kept.

A reader takes a segment once, before the first step, and gives what the steps read in its place: again a
``Readable``, so that a pass knows no readers. Invariants: ``AllReader`` changes nothing; every other reader equals it
where no run of pairs is longer than what it may read; what a step does not read cannot change its result.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from configs import methods
from workers.pages import TopPagesReader
from workers.segments import Readable


class Reader(Protocol):
    """What does a step of decoding read? One frozen dataclass per method of the literature."""

    def over(self, segment: Readable) -> Readable:
        """What steps read in place of a segment that does not change any more."""
        ...


@dataclass(frozen=True)
class AllReader:
    """Every pair, in every step."""

    @classmethod
    def of(cls, settings: methods.AllReader) -> AllReader:
        """As a job says it."""
        return cls()

    def over(self, segment: Readable) -> Readable:
        """The segment itself."""
        return segment


_READERS: Mapping[str, Callable[[Any], Reader]] = {"all": AllReader.of, "top_pages": TopPagesReader.of}


def reader_of(settings: methods.Reader) -> Callable[[Readable], Readable]:
    """The reader that a job asks for: see ``Reader.over``."""
    return _READERS[settings.kind](settings).over
