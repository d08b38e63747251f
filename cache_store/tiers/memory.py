"""The tier in this process's memory: fastest, private, gone with the process.

Invariants: the entries' tensors belong to the tier (a block is copied when it is put, so that neither a later
write by the caller nor a view into a large buffer survives in it); ``get`` gives these tensors themselves, to
be read only.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Iterator

from cache_store.block import KVBlock
from cache_store.eviction import CostAware
from cache_store.identity import BlockKey
from cache_store.tiers.base import TierCounters
from configs.schema import MemoryTier as MemoryConfig


class MemoryTier:
    """Blocks in a dictionary, ``max_bytes`` of tensor elements at most."""

    shared = False

    def __init__(self, max_bytes: int, name: str = "memory") -> None:
        self.name = name
        self.max_bytes = max_bytes
        self._lock = threading.Lock()
        self._rule = CostAware(max_bytes)
        self._blocks: dict[BlockKey, KVBlock] = {}
        self._counts: Counter[str] = Counter()

    @classmethod
    def from_config(cls, config: MemoryConfig, name: str) -> MemoryTier:
        """The tier that a job's ``{kind: memory}`` asks for."""
        return cls(int(config.max_bytes), name)

    @property
    def num_bytes(self) -> int:
        """Bytes of the entries' tensor elements."""
        return self._rule.num_bytes

    @property
    def counters(self) -> TierCounters:
        """What happened since the tier was made."""
        with self._lock:
            return TierCounters(**self._counts)

    def get(self, key: BlockKey, layers: range | None = None) -> KVBlock | None:
        """The whole block last put under ``key``, its tensors shared with the tier; None where it is absent."""
        with self._lock:
            self._rule.touch(key)
            return self._blocks.get(key)

    def put(self, block: KVBlock) -> tuple[KVBlock, ...]:
        """Keep a copy of the block; gives what was pushed out, or the block itself where it cannot fit."""
        with self._lock:
            victims = self._rule.room_for(block.key, block.num_bytes)
            if victims is None:
                self._remove(block.key)
                self._counts["refused"] += 1
                return (block,)
            for key in victims:
                self._rule.evict(key)
            pushed = tuple(self._blocks.pop(key) for key in victims)
            self._counts["evictions"] += len(victims)
            self._rule.add(block.key, block.num_bytes, block.cost)
            self._blocks[block.key] = block.copy()
            return pushed

    def discard(self, key: BlockKey) -> None:
        """Have no entry of this key."""
        with self._lock:
            self._remove(key)

    def pin(self, keys: Iterable[BlockKey]) -> None:
        """Never evict entries of these keys until ``unpin`` was called as often."""
        with self._lock:
            self._rule.pin(keys)

    def unpin(self, keys: Iterable[BlockKey]) -> None:
        """Take back one ``pin`` of each of these keys."""
        with self._lock:
            self._rule.unpin(keys)

    def keys(self) -> Iterator[BlockKey]:
        """Keys of all entries, first to leave first, as a snapshot."""
        with self._lock:
            return iter(self._rule)

    def __contains__(self, key: BlockKey) -> bool:
        return key in self._blocks

    def _remove(self, key: BlockKey) -> None:
        self._blocks.pop(key, None)
        self._rule.remove(key)
