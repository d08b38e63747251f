"""Which entries leave when a tier's byte budget is full: those that save the fewest tokens per byte.

Pure bookkeeping over keys, sizes and costs, without locks, clocks or entries: a tier asks, then acts. An entry's
cost is the number of tokens that must be read to compute it again.

Invariants: ``room_for`` changes nothing that can be seen and never names a pinned key; after its victims were
evicted and the new entry was added, ``num_bytes <= max_bytes`` holds; of equal entries, used equally often since
the same eviction, the least recently used one leaves first.
"""

from __future__ import annotations

import heapq
from collections import Counter, OrderedDict
from collections.abc import Container, Generator, Iterable, Iterator
from contextlib import closing
from itertools import count
from typing import NamedTuple

from cache_store.identity import BlockKey

_PROBATION_FRACTION = 10  # a tenth of the budget: what S3-FIFO gives its small queue


class CostAware:
    """GreedyDual-Size-Frequency in two segments, as S3-FIFO has them.

    Cao, Irani (1997), "Cost-Aware WWW Proxy Caching Algorithms", and Cherkasova (1998), "Improving WWW Proxies
    Performance with Greedy-Dual-Size-Frequency Caching Policy": an entry's priority is ``clock + uses * cost /
    bytes``, set at each use; the least leaves and the clock rises to its priority, so that what is no longer used
    is overtaken in the end. Yang et al. (2023), "FIFO queues are all you need for cache eviction": what was used
    only once is on probation and leaves first while it holds a tenth of the budget or more, so that a scan
    pushes out little that is read often; keys that left are remembered, as many as there were entries, and one that
    comes back goes on with the uses that it had.

    ``python -m cache_store.bench eviction``, tokens saved in per cent, in a cache of 1, 5 and 20 % of all bytes:

        questions by Zipf's law    LRU 4, 18, 48   S3-FIFO 13, 30, 55   GDSF  6, 24, 54   this 17, 33, 56
        with a nightly full scan   LRU 2,  6, 16   S3-FIFO  4, 10, 22   GDSF  2,  7, 18   this  6, 11, 25
        scores beside kept pairs   LRU 6, 18, 45   S3-FIFO 14, 26, 53   GDSF 42, 50, 66   this 44, 51, 66

    Without the cost, scores are pushed out by pairs of 1,000 times their size; without probation, one scan counts as
    much as many questions. A newcomer always enters.

    Each segment has a clock of its own and a heap with lazy deletion: a use leaves an outdated item behind, which
    goes when it comes to the top or, with all others, when they are most of the heap. So ``add`` and ``touch`` take
    O(log n), ``room_for`` O((victims + pinned) log n), amortized.
    """

    def __init__(self, max_bytes: int) -> None:
        if max_bytes < 0:
            raise ValueError(f"max_bytes: {max_bytes} is negative; allowed: 0 or more")
        self.max_bytes = max_bytes
        self._probation = _Segment()
        self._proven = _Segment()
        self._left: OrderedDict[BlockKey, int] = OrderedDict()  # uses of evicted keys, the longest gone first
        self._pins: Counter[BlockKey] = Counter()
        self._ticks = count()
        self._known_cost = 0.0
        self._num_known = 0

    @property
    def num_bytes(self) -> int:
        """Bytes of all entries."""
        return self._probation.num_bytes + self._proven.num_bytes

    def __len__(self) -> int:
        return len(self._probation.entries) + len(self._proven.entries)

    def __contains__(self, key: BlockKey) -> bool:
        return self._find(key) is not None

    def __iter__(self) -> Iterator[BlockKey]:
        """Keys in the order in which they leave unless pinned; a snapshot, so that entries may leave meanwhile."""
        with closing(self._leaving(staying=())) as order:
            return iter(tuple(order))

    def room_for(self, key: BlockKey, num_bytes: int) -> tuple[BlockKey, ...] | None:
        """The entries that must leave before ``key`` fits with ``num_bytes``, first to leave first.

        None where it cannot fit: too large, or too much is pinned. An entry that ``key`` already has is being
        replaced: its bytes count as free and it is not named.
        """
        excess = self.num_bytes - self._bytes_of([key]) + num_bytes - self.max_bytes
        staying = {*self._pins, key}
        fits = excess <= self.num_bytes - self._bytes_of(staying)
        return self._victims(excess, staying) if fits else None

    def over_budget(self) -> tuple[BlockKey, ...]:
        """The entries that must leave for the budget to hold again, as far as pins allow."""
        fixed_bytes = self._bytes_of(self._pins)
        return self._victims(self.num_bytes - max(self.max_bytes, fixed_bytes), staying=self._pins.keys())

    def add(self, key: BlockKey, num_bytes: int, cost: float | None) -> None:
        """Count an entry, or its replacement, as the most recently used one.

        ``cost``: tokens to read, above 0. None where nobody knows: then what was known of the present entry, or
        else the mean of the entries whose cost is known (1 where none is), found anew at each use and listing.
        """
        former = self._take(key)
        uses = self._left.pop(key, 0) if former is None else former.uses
        if cost is None and former is not None:
            cost = former.cost
        self._keep(key, num_bytes, cost, uses + 1)

    def touch(self, key: BlockKey, cost: float | None = None) -> None:
        """Count a use of an entry, and what it costs where that is known now; an absent key is nobody's use."""
        entry = self._take(key)
        if entry is not None:
            self._keep(key, entry.num_bytes, entry.cost if cost is None else cost, entry.uses + 1)

    def evict(self, key: BlockKey) -> None:
        """Stop counting an entry that made room: the others age by it, and its uses are remembered."""
        segment = self._proven if key in self._proven.entries else self._probation
        entry = self._take(key)
        if entry is None:
            return
        segment.clock = max(segment.clock, entry.priority)
        self._left[key] = entry.uses
        while len(self._left) > len(self) + 1:
            self._left.popitem(last=False)

    def remove(self, key: BlockKey) -> None:
        """Stop counting an entry, if it is there. Pins stay: they belong to the key."""
        self._take(key)

    def replace_all(self, listed: Iterable[tuple[BlockKey, int, float | None]]) -> None:
        """Count these entries instead: key, bytes and cost (see ``add``), oldest use first, each key once.

        To be listed is no use: entries that were counted before keep their uses and their age.
        """
        former = {**self._probation.entries, **self._proven.entries}
        self._probation, self._proven = _Segment(self._probation.clock), _Segment(self._proven.clock)
        self._known_cost, self._num_known = 0.0, 0
        for key, num_bytes, cost in listed:
            known = former.get(key)
            if known is None:
                self._keep(key, num_bytes, cost, self._left.pop(key, 0) + 1)
            else:
                self._keep(key, num_bytes, known.cost if cost is None else cost, known.uses, known.clock)

    def pin(self, keys: Iterable[BlockKey]) -> None:
        """Let no entry of these keys leave until as many ``unpin`` have followed; absent keys count too."""
        self._pins.update(keys)

    def unpin(self, keys: Iterable[BlockKey]) -> None:
        """Take back one ``pin`` of each of these keys."""
        for key in keys:
            self._pins[key] -= 1
            if self._pins[key] <= 0:
                del self._pins[key]

    def _keep(self, key: BlockKey, num_bytes: int, cost: float | None, uses: int, clock: float | None = None) -> None:
        """Count an entry; ``clock`` is its segment's at its last use, None for now."""
        assert num_bytes >= 0 and (cost is None or cost > 0), f"{key}: {num_bytes} bytes, {cost} tokens"
        if cost is not None:
            self._known_cost += cost
            self._num_known += 1
        segment = self._segment_of(uses)
        clock = segment.clock if clock is None else clock
        worth = self._mean_cost if cost is None else cost
        priority = clock + uses * worth / max(1, num_bytes)
        segment.put(_Entry(priority, next(self._ticks), key, num_bytes, cost, uses, clock))

    def _take(self, key: BlockKey) -> _Entry | None:
        """Stop counting an entry; None where there is none."""
        entry = self._find(key)
        if entry is not None:
            self._segment_of(entry.uses).take(key)
            if entry.cost is not None:
                self._known_cost -= entry.cost
                self._num_known -= 1
        return entry

    def _find(self, key: BlockKey) -> _Entry | None:
        return self._probation.entries.get(key) or self._proven.entries.get(key)

    def _segment_of(self, uses: int) -> _Segment:
        return self._proven if uses > 1 else self._probation

    @property
    def _mean_cost(self) -> float:
        """What an entry of unknown cost counts as."""
        return self._known_cost / self._num_known if self._num_known else 1.0

    def _bytes_of(self, keys: Iterable[BlockKey]) -> int:
        """Bytes of those of these entries that there are."""
        return sum(entry.num_bytes for entry in map(self._find, keys) if entry is not None)

    def _victims(self, excess: int, staying: Container[BlockKey]) -> tuple[BlockKey, ...]:
        """The entries that leave first until ``excess`` bytes are free; those that need not stay have as many."""
        victims: list[BlockKey] = []
        with closing(self._leaving(staying)) as order:
            while excess > 0:
                victims.append(next(order))
                excess -= self._bytes_of(victims[-1:])
        return tuple(victims)

    def _leaving(self, staying: Container[BlockKey]) -> Generator[BlockKey, None, None]:
        """Keys in the order in which they leave, without those that stay. What it takes it puts back when closed."""
        unproven_bytes = self._probation.num_bytes
        taken: list[_Entry] = []
        try:
            while True:
                crowded = unproven_bytes * _PROBATION_FRACTION >= self.max_bytes
                first, second = (self._probation, self._proven) if crowded else (self._proven, self._probation)
                entry = first.pop_least() or second.pop_least()
                if entry is None:
                    return
                taken.append(entry)
                if entry.key not in staying:
                    unproven_bytes -= entry.num_bytes if entry.uses == 1 else 0
                    yield entry.key
        finally:
            for entry in taken:
                self._segment_of(entry.uses).push(entry)


