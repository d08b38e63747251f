"""Which entries leave when a tier's byte budget is full: the least recently used ones that are not pinned.

Pure bookkeeping over keys and sizes, without locks, clocks or entries: a tier asks, then acts.

Invariants: ``room_for`` changes nothing and never names a pinned key; after its victims were removed and the
new entry was added, ``num_bytes <= max_bytes`` holds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from cache_store.block import BlockKey


class LeastRecentlyUsed:
    """Sizes of a tier's entries, in order of use, and the keys that may not leave."""

    def __init__(self, max_bytes: int) -> None:
        if max_bytes < 0:
            raise ValueError(f"max_bytes: {max_bytes} is negative; allowed: 0 or more")
        self.max_bytes = max_bytes
        self._num_bytes = 0
        self._sizes: dict[BlockKey, int] = {}  # oldest use first
        self._pins: Counter[BlockKey] = Counter()

    @property
    def num_bytes(self) -> int:
        """Bytes of all entries."""
        return self._num_bytes

    def __contains__(self, key: BlockKey) -> bool:
        return key in self._sizes

    def __iter__(self) -> Iterator[BlockKey]:
        """Keys, oldest use first; a snapshot, so that entries may leave meanwhile."""
        return iter(tuple(self._sizes))

    def room_for(self, key: BlockKey, num_bytes: int) -> tuple[BlockKey, ...] | None:
        """The entries that must leave before ``key`` fits with ``num_bytes``, oldest use first.

        None where it cannot fit: too large, or too much is pinned. An entry that ``key`` already has is being
        replaced: its bytes count as free and it is not named.
        """
        excess = self._num_bytes - self._sizes.get(key, 0) + num_bytes - self.max_bytes
        victims = self._victims(excess, spare=key)
        return victims if sum(self._sizes[old] for old in victims) >= excess else None

    def over_budget(self) -> tuple[BlockKey, ...]:
        """The entries that must leave for the budget to hold again, as far as pins allow."""
        return self._victims(self._num_bytes - self.max_bytes)

    def add(self, key: BlockKey, num_bytes: int) -> None:
        """Count an entry, or its replacement, as the most recently used one."""
        self.remove(key)
        self._sizes[key] = num_bytes
        self._num_bytes += num_bytes

    def touch(self, key: BlockKey) -> None:
        """Count a use of an entry; an absent key is nobody's use."""
        if key in self._sizes:
            self._sizes[key] = self._sizes.pop(key)

    def remove(self, key: BlockKey) -> None:
        """Stop counting an entry, if it is there. Pins stay: they belong to the key."""
        self._num_bytes -= self._sizes.pop(key, 0)

    def replace_all(self, sizes: Iterable[tuple[BlockKey, int]]) -> None:
        """Count these entries instead, given oldest use first."""
        self._sizes = dict(sizes)
        self._num_bytes = sum(self._sizes.values())

    def pin(self, keys: Iterable[BlockKey]) -> None:
        """Let no entry of these keys leave until as many ``unpin`` have followed; absent keys count too."""
        self._pins.update(keys)

    def unpin(self, keys: Iterable[BlockKey]) -> None:
        """Take back one ``pin`` of each of these keys."""
        for key in keys:
            self._pins[key] -= 1
            if self._pins[key] <= 0:
                del self._pins[key]

    def _victims(self, excess: int, spare: BlockKey | None = None) -> tuple[BlockKey, ...]:
        """Oldest unpinned entries that together have ``excess`` bytes, or all of them if they have less."""
        victims = []
        for old, size in self._sizes.items():
            if excess <= 0:
                break
            if old != spare and not self._pins[old]:
                victims.append(old)
                excess -= size
        return tuple(victims)
