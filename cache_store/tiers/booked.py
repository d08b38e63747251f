"""The tier that several processes share, on any medium: books of the entries that this process knows of, and rules.

One process keeps its budget exactly. Several at once learn of each other's entries from the medium, which each scans
again after it wrote a sixteenth of the budget: with P writers the medium can be over for a while by (P - 1) / 16 of the
budget.

Invariants: besides those of every tier, opening reads names and sizes only; what does not decode is set aside and is a
miss; the books are locked for as long as they are looked into, never while a medium is waited for, so that whoever
reads what is known waits for no writer.
"""

from __future__ import annotations

import contextlib
import gc
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from cache_store.block import KVBlock
from cache_store.codec import encode
from cache_store.errors import CorruptBlock, OtherVersion
from cache_store.eviction import CostAware
from cache_store.identity import BlockKey
from cache_store.tiers.base import TierCounters
from cache_store.tiers.medium import Medium, NoAnswer, Resting

_RESCAN_FRACTION = 16


class BookedTier:
    """Blocks in ``medium``, ``max_bytes`` of their files at most.

    Raises OSError for a medium that cannot be used; one that does not answer now is a fault like any later one.
    ``_writing`` is taken before ``_books``: first the right to change the medium, then the books.
    """

    shared = True

    def __init__(self, name: str, max_bytes: int, medium: Medium) -> None:
        self.name = name
        self.max_bytes = max_bytes
        self._medium = medium
        self._rule = CostAware(max_bytes)
        self._counts: Counter[str] = Counter()
        self._unscanned_bytes = 0
        self._writing = threading.RLock()
        self._books = threading.Lock()
        try:
            medium.open()
            self._rescan()
            self._evict(self._rule.over_budget())
        except NoAnswer:
            self._count("read_errors")
            self._unscanned_bytes = max_bytes  # the next put scans

    @property
    def num_bytes(self) -> int:
        """Bytes of the entries that this process knows of, as they are stored."""
        return self._rule.num_bytes

    @property
    def counters(self) -> TierCounters:
        """What happened since this process opened the tier."""
        with self._books:
            return TierCounters(**self._counts)

    def get(self, key: BlockKey, layers: range | None = None) -> KVBlock | None:
        """The block last put under ``key`` by any process; None where it is absent, damaged or cannot be read now. With
        ``layers`` the pairs of all others are left out where that saves reading them."""
        try:
            block = self._medium.read(key, layers)
        except OtherVersion:
            self._count("other_version")
            return None
        except CorruptBlock:
            self._count("corrupt")
            self._set_aside(key)
            return None
        except OSError as error:
            self._count_fault("read_errors", error)
            return None
        cost = None if block is None else block.cost
        with self._books:
            was_known = key in self._rule
            self._rule.touch(key, cost)
        if was_known != (block is not None):
            self._learn(key, cost)
        return block

    def put(self, block: KVBlock) -> tuple[KVBlock, ...]:
        """Write the block; gives the block itself where it cannot fit or be written, else nothing."""
        if self._medium.is_resting:  # before the work of encoding, and before waiting for other writers
            self._count("skipped")
            return (block,)
        content = encode(block) if block.num_bytes <= self.max_bytes else None
        with self._writing:
            if self._unscanned_bytes * _RESCAN_FRACTION >= self.max_bytes:
                with self._counting_faults("read_errors"):  # then the books stay as they are
                    self._rescan()
            victims = None if content is None else self._room_for(block.key, len(content))
            if content is None or victims is None:
                self._count("refused")
                self.discard(block.key)
                return (block,)
            with self._counting_faults("write_errors"):
                self._evict(victims)
                self._medium.publish(block.key, content)
                with self._books:
                    self._rule.add(block.key, len(content), block.cost)
                self._unscanned_bytes += len(content)
                return ()
            with contextlib.suppress(OSError):  # the former entry must not answer for the new one
                self._remove(block.key)
            return (block,)

    def discard(self, key: BlockKey) -> None:
        """Have no entry of this key, for any process."""
        with self._writing, self._counting_faults("write_errors"):
            self._remove(key)

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

    def __contains__(self, key: BlockKey) -> bool:
        try:
            return self._medium.size_of(key) is not None
        except OSError:
            return False

    def _evict(self, keys: Sequence[BlockKey]) -> None:
        """Make room: remove the entries, then their bytes from the books. On OSError these stay as they were, though a
        medium may have removed some: to count what is gone breaks no budget, and lasts until the next scan."""
        self._medium.remove(keys)
        with self._books:
            for key in keys:
                self._rule.evict(key)
        self._count("evictions", len(keys))

    def _remove(self, key: BlockKey) -> None:
        """Remove the entry, then its bytes from the books; raises OSError with both as they were."""
        self._medium.remove([key])
        with self._books:
            self._rule.remove(key)

    def _set_aside(self, key: BlockKey) -> None:
        """Move a damaged entry out of the way, so that it is read once only."""
        with self._writing, self._counting_faults("write_errors"):
            self._medium.quarantine(key)
            with self._books:
                self._rule.remove(key)

    def _learn(self, key: BlockKey, cost: int | None) -> None:
        """Make the books say of one key what the medium says: another process wrote or removed it."""
        with self._writing, self._counting_faults("read_errors"):
            num_bytes = self._medium.size_of(key)
            with self._books:
                if num_bytes is None:
                    self._rule.remove(key)
                elif key not in self._rule:
                    self._rule.add(key, num_bytes, cost)

    def _rescan(self) -> None:
        """Make the books say what the medium says. Where that records no uses, what is known keeps its place and what
        is new counts as used now."""
        with _without_collection():
            listed = dict(self._medium.scan())
            with self._books:
                if not self._medium.records_uses:
                    listed = {key: listed[key] for key in self._rule if key in listed} | listed
                self._rule.replace_all((key, num_bytes, None) for key, num_bytes in listed.items())
        self._unscanned_bytes = 0

    def _room_for(self, key: BlockKey, num_bytes: int) -> tuple[BlockKey, ...] | None:
        with self._books:
            return self._rule.room_for(key, num_bytes)

    @contextlib.contextmanager
    def _counting_faults(self, name: str) -> Iterator[None]:
        """Scope that a fault of the medium ends: then it is a counter."""
        try:
            yield
        except OSError as error:
            self._count_fault(name, error)

    def _count_fault(self, name: str, error: OSError) -> None:
        self._count("skipped" if isinstance(error, Resting) else name)

    def _count(self, name: str, times: int = 1) -> None:
        with self._books:
            self._counts[name] += times


@contextlib.contextmanager
def _without_collection() -> Iterator[None]:
    """Scope without cyclic garbage collection: where hundreds of thousands of objects are made that all stay, to look
    through them again and again takes a third of the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
