"""What tiers that several processes share have in common: books of the entries that this process knows of.

Invariants: the books are locked for as long as they are looked into, never while a disk or a bucket is waited for.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Iterator

from cache_store.eviction import CostAware
from cache_store.identity import BlockKey
from cache_store.tiers.base import TierCounters


class BookedTier:
    """The part of a shared tier that touches no medium. ``_writing`` is taken before ``_books``: first the right to
    change the medium, then the books."""

    shared = True

    def __init__(self, name: str, max_bytes: int) -> None:
        self.name = name
        self.max_bytes = max_bytes
        self._rule = CostAware(max_bytes)
        self._counts: Counter[str] = Counter()
        self._unscanned_bytes = 0
        self._writing = threading.RLock()
        self._books = threading.Lock()

    @property
    def num_bytes(self) -> int:
        """Bytes of the entries that this process knows of, as they are stored."""
        return self._rule.num_bytes

    @property
    def counters(self) -> TierCounters:
        """What happened since this process opened the tier."""
        with self._books:
            return TierCounters(**self._counts)

    def pin(self, keys: Iterable[BlockKey]) -> None:
        """Let this process evict no entries of these keys until ``unpin`` was called as often."""
        with self._books:
            self._rule.pin(keys)

    def unpin(self, keys: Iterable[BlockKey]) -> None:
        """Take back one ``pin`` of each of these keys."""
        with self._books:
            self._rule.unpin(keys)

    def keys(self) -> Iterator[BlockKey]:
        """Keys of the entries that this process knows of, first to leave first, as a snapshot."""
        with self._books:
            return iter(self._rule)

    def _count(self, name: str, times: int = 1) -> None:
        with self._books:
            self._counts[name] += times

    def _room_for(self, key: BlockKey, num_bytes: int) -> tuple[BlockKey, ...] | None:
        with self._books:
            return self._rule.room_for(key, num_bytes)
