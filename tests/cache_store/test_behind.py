"""Laws of writing behind: nobody waits, nothing is lost or late to its own process, and memory has a bound."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ByteSize

from cache_store.block import KVBlock
from cache_store.identity import BlockKey
from cache_store.store import TieredStore
from cache_store.tiers.behind import WriteBehind
from cache_store.tiers.memory import MemoryTier
from configs import schema
from tests.cache_store.blocks import make_block, make_key, same

SIZE = make_block().num_bytes
ROOM = 100 * SIZE


class GatedTier(MemoryTier):
    """A medium that takes nothing while its gate is shut; ``written``: what it took, in order."""

    def __init__(self, max_bytes: int = ROOM) -> None:
        super().__init__(max_bytes, "gated")
        self.gate = threading.Event()
        self.begun = threading.Semaphore(0)
        self.written: list[BlockKey] = []

    def put(self, block: KVBlock) -> tuple[KVBlock, ...]:
        self.begun.release()
        assert self.gate.wait(30)
        self.written.append(block.key)
        return super().put(block)


@pytest.fixture
def medium() -> Iterator[GatedTier]:
    tier = GatedTier()
    yield tier
    tier.gate.set()  # or its thread would keep the interpreter


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor() as executor:
        yield executor


def still_waits(future: Future[object]) -> bool:
    return not wait([future], timeout=0.2).done


def test_a_put_waits_for_no_medium_and_is_read_at_once(medium: GatedTier) -> None:
    tier = WriteBehind(medium, ROOM)
    for number in range(5):
        assert tier.put(make_block(number)) == ()
    assert all(same(tier.get(make_key(number)), make_block(number)) for number in range(5))
    assert all(make_key(number) in tier for number in range(5)) and len(list(tier.keys())) == 5
    assert not list(medium.keys()) and tier.num_bytes == 0
    medium.gate.set()
    tier.flush()
    assert medium.written == [make_key(number) for number in range(5)] and tier.num_bytes == 5 * SIZE
    assert all(same(medium.get(make_key(number)), make_block(number)) for number in range(5))


def test_a_writer_waits_once_too_much_is_pending(medium: GatedTier, pool: ThreadPoolExecutor) -> None:
    tier = WriteBehind(medium, 2 * SIZE)
    for number in range(2):
        tier.put(make_block(number))
    third = pool.submit(tier.put, make_block(2))
    assert still_waits(third)
    assert same(tier.get(make_key(1)), make_block(1)), "readers do not wait with it"
    tier.put(make_block(1, 7))  # takes the place of one that waits, and needs no room
    medium.gate.set()
    assert third.result(30) == ()
    tier.flush()
    assert same(medium.get(make_key(1)), make_block(1, 7))


def test_a_block_beyond_what_may_be_pending_waits_alone(medium: GatedTier) -> None:
    tier, large = WriteBehind(medium, SIZE), make_block(0, tokens=30)
    medium.gate.set()
    tier.put(make_block(1))
    tier.put(large)
    tier.flush()
    assert same(medium.get(large.key), large)


def test_what_the_tier_could_never_hold_is_given_back() -> None:
    medium = GatedTier(SIZE)
    medium.gate.set()
    tier, large = WriteBehind(medium, ROOM), make_block(0, tokens=30)
    tier.put(make_block(0))
    assert tier.put(large) == (large,)
    assert tier.get(large.key) is None and tier.counters.refused == 1


def test_the_last_of_many_puts_of_a_key_is_what_stays(medium: GatedTier) -> None:
    tier = WriteBehind(medium, ROOM)
    for version in range(4):
        tier.put(make_block(0, version))
    assert same(tier.get(make_key(0)), make_block(0, 3))
    medium.gate.set()
    tier.flush()
    assert same(medium.get(make_key(0)), make_block(0, 3))
    assert len(medium.written) <= 4


def test_what_is_discarded_while_it_waits_is_never_written(medium: GatedTier, pool: ThreadPoolExecutor) -> None:
    tier = WriteBehind(medium, ROOM)
    for number in range(3):
        tier.put(make_block(number))
    assert medium.begun.acquire(timeout=30)
    tier.discard(make_key(1))
    in_hand = pool.submit(tier.discard, make_key(0))
    assert still_waits(in_hand), "a write that has begun cannot be taken back"
    assert tier.get(make_key(0)) is None and tier.get(make_key(1)) is None
    medium.gate.set()
    in_hand.result(30)
    tier.flush()
    assert list(tier.keys()) == [make_key(2)] and make_key(1) not in medium.written


def test_the_caller_may_write_into_its_tensors_after_a_put(medium: GatedTier) -> None:
    tier, block = WriteBehind(medium, ROOM), make_block()
    tier.put(block)
    block.keys_ND.zero_()
    assert same(tier.get(block.key), make_block())


verbs = st.sampled_from(["put", "put", "get", "discard", "flush", "open", "shut"])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(verbs, st.integers(0, 4), st.integers(0, 6)), max_size=30))
def test_any_history_reads_like_a_dictionary(history: list[tuple[str, int, int]]) -> None:
    """Whatever is written when: with room for all, nothing is lost, and nothing that is gone comes back."""
    medium = GatedTier()
    tier = WriteBehind(medium, ROOM)
    model: dict[int, KVBlock] = {}
    try:
        for step, (verb, key, tokens) in enumerate(history):
            if verb == "put":
                model[key] = make_block(key, step, tokens=tokens)
                tier.put(model[key])
            elif verb in ("open", "shut"):
                (medium.gate.set if verb == "open" else medium.gate.clear)()
            elif verb in ("discard", "flush"):
                medium.gate.set()  # both may wait for a write
                tier.discard(make_key(key)) if verb == "discard" else tier.flush()
                if verb == "discard":
                    model.pop(key, None)
            for number in range(5):
                assert same(tier.get(make_key(number)), model.get(number))
            assert set(tier.keys()) == {make_key(number) for number in model}
    finally:
        medium.gate.set()
    tier.flush()
    for number in range(5):
        assert same(medium.get(make_key(number)), model.get(number))


def test_a_job_says_what_is_written_behind(tmp_path: Path) -> None:
    for number in range(2):
        (tmp_path / str(number)).mkdir()
    tiers = (
        schema.FilesTier(path=str(tmp_path / "files")),
        schema.FilesTier(path=str(tmp_path / "behind"), pending_bytes=ByteSize(SIZE)),
        schema.ObjectsTier(url=(tmp_path / "0").as_uri()),
        schema.ObjectsTier(url=(tmp_path / "1").as_uri(), pending_bytes=ByteSize(0)),
    )
    store = TieredStore.from_config(schema.Store(tiers=tiers))
    assert [isinstance(tier, WriteBehind) for tier in store._tiers] == [False, True, True, False]
    store.put(make_block())
    store.flush()
    assert len(list(tmp_path.rglob("*.safetensors"))) == 4