class _Entry(NamedTuple):
    """An entry as it was at its last use, in the order of leaving. ``tick``: which use of all that was, so no two
    have the same; ``clock``: that of its segment then."""

    priority: float
    tick: int
    key: BlockKey
    num_bytes: int
    cost: float | None
    uses: int
    clock: float


class _Segment:
    """Entries by key and in a heap, where those that were taken or used since stay behind for a while."""

    def __init__(self, clock: float = 0.0) -> None:
        self.clock = clock
        self.num_bytes = 0
        self.entries: dict[BlockKey, _Entry] = {}
        self._heap: list[_Entry] = []

    def put(self, entry: _Entry) -> None:
        """Have an entry of a key that has none here."""
        self.entries[entry.key] = entry
        self.num_bytes += entry.num_bytes
        self.push(entry)
        if len(self._heap) > 2 * len(self.entries) + 8:
            self._heap = list(self.entries.values())
            heapq.heapify(self._heap)

    def take(self, key: BlockKey) -> None:
        """Have the entry of this key no longer."""
        self.num_bytes -= self.entries.pop(key).num_bytes

    def push(self, entry: _Entry) -> None:
        """Put into the heap what ``pop_least`` took out of it."""
        heapq.heappush(self._heap, entry)

    def pop_least(self) -> _Entry | None:
        """Take the entry that leaves first out of the heap, and what is outdated before it."""
        while self._heap:
            entry = heapq.heappop(self._heap)
            if self.entries.get(entry.key) is entry:
                return entry
        return None
