"""The store against a plain dictionary: what comes back is what was last put, or nothing, whatever happens."""

from __future__ import annotations

import random
import shutil
import tempfile
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ByteSize

from cache_store.block import KVBlock
from cache_store.codec import encode
from cache_store.errors import StoreError, UnusableTier
from cache_store.store import TieredStore
from cache_store.tiers.behind import WriteBehind
from cache_store.tiers.files import FilesTier
from cache_store.tiers.memory import MemoryTier
from cache_store.tiers.objects import ObjectsTier
from configs import schema
from tests.cache_store.blocks import make_block, make_key, same

BLOCK = make_block()
SIZE = BLOCK.num_bytes
FILE_SIZE = len(encode(BLOCK))


def objects(root: Path, max_bytes: int) -> ObjectsTier:
    root.mkdir(exist_ok=True)
    return ObjectsTier(root.as_uri(), max_bytes)


SHAPES: Mapping[str, Callable[[Path, int], TieredStore]] = {
    "memory": lambda root, n: TieredStore([MemoryTier(n * SIZE)]),
    "files": lambda root, n: TieredStore([FilesTier(root, n * FILE_SIZE)]),
    "memory, memory": lambda root, n: TieredStore([MemoryTier(n * SIZE), MemoryTier(2 * n * SIZE, "slow")]),
    "memory, files": lambda root, n: TieredStore([MemoryTier(n * SIZE), FilesTier(root, 2 * n * FILE_SIZE)]),
    "memory, objects": lambda root, n: TieredStore([MemoryTier(n * SIZE), objects(root, 2 * n * FILE_SIZE)]),
    "memory, files behind": lambda root, n: TieredStore(
        [MemoryTier(n * SIZE), WriteBehind(FilesTier(root, 2 * n * FILE_SIZE), 2 * SIZE)]
    ),
    "memory, files, objects behind": lambda root, n: TieredStore(
        [
            MemoryTier(n * SIZE),
            FilesTier(root / "near", n * FILE_SIZE),
            WriteBehind(objects(root / "far", 2 * n * FILE_SIZE), 2 * SIZE),
        ]
    ),
    "memory, memory, files, files": lambda root, n: TieredStore(
        [
            MemoryTier(n * SIZE),
            MemoryTier(n * SIZE, "slow"),
            FilesTier(root / "near", n * FILE_SIZE, "near"),
            FilesTier(root / "far", 2 * n * FILE_SIZE, "far"),
        ]
    ),
}
every_shape = pytest.mark.parametrize("shape", SHAPES)
verbs = st.sampled_from(["put", "put", "get", "free", "pin", "damage", "remove", "reopen"])
histories = st.lists(st.tuples(verbs, st.integers(0, 5), st.integers(0, 6)), max_size=25)


@every_shape
@settings(max_examples=40, deadline=None)
@given(histories)
def test_a_get_gives_the_last_put_or_none(shape: str, history: list[tuple[str, int, int]]) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        store = SHAPES[shape](root, 2)
        last: dict[int, KVBlock] = {}
        for step, (verb, key, tokens) in enumerate(history):
            if verb == "put":
                last[key] = make_block(key, step, tokens=tokens)
                store.put(last[key])
            elif verb == "free":
                store.free([make_key(key)])
                last.pop(key, None)
            elif verb == "pin":
                with store.pin([make_key(key), make_key(0)]) as blocks:
                    assert all(same(block, last.get(number_of(block))) for block in blocks.values())
            elif verb == "damage":
                store.flush()  # what is still to be written would mend it
                for path in entries(root, key):
                    content = path.read_bytes()
                    position = len(content) * tokens // 7
                    path.write_bytes(content[:position] + b"\x00" + content[position + 1 :])
            elif verb == "remove":
                store.flush()
                for path in entries(root, key):
                    path.unlink()
            elif verb == "reopen":
                store.flush()
                store = SHAPES[shape](root, 2)
            found = store.get(make_key(key))
            assert found is None or same(found, last.get(key))
        store.flush()  # before its place is cleared away
        counters = store.counters
        assert counters.read_errors == counters.write_errors == 0


def entries(root: Path, key: int) -> list[Path]:
    """Files of a key's entry in whichever tiers have files."""
    return list(root.rglob(f"{make_key(key).hex}.safetensors"))


