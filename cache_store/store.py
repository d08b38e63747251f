"""The store: tiers, fastest first, as one cache of blocks.

A block that is put goes to the fastest tier and to every shared one: Ray workers compute for each other, so a block
that only its maker could see would be computed again. Tiers whose medium is slow are written behind (``tiers.behind``),
which ``flush`` waits for. What a tier pushes out moves to the next slower one, unless it is there already; a hit in a
slower tier is promoted to the fastest.

Invariants: ``get`` gives None or exactly what was last put under the key; no fault of a tier leaves as an
exception; pinned entries are not evicted. Two calls about one key at the same time may land in either order
in each tier, which is sound because a key decides its bytes (``block.Identity``).
"""

from __future__ import annotations

import pkgutil
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from cache_store.block import KVBlock
from cache_store.errors import UnusableTier
from cache_store.identity import BlockKey
from cache_store.tiers.base import Tier
from cache_store.tiers.behind import WriteBehind
from configs import schema

# Names, not classes: what a tier needs is imported when a job asks for it.
_TIERS: Mapping[str, str] = {
    "memory": "cache_store.tiers.memory:MemoryTier",
    "files": "cache_store.tiers.files:FilesTier",
    "objects": "cache_store.tiers.objects:ObjectsTier",
    "ray": "cache_store.tiers.object_store:RayTier",
}


@dataclass(frozen=True)
class StoreCounters:
    """What happened to a store since it was opened. ``hits`` and ``num_bytes`` are by tier name.

    ``demotions``: blocks that a tier pushed out or refused and a slower one holds. ``evictions``,
    ``refused``, ``corrupt``, ``other_version``, ``read_errors``, ``write_errors``, ``skipped``: summed over tiers.
    """

    hits: Mapping[str, int]
    misses: int
    promotions: int
    demotions: int
    evictions: int
    refused: int
    corrupt: int
    other_version: int
    read_errors: int
    write_errors: int
    skipped: int
    num_bytes: Mapping[str, int]


class TieredStore:
    """Tiers as one cache; every method may be called from many threads at once."""

    def __init__(self, tiers: Sequence[Tier]) -> None:
        names = [tier.name for tier in tiers]
        if len(set(names)) < len(names):
            raise ValueError(f"tiers: names {names} are not unique")
        self._tiers = tuple(tiers)
        self._lock = threading.Lock()
        self._hits: Counter[str] = Counter()
        self._counts: Counter[str] = Counter()

    @classmethod
    def from_config(cls, store: schema.Store) -> TieredStore:
        """The store that a job asks for; UnusableTier names the key of a tier that cannot be opened."""
        kinds = [tier.kind for tier in store.tiers]
        tiers: list[Tier] = []
        for index, config in enumerate(store.tiers):
            name = config.kind if kinds.count(config.kind) == 1 else f"{config.kind}[{index}]"
            try:
                tier = pkgutil.resolve_name(_TIERS[config.kind]).from_config(config, name)
            except UnusableTier as error:
                raise UnusableTier(f"store.tiers[{index}].{error}") from error
            pending_bytes = int(getattr(config, "pending_bytes", 0))
            tiers.append(WriteBehind(tier, pending_bytes) if pending_bytes else tier)
        return cls(tiers)

    def get(self, key: BlockKey, layers: range | None = None) -> KVBlock | None:
        """The block of this key from the fastest tier that has it, or None. Its tensors are read-only. With ``layers``
        the pairs of all others may be left out; such a part is not promoted."""
        for index, tier in enumerate(self._tiers):
            block = tier.get(key, layers)
            if block is not None:
                with self._lock:
                    self._hits[tier.name] += 1
                if index > 0 and layers is None:
                    self._count("promotions")
                    self._settle(self._tiers[0].put(block), below=1)
                return block
        self._count("misses")
        return None

    def put(self, block: KVBlock) -> None:
        """Keep the block as far as budgets allow, in place of any former block of its key."""
        # Slowest first, so that no former block of the key is left below the new one.
        for index, tier in reversed(tuple(enumerate(self._tiers))):
            if index == 0 or tier.shared:
                self._settle(tier.put(block), below=index + 1)
            else:
                tier.discard(block.key)

    @contextmanager
    def pin(self, keys: Iterable[BlockKey]) -> Iterator[Mapping[BlockKey, KVBlock]]:
        """Scope with those of the blocks that are present; no tier evicts them until it ends."""
        wanted = tuple(dict.fromkeys(keys))
        # Pinned before they are read: between a read and a pin another thread could push them out.
        for tier in self._tiers:
            tier.pin(wanted)
        try:
            found = ((key, self.get(key)) for key in wanted)
            yield {key: block for key, block in found if block is not None}
        finally:
            for tier in self._tiers:
                tier.unpin(wanted)

    def free(self, keys: Iterable[BlockKey]) -> None:
        """Drop these entries from every tier; scopes that pinned them keep their blocks."""
        for key in keys:
            for tier in self._tiers:
                tier.discard(key)

    def flush(self) -> None:
        """Wait until everything that was put is written, or could not be."""
        for tier in self._tiers:
            if isinstance(tier, WriteBehind):
                tier.flush()

    @property
    def counters(self) -> StoreCounters:
        """What happened until now, as values that no longer change."""
        tiers = [tier.counters for tier in self._tiers]
        with self._lock:
            return StoreCounters(
                hits={tier.name: self._hits[tier.name] for tier in self._tiers},
                misses=self._counts["misses"],
                promotions=self._counts["promotions"],
                demotions=self._counts["demotions"],
                evictions=sum(tier.evictions for tier in tiers),
                refused=sum(tier.refused for tier in tiers),
                corrupt=sum(tier.corrupt for tier in tiers),
                other_version=sum(tier.other_version for tier in tiers),
                read_errors=sum(tier.read_errors for tier in tiers),
                write_errors=sum(tier.write_errors for tier in tiers),
                skipped=sum(tier.skipped for tier in tiers),
                num_bytes={tier.name: tier.num_bytes for tier in self._tiers},
            )

    def _settle(self, pushed: Sequence[KVBlock], below: int) -> None:
        """Find a place, in the tiers from ``below`` on, for blocks that a tier did not keep."""
        for tier in self._tiers[below:]:
            homeless: list[KVBlock] = []
            for block in pushed:
                out = () if block.key in tier else tier.put(block)
                homeless.extend(out)
                if all(other.key != block.key for other in out):
                    self._count("demotions")
            pushed = homeless

    def _count(self, name: str) -> None:
        with self._lock:
            self._counts[name] += 1
