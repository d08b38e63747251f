"""Every tier that there is, by its kind in a job: a new one must be added here to pass the laws."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from cache_store.block import KVBlock
from cache_store.tiers.base import Tier
from cache_store.tiers.files import FilesTier
from cache_store.tiers.memory import MemoryTier
from cache_store.tiers.object_store import RayTier
from cache_store.tiers.objects import ObjectsTier
from tests.cache_store.clusters import join_shared_cluster


def _memory(directory: Path, max_bytes: int) -> Tier:
    return MemoryTier(max_bytes)


def _files(directory: Path, max_bytes: int) -> Tier:
    return FilesTier(directory, max_bytes)


def _ray(directory: Path, max_bytes: int) -> Tier:
    join_shared_cluster()
    return RayTier(max_bytes, str(directory))


def _objects(directory: Path, max_bytes: int) -> Tier:
    return ObjectsTier(directory.as_uri(), max_bytes)


def _in_memory(directory: Path, max_bytes: int) -> Tier:
    return ObjectsTier("memory://store", max_bytes)


OPENERS: Mapping[str, Callable[[Path, int], Tier]] = {
    "memory": _memory,
    "files": _files,
    "ray": _ray,
    "objects": _objects,
    "objects, obstore's memory": _in_memory,
}
"""By kind, and what tells two of a kind apart behind a comma."""


def cost(kind: str, scratch: Path, block: KVBlock) -> int:
    """Bytes that a tier of this kind counts for a block; blocks of equal shapes cost the same."""
    tier = OPENERS[kind](scratch / "cost", 2**30)
    tier.discard(block.key)
    before = tier.num_bytes
    tier.put(block)
    return tier.num_bytes - before
