"""The books of one budget that many processes share: what is held for which key, who has pinned it, what leaves.

Pure bookkeeping, without Ray and without blocks; what is held is the caller's. One thread at a time.

Invariants: those of ``eviction``; no former entry answers for one that was refused; a process that was not heard of
for ``LEASE_S`` has no pins, so that a dead one's do not stay (a living one may lose its own, which costs a miss).
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Generic, NamedTuple, TypeVar

from cache_store.eviction import CostAware
from cache_store.identity import BlockKey

LEASE_S = 600.0

Held = TypeVar("Held")


class Weight(NamedTuple):
    """What an entry takes, and how many tokens must be read to compute it again."""

    num_bytes: int
    cost: float


class Verdict(NamedTuple):
    """Whether an entry is kept, and how many others left for it."""

    kept: bool
    evictions: int


class Ledger(Generic[Held]):
    """Entries of ``max_bytes`` together at most. ``clock``: seconds, from any start."""

    def __init__(self, max_bytes: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._rule = CostAware(max_bytes)
        self._held: dict[BlockKey, Held] = {}
        self._clock = clock
        self._heard_s: dict[str, float] = {}
        self._pins: dict[str, Counter[BlockKey]] = {}

    @property
    def num_bytes(self) -> int:
        """Bytes of all entries."""
        return self._rule.num_bytes

    def __contains__(self, key: BlockKey) -> bool:
        return key in self._held

    def keys(self) -> tuple[BlockKey, ...]:
        """Keys of all entries, oldest use first."""
        return tuple(self._rule)

    def find(self, key: BlockKey) -> Held | None:
        """What is held for a key, None where nothing is. Counts as a use."""
        self._rule.touch(key)
        return self._held.get(key)

    def keep(self, key: BlockKey, weight: Weight, make: Callable[[], Held]) -> Verdict:
        """Hold what ``make`` gives, if there is room, in place of the key's former entry, which leaves in any case."""
        self._end_leases()
        victims = self._rule.room_for(key, weight.num_bytes)
        if victims is None:
            self.drop(key)
            return Verdict(kept=False, evictions=0)
        held = make()
        for victim in victims:
            self._held.pop(victim, None)
            self._rule.evict(victim)
        self._rule.add(key, weight.num_bytes, weight.cost)
        self._held[key] = held
        return Verdict(kept=True, evictions=len(victims))

    def drop(self, key: BlockKey) -> None:
        """Hold nothing for the key, pinned or not."""
        self._held.pop(key, None)
        self._rule.remove(key)

    def hear(self, process: str) -> None:
        """Take a sign of life."""
        self._heard_s[process] = self._clock()

    def pin(self, process: str, keys: Iterable[BlockKey]) -> None:
        """Evict no entries of these keys until the process has unpinned them as often, or its lease ends."""
        keys = tuple(keys)
        self.hear(process)
        self._pins.setdefault(process, Counter()).update(keys)
        self._rule.pin(keys)

    def unpin(self, process: str, keys: Iterable[BlockKey]) -> None:
        """Take back one pin of each of these keys, as far as the process still has one."""
        own = self._pins.get(process, Counter())
        for key in keys:
            if own[key]:
                own[key] -= 1
                self._rule.unpin([key])

    def _end_leases(self) -> None:
        """Forget the processes that have been silent for too long, and their pins."""
        oldest_s = self._clock() - LEASE_S
        for process in [process for process, heard_s in self._heard_s.items() if heard_s < oldest_s]:
            del self._heard_s[process]
            self._rule.unpin(self._pins.pop(process, Counter()).elements())
