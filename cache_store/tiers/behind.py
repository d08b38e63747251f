"""Writing behind: a tier of which nobody waits for the medium.

``put`` remembers the block and returns; one thread writes what is remembered, in order. Back-pressure: once blocks of
``pending_bytes`` wait, so does the next ``put``, so that a slow medium slows its writers down and never fills their
memory. Invariants: a block that waits is read from memory, and replaced or discarded there, so that ``get`` gives what
was put last, written or not; what the medium refuses in the end is counted, as ever, and is a miss, for nobody is there
any more to give it back to; other processes see a block once it is written.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from cache_store.block import KVBlock
from cache_store.identity import BlockKey
from cache_store.tiers.base import Tier, TierCounters

_log = logging.getLogger(__name__)


class WriteBehind:
    """``tier``, written by a thread of its own; at most ``pending_bytes`` of tensor elements wait, or one block."""

    def __init__(self, tier: Tier, pending_bytes: int) -> None:
        self._tier = tier
        self._pending_bytes = pending_bytes
        self._waiting: dict[BlockKey, KVBlock] = {}
        self._waiting_bytes = 0
        self._in_hand: BlockKey | None = None
        self._changed = threading.Condition()
        # Its thread is joined when the interpreter ends: a process that ends in peace loses nothing.
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"write-{tier.name}")

    @property
    def name(self) -> str:
        """As ``Tier.name``."""
        return self._tier.name

    @property
    def shared(self) -> bool:
        """As ``Tier.shared``."""
        return self._tier.shared

    @property
    def max_bytes(self) -> int:
        """As ``Tier.max_bytes``."""
        return self._tier.max_bytes

    @property
    def num_bytes(self) -> int:
        """Bytes of what is written."""
        return self._tier.num_bytes

    @property
    def counters(self) -> TierCounters:
        """As ``Tier.counters``: of what was written, or could not be."""
        return self._tier.counters

    def get(self, key: BlockKey, layers: range | None = None) -> KVBlock | None:
        """As ``Tier.get``; a block that waits is given whole."""
        with self._changed:
            waiting = self._waiting.get(key)
        return waiting if waiting is not None else self._tier.get(key, layers)

    def put(self, block: KVBlock) -> tuple[KVBlock, ...]:
        """Have the block written soon; gives the block itself where the tier could never hold it, else nothing."""
        if block.num_bytes > self.max_bytes:
            self.flush([block.key])
            return self._tier.put(block)
        with self._changed:
            self._changed.wait_for(lambda: self._has_room(block))
            self._forget(block.key)
            self._waiting[block.key] = block.copy()
            self._waiting_bytes += block.num_bytes
        self._writer.submit(self._write, block.key).add_done_callback(_report)
        return ()

    def discard(self, key: BlockKey) -> None:
        """As ``Tier.discard``. Waits for a write of this key that has begun."""
        with self._changed:
            self._forget(key)
            self._changed.wait_for(lambda: self._in_hand != key)
        self._tier.discard(key)

    def flush(self, keys: Iterable[BlockKey] | None = None) -> None:
        """Wait until nothing of these keys waits or is being written; None: of all."""
        wanted = None if keys is None else frozenset(keys)
        with self._changed:
            self._changed.wait_for(lambda: not self._unwritten(wanted))

    def pin(self, keys: Iterable[BlockKey]) -> None:
        """As ``Tier.pin``."""
        self._tier.pin(keys)

    def unpin(self, keys: Iterable[BlockKey]) -> None:
        """As ``Tier.unpin``."""
        self._tier.unpin(keys)

    def keys(self) -> Iterator[BlockKey]:
        """Keys of what is written, first to leave first, then of what waits, as a snapshot."""
        with self._changed:
            waiting = tuple(self._waiting)
        written = tuple(self._tier.keys())
        return iter(dict.fromkeys((*written, *waiting)))

    def __contains__(self, key: BlockKey) -> bool:
        with self._changed:
            if key in self._waiting:
                return True
        return key in self._tier

    def _has_room(self, block: KVBlock) -> bool:
        """Whether a block may wait too; the one that it takes the place of leaves."""
        former = self._waiting.get(block.key)
        others = self._waiting_bytes - (former.num_bytes if former is not None else 0)
        return not others or others + block.num_bytes <= self._pending_bytes

    def _forget(self, key: BlockKey) -> None:
        former = self._waiting.pop(key, None)
        if former is not None:
            self._waiting_bytes -= former.num_bytes
            self._changed.notify_all()

    def _unwritten(self, wanted: frozenset[BlockKey] | None) -> bool:
        left = {*self._waiting, *([] if self._in_hand is None else [self._in_hand])}
        return bool(left if wanted is None else left & wanted)

    def _write(self, key: BlockKey) -> None:
        """Write what waits under this key, if it still does. It stays readable until it is written."""
        with self._changed:
            block = self._waiting.get(key)
            self._in_hand = key if block is not None else None
        if block is None:
            return
        try:
            self._tier.put(block)
        finally:
            with self._changed:
                self._in_hand = None
                if self._waiting.get(key) is block:
                    self._forget(key)
                self._changed.notify_all()


def _report(written: Future[None]) -> None:
    """Tiers raise nothing; should one do so all the same, it is seen."""
    error = written.exception()
    if error is not None:
        _log.error("a block could not be written", exc_info=error)
