"""Where a tier that several processes share keeps its entries: a directory, a bucket.

Invariants, for every implementation: an entry appears under its key whole or not at all; what does not bear an entry's
name is not counted or removed; every method raises OSError where the medium does, and may be called from many threads
at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from cache_store.block import KVBlock
from cache_store.identity import BlockKey

MAX_QUARANTINED = 8
"""How many entries that were set aside a medium keeps."""


class NoAnswer(ConnectionError):
    """The medium could not be reached, took too long, or said that it cannot now."""


class Resting(NoAnswer):
    """Nothing was asked, because nothing was answered a moment ago."""


class Medium(Protocol):
    """Entries by their keys, as bytes that ``codec.encode`` wrote."""

    @property
    def records_uses(self) -> bool:
        """Whether it knows when an entry was used, by any process; else when it was written."""
        ...

    @property
    def is_resting(self) -> bool:
        """Whether a call would raise Resting."""
        ...

    def open(self) -> None:
        """Make sure that entries can be written and removed here."""
        ...

    def scan(self) -> list[tuple[BlockKey, int]]:
        """Every entry and its bytes, oldest use first; none is opened."""
        ...

    def size_of(self, key: BlockKey) -> int | None:
        """Bytes of the entry of this key, None where there is none."""
        ...

    def read(self, key: BlockKey, layers: range | None) -> KVBlock | None:
        """The block of this key, None where there is none; a use. With ``layers`` the pairs of all others may be left
        out. Raises UnreadableBlock."""
        ...

    def publish(self, key: BlockKey, content: bytes) -> None:
        """Make ``content`` the entry of this key; on OSError nothing new is left."""
        ...

    def remove(self, keys: Sequence[BlockKey]) -> None:
        """Have no entries of these keys; fine where they are gone."""
        ...

    def quarantine(self, key: BlockKey) -> None:
        """Move the entry of this key aside, if it is still there; beyond ``MAX_QUARANTINED`` the oldest give way."""
        ...