def number_of(block: KVBlock) -> int:
    return next(number for number in range(6) if make_key(number) == block.key)


@every_shape
def test_with_room_for_all_nothing_is_lost(tmp_path: Path, shape: str) -> None:
    store = SHAPES[shape](tmp_path, 10)
    for number in range(10):
        store.put(make_block(number))
    assert all(same(store.get(make_key(number)), make_block(number)) for number in range(10))
    assert store.get(make_key(10)) is None
    store.flush()
    counters = store.counters
    assert sum(counters.hits.values()) == 10 and counters.misses == 1
    assert counters.evictions == counters.refused == counters.demotions == 0


def test_what_memory_pushes_out_is_found_below_and_comes_back_up() -> None:
    store = TieredStore([MemoryTier(SIZE), MemoryTier(SIZE, "slow")])
    store.put(make_block(0))
    store.put(make_block(1))
    assert store.counters.demotions == 1
    assert same(store.get(make_key(0)), make_block(0))
    assert same(store.get(make_key(0)), make_block(0))
    assert dict(store.counters.hits) == {"memory": 1, "slow": 1}
    assert store.counters.promotions == 1


def test_a_new_block_replaces_the_former_one_in_slower_tiers() -> None:
    store = TieredStore([MemoryTier(SIZE), MemoryTier(3 * SIZE, "slow")])
    for key, version in [(0, 1), (1, 1), (0, 2), (1, 2)]:
        store.put(make_block(key, version))
    assert same(store.get(make_key(0)), make_block(0, 2))


def test_a_put_is_seen_at_once_by_other_processes_and_after_a_restart(tmp_path: Path) -> None:
    one, other = SHAPES["memory, files"](tmp_path, 4), SHAPES["memory, files"](tmp_path, 4)
    one.put(BLOCK)
    assert same(other.get(BLOCK.key), BLOCK)
    assert dict(other.counters.hits) == {"memory": 0, "files": 1}
    assert same(SHAPES["memory, files"](tmp_path, 4).get(BLOCK.key), BLOCK)
    assert dict(one.counters.num_bytes) == {"memory": SIZE, "files": FILE_SIZE}


def test_a_pushed_out_block_that_was_written_through_is_not_written_again(tmp_path: Path) -> None:
    files = FilesTier(tmp_path, 10 * FILE_SIZE)
    store = TieredStore([MemoryTier(SIZE), files])
    store.put(make_block(0))
    written = next(tmp_path.glob("??/??/*")).stat().st_ino
    store.put(make_block(1))
    assert written in {path.stat().st_ino for path in tmp_path.glob("??/??/*")}
    assert store.counters.demotions == 1


def test_a_block_too_large_for_memory_goes_below() -> None:
    store = TieredStore([MemoryTier(SIZE), MemoryTier(100 * SIZE, "slow")])
    large = make_block(0, tokens=30)
    store.put(large)
    assert same(store.get(large.key), large) and store.counters.refused >= 1


@every_shape
def test_pinned_blocks_stay_while_others_pass(tmp_path: Path, shape: str) -> None:
    store = SHAPES[shape](tmp_path, 2)
    store.put(make_block(0))
    with store.pin([make_key(0), make_key(9), make_key(0)]) as blocks:
        assert list(blocks) == [make_key(0)]
        for number in range(1, 9):
            store.put(make_block(number))
        assert same(store.get(make_key(0)), make_block(0))
        assert same(blocks[make_key(0)], make_block(0))
    for number in 10 * [11, 12, 13, 14, 15, 16]:  # used as often as it was, in every tier, so that it ages
        store.put(make_block(number))
        store.get(make_key(number))
    assert store.get(make_key(0)) is None


def test_a_pin_ends_with_its_scope_even_by_an_error() -> None:
    store = TieredStore([MemoryTier(SIZE)])
    store.put(make_block(0))
    with pytest.raises(RuntimeError, match="inside"), store.pin([make_key(0)]):
        raise RuntimeError("inside")
    store.put(make_block(1))
    assert store.get(make_key(0)) is None


