"""The Ray tier on small real clusters: read in place, outliving its makers, gone when freed, and what goes wrong."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import ray
from ray._private.internal_api import get_memory_info_reply, get_state_from_address
from ray._private.state import actors
from ray.cluster_utils import Cluster
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cache_store.block import KVBlock
from cache_store.errors import UnusableTier
from cache_store.store import TieredStore
from cache_store.tiers.base import TierCounters
from cache_store.tiers.ledger import Weight
from cache_store.tiers.memory import MemoryTier
from cache_store.tiers.object_store import RayTier, open_ledger
from configs import schema
from tests.cache_store.blocks import make_block, make_key, same
from tests.cache_store.clusters import STORE_BYTES, ray_cluster
from tests.pipeline import drivers

pytestmark = pytest.mark.cluster

ROOM = 2**30
SIZE = make_block().num_bytes


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A cluster whose ledger is this process's, as it is the driver's in a job."""
    with ray_cluster() as cluster:
        ledger = open_ledger()
        yield cluster
        del ledger


@pytest.fixture
def tier(cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[RayTier]:
    """A tier of this test's own, empty before and after."""
    tier = RayTier(ROOM, request.node.name)
    yield tier
    empty(tier)


def empty(tier: RayTier) -> None:
    for key in tuple(tier.keys()):
        tier.discard(key)


def large(number: int) -> KVBlock:
    """A block of 4 MB: it goes to shared memory, where small ones do not."""
    return make_block(number, tokens=2000, head_dim=64)


class Worker:
    """A process that has a tier open."""

    def __init__(self, name: str) -> None:
        self._tier = RayTier(ROOM, name)

    def put(self, number: int) -> bool:
        return self._tier.put(large(number)) == ()

    def has(self, number: int) -> bool:
        return same(self._tier.get(make_key(number)), large(number))

    def ask_a_store(self, number: int) -> dict[str, int]:
        store = TieredStore([MemoryTier(ROOM), self._tier])
        assert same(store.get(make_key(number)), large(number))
        return dict(store.counters.hits)


def start_worker(node: Any, tier: RayTier) -> Any:
    there = NodeAffinitySchedulingStrategy(node.node_id, soft=False)
    return ray.remote(Worker).options(num_cpus=0, scheduling_strategy=there).remote(tier.name)


def used_bytes() -> int:
    """Of the object stores of all nodes."""
    state = get_state_from_address(ray.get_runtime_context().gcs_address)  # type: ignore[no-untyped-call]
    return int(get_memory_info_reply(state).store_stats.object_store_bytes_used)  # type: ignore[no-untyped-call]


def num_hands() -> int:
    found = actors().values()
    return sum(actor["ActorClassName"].endswith("StoreHand") and actor["State"] == "ALIVE" for actor in found)


def comes_true(condition: Callable[[], bool]) -> bool:
    """Whether it does before long; Ray tidies up about once a second."""
    end_s = time.monotonic() + 60
    while not condition():
        if time.monotonic() > end_s:
            return False
        time.sleep(0.1)
    return True


def test_two_reads_on_a_node_are_of_one_memory(tier: RayTier) -> None:
    tier.put(large(0))
    one, other = tier.get(make_key(0)), tier.get(make_key(0))
    assert one is not None and other is not None and same(one, large(0))
    for mine, theirs in zip(one.tensors.values(), other.tensors.values(), strict=True):
        assert mine.data_ptr() == theirs.data_ptr()


def test_freed_entries_leave_the_object_store_and_then_the_hand_leaves(tier: RayTier) -> None:
    assert comes_true(lambda: used_bytes() == 0 and num_hands() == 0)
    for number in range(5):
        tier.put(large(number))
    last = tier.get(make_key(4))
    num_bytes = 5 * large(0).num_bytes
    assert tier.num_bytes == num_bytes <= used_bytes() and num_hands() == 1
    for number in range(5):
        tier.discard(make_key(number))
    assert comes_true(lambda: 0 < used_bytes() < num_bytes / 4), "the last one is being read"
    assert same(last, large(4))
    del last
    assert comes_true(lambda: used_bytes() == 0 and num_hands() == 0)


def test_evicted_entries_leave_the_object_store(cluster: Cluster) -> None:
    tier = RayTier(2 * large(0).num_bytes, "small")
    for number in range(8):
        assert tier.put(large(number)) == ()
    assert tier.counters == TierCounters(evictions=6)
    assert comes_true(lambda: used_bytes() < 3 * large(0).num_bytes)
    assert same(tier.get(make_key(7)), large(7)) and tier.get(make_key(0)) is None
    empty(tier)


def test_a_second_node_answers_from_what_the_first_one_read_and_outlives_it(cluster: Cluster, tier: RayTier) -> None:
    second = cluster.add_node(num_cpus=1, object_store_memory=STORE_BYTES)
    assert tier.put(large(0)) == ()
    maker, reader = start_worker(second, tier), start_worker(second, tier)
    assert ray.get(reader.ask_a_store.remote(0)) == {"memory": 0, tier.name: 1}
    assert ray.get([maker.put.remote(1), maker.put.remote(2)]) == [True, True]
    assert ray.get([reader.has.remote(1), reader.has.remote(2)]) == [True, True]

    ray.kill(maker)
    assert comes_true(lambda: not is_alive(maker))
    assert ray.get([reader.has.remote(1), reader.has.remote(2)]) == [True, True]
    assert same(tier.get(make_key(1)), large(1)), "read from the other node, of which a copy stays here"

    cluster.remove_node(second)
    assert same(tier.get(make_key(0)), large(0)) and same(tier.get(make_key(1)), large(1))
    assert tier.counters == TierCounters()
    assert tier.get(make_key(2)) is None, "it was on that node only"
    assert tier.get(make_key(2)) is None and make_key(2) not in tier
    assert tier.counters == TierCounters(read_errors=1)


def is_alive(actor: Any) -> bool:
    return bool(actors(actor._actor_id.hex())["State"] == "ALIVE")


def test_a_pin_holds_against_every_process(cluster: Cluster) -> None:
    one, other = RayTier(2 * SIZE, "pinned"), RayTier(2 * SIZE, "pinned")
    one.put(make_block(0))
    one.pin([make_key(0)])
    other.unpin([make_key(0)])
    for number in range(1, 4):
        assert other.put(make_block(number)) == ()
    assert set(other.keys()) == {make_key(0), make_key(3)}
    one.unpin([make_key(0)])
    other.put(make_block(4))
    other.put(make_block(5))
    assert one.get(make_key(0)) is None
    assert one.counters == TierCounters() and other.counters == TierCounters(evictions=4)


class Poison:
    """What cannot be looked at."""

    def __reduce__(self) -> Any:
        return os._exit, (1,)


def test_what_kills_a_hand_is_lost_alone(tier: RayTier) -> None:
    tier.put(make_block(0))
    assert same(tier.get(make_key(0)), make_block(0))
    tier._ask("keep", make_key(1), Weight(10, 1.0), tier._node, [ray.put(Poison())])
    assert tier.get(make_key(1)) is None
    assert same(tier.get(make_key(0)), make_block(0))
    assert comes_true(lambda: tier.put(make_block(2)) == () and same(tier.get(make_key(2)), make_block(2)))


def test_another_block_under_a_key_is_a_miss(tier: RayTier) -> None:
    tier.put(make_block(0))
    (stored,) = tier._ask("find", make_key(0))
    tier._ask("keep", make_key(1), Weight(SIZE, 1.0), tier._node, [stored])
    assert tier.get(make_key(1)) is None and tier.get(make_key(1)) is None
    assert tier.counters == TierCounters(corrupt=1)
    assert same(tier.get(make_key(0)), make_block(0))


def test_a_ledger_that_died_is_begun_anew(tier: RayTier) -> None:
    tier.put(make_block(0))
    ray.kill(tier._ledger)
    assert tier.get(make_key(0)) is None
    assert tier.counters == TierCounters(read_errors=1)
    assert tier.put(make_block(0)) == () and same(tier.get(make_key(0)), make_block(0))
    assert tier.counters == TierCounters(read_errors=1)


def ask_for_a_tier_where_no_ray_is() -> None:
    with pytest.raises(UnusableTier, match=r"^store\.tiers\[0\]\.kind: 'ray' needs .* allowed: with pool\.kind: ray"):
        TieredStore.from_config(schema.Store(tiers=(schema.RayTier(),)))
    assert not ray.is_initialized()


def test_without_a_cluster_the_tier_cannot_be_opened() -> None:
    """In a process that has none."""
    assert drivers.finish(drivers.start(ask_for_a_tier_where_no_ray_is)) == 0
