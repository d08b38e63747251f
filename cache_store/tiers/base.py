"""What a tier is: a place for blocks with a byte budget. ``tests/cache_store/test_tiers.py`` is its law.

Invariants, for every implementation: ``get`` gives exactly what was last put under the key, or None, never
another block; ``num_bytes <= max_bytes`` after every call; a block that cannot fit is refused and nothing
else leaves for it; a fault of the medium (damage, a full or missing disk) is None or a refusal and a counter,
never an exception; every method may be called from many threads at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from cache_store.block import KVBlock
from cache_store.identity import BlockKey


@dataclass(frozen=True)
class TierCounters:
    """What happened to a tier since it was opened. ``refused``: blocks that did not fit. ``corrupt``: entries
    that were not what was written. ``other_version``: entries of another format version, left alone. ``skipped``:
    calls that were not made because the medium did not answer a moment ago."""

    evictions: int = 0
    refused: int = 0
    corrupt: int = 0
    other_version: int = 0
    read_errors: int = 0
    write_errors: int = 0
    skipped: int = 0


class Tier(Protocol):
    """One place for blocks."""

    @property
    def name(self) -> str:
        """What counters call it; unique within a store."""
        ...

    @property
    def shared(self) -> bool:
        """Whether other processes see the entries: then a store writes every block here at once."""
        ...

    @property
    def max_bytes(self) -> int:
        """The budget."""
        ...

    @property
    def num_bytes(self) -> int:
        """Bytes of the entries that this process knows of, as this tier stores them."""
        ...

    @property
    def counters(self) -> TierCounters:
        """What happened since the tier was opened."""
        ...

    def get(self, key: BlockKey, layers: range | None = None) -> KVBlock | None:
        """The block last put under ``key``; None where it is absent or unreadable. Counts as a use. With ``layers`` a
        tier may leave out the pairs of all others, where that saves reading them."""
        ...

    def put(self, block: KVBlock) -> tuple[KVBlock, ...]:
        """Keep the block in place of its key's former entry; those that are worth least (``eviction``) make room.

        Gives the blocks that are not held for it, for a slower tier: what was pushed out, or ``block`` itself
        when it was refused or could not be written (then no entry of its key is left). A shared tier does not
        read back what it pushed out. The tier does not keep the caller's tensors.
        """
        ...

    def discard(self, key: BlockKey) -> None:
        """Have no entry of this key, pinned or not."""
        ...

    def pin(self, keys: Iterable[BlockKey]) -> None:
        """Never evict entries of these keys, present or future, until ``unpin`` was called as often."""
        ...

    def unpin(self, keys: Iterable[BlockKey]) -> None:
        """Take back one ``pin`` of each of these keys."""
        ...

    def keys(self) -> Iterator[BlockKey]:
        """Keys of the entries that this process knows of, first to leave first, as a snapshot."""
        ...

    def __contains__(self, key: BlockKey) -> bool:
        """Whether there is an entry of this key; its bytes are not looked at."""
        ...