@every_shape
def test_free_reaches_every_tier_and_pinned_blocks_stay_readable(tmp_path: Path, shape: str) -> None:
    store = SHAPES[shape](tmp_path, 4)
    for number in range(3):
        store.put(make_block(number))
    with store.pin([make_key(0)]) as blocks:
        store.free([make_key(0), make_key(1), make_key(9)])
        assert same(blocks[make_key(0)], make_block(0))
    assert store.get(make_key(0)) is None and store.get(make_key(1)) is None
    assert same(store.get(make_key(2)), make_block(2))
    store.free([make_key(2)])
    assert not any(store.counters.num_bytes.values()) and not entries(tmp_path, 0)


def test_damage_below_is_a_miss_and_a_counter(tmp_path: Path) -> None:
    SHAPES["memory, files"](tmp_path, 4).put(BLOCK)
    for path in entries(tmp_path, 0):
        path.write_bytes(path.read_bytes()[:-1])
    store = SHAPES["memory, files"](tmp_path, 4)
    assert store.get(BLOCK.key) is None
    assert store.counters.corrupt == 1 and store.counters.misses == 1


def test_a_store_whose_disk_is_gone_goes_on_in_memory(tmp_path: Path) -> None:
    root = tmp_path / "store"
    store = TieredStore([MemoryTier(SIZE), FilesTier(root, 2**20)])
    shutil.rmtree(root)
    root.write_text("")
    store.put(make_block(0))
    store.put(make_block(1))
    assert store.get(make_key(0)) is None
    assert same(store.get(make_key(1)), make_block(1))
    store.free([make_key(1)])
    counters = store.counters
    assert counters.write_errors >= 2 and counters.read_errors >= 1


@every_shape
def test_many_threads_never_see_a_wrong_block(tmp_path: Path, shape: str) -> None:
    store = SHAPES[shape](tmp_path, 2)
    wrong: list[str] = []

    def work(seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(30):
            number = chance.randrange(6)
            verb = chance.choice(["put", "put", "get", "free"])
            if verb == "put":
                store.put(make_block(number))
            elif verb == "free":
                store.free([make_key(number)])
            with store.pin([make_key(number), make_key(5 - number)]) as blocks:
                wrong.extend(key.hex for key, block in blocks.items() if not same(block, make_block(number_of(block))))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    counters = store.counters
    assert counters.corrupt == counters.read_errors == counters.write_errors == 0


def test_a_job_builds_its_tiers_in_order(tmp_path: Path) -> None:
    files = schema.FilesTier(path=str(tmp_path / "a"), max_bytes=ByteSize(2**20))
    other = schema.FilesTier(path=str(tmp_path / "b"))
    store = TieredStore.from_config(schema.Store(tiers=(schema.MemoryTier(), files, other)))
    store.put(BLOCK)
    assert dict(store.counters.num_bytes) == {"memory": SIZE, "files[1]": FILE_SIZE, "files[2]": FILE_SIZE}
    assert same(FilesTier(tmp_path / "a", 2**20).get(BLOCK.key), BLOCK)


def test_a_job_whose_directory_cannot_be_used_is_told_which_key(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    path = tmp_path / "file" / "cache"
    tiers = (schema.MemoryTier(), schema.FilesTier(path=str(path)))
    with pytest.raises(UnusableTier, match=rf"^store\.tiers\[1\]\.path: '{path}' cannot be used") as refusal:
        TieredStore.from_config(schema.Store(tiers=tiers))
    assert isinstance(refusal.value, StoreError)


def test_tiers_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="not unique"):
        TieredStore([MemoryTier(1), MemoryTier(1)])


def test_a_store_without_tiers_keeps_nothing() -> None:
    store = TieredStore.from_config(schema.Store(tiers=()))
    store.put(BLOCK)
    assert store.get(BLOCK.key) is None and store.counters.misses == 1


def test_a_part_of_an_entry_is_never_promoted(tmp_path: Path) -> None:
    block = make_block(layers=2)
    store = TieredStore([MemoryTier(2**20), FilesTier(tmp_path, 2**20)])
    FilesTier(tmp_path, 2**20).put(block)
    some = store.get(block.key, range(1))
    assert some is not None and not len(some.positions(1, 0)) and store.counters.promotions == 0
    assert same(store.get(block.key), block) and store.counters.promotions == 1
