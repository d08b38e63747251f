"""The Ray tier where there is no room, and where there is no Ray any more."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
import ray
from ray.exceptions import OutOfDiskError

from cache_store.tiers.base import TierCounters
from cache_store.tiers.object_store import RayTier
from tests.cache_store.blocks import make_block, make_key, same
from tests.cache_store.clusters import ray_cluster

pytestmark = pytest.mark.cluster

NO_DISK = {"automatic_object_spilling_enabled": False, "local_fs_capacity_threshold": 0.0}


def test_a_full_object_store_and_a_lost_cluster_are_refusals_and_counters() -> None:
    block = make_block(0, tokens=2000, head_dim=64)
    with ray_cluster(_system_config=NO_DISK):
        tier = RayTier(2**30)
        assert tier.put(block) == () and same(tier.get(block.key), block)
        others = list(fill())
        larger = make_block(0, tokens=10000, head_dim=64)
        assert tier.put(larger) == (larger,)
        assert tier.get(block.key) is None and tier.num_bytes == 0
        assert tier.counters == TierCounters(write_errors=1)
        del others
    assert tier.get(make_key(0)) is None and make_key(0) not in tier and tier.put(block) == (block,)
    assert tier.counters.write_errors == 2 and not ray.is_initialized()


def fill() -> Iterator[ray.ObjectRef[bytes]]:
    """Objects until there is no room for one more."""
    with contextlib.suppress(OutOfDiskError):
        while True:
            yield ray.put(bytes(2**20))
