"""What only a directory can suffer: damage, strangers, other processes, full and missing disks."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import cache_store.codec
from cache_store.codec import encode
from cache_store.errors import UnusableTier
from cache_store.tiers.base import TierCounters
from cache_store.tiers.directory import STALE_STAGED_S
from cache_store.tiers.files import FilesTier
from cache_store.tiers.medium import MAX_QUARANTINED
from tests.cache_store.blocks import make_block, make_key, same
from tests.cache_store.damages import DAMAGES

BLOCK = make_block()
ENTRY_BYTES = len(encode(BLOCK))


def path_of(root: Path, key: int = 0) -> Path:
    name = make_key(key).hex
    return root / name[:2] / name[2:4] / f"{name}.safetensors"


def files_below(root: Path) -> int:
    return sum(path.stat().st_size for path in root.glob("??/??/*.safetensors"))


def test_an_entry_lies_under_its_name_and_nothing_else_stays(tmp_path: Path) -> None:
    FilesTier(tmp_path, 2**20).put(BLOCK)
    assert path_of(tmp_path).read_bytes() == encode(BLOCK)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [path_of(tmp_path)]


def test_entries_outlive_the_tier_and_are_seen_by_others(tmp_path: Path) -> None:
    one, other = FilesTier(tmp_path, 2**20), FilesTier(tmp_path, 2**20)
    one.put(BLOCK)
    assert same(other.get(BLOCK.key), BLOCK) and other.num_bytes == ENTRY_BYTES
    late = FilesTier(tmp_path, 2**20)
    assert list(late.keys()) == [BLOCK.key] and late.num_bytes == ENTRY_BYTES
    one.discard(BLOCK.key)
    assert late.get(BLOCK.key) is None and late.num_bytes == 0
    assert late.counters == TierCounters()


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_entry_is_a_miss_once_and_set_aside(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    tier = FilesTier(tmp_path, 2**20)
    tier.put(BLOCK)
    damaged = damage(path_of(tmp_path).read_bytes())
    path_of(tmp_path).write_bytes(damaged)
    assert tier.get(BLOCK.key) is None
    assert tier.get(BLOCK.key) is None
    assert tier.counters == TierCounters(corrupt=1)
    assert [path.read_bytes() for path in (tmp_path / "quarantine").iterdir()] == [damaged]
    assert not path_of(tmp_path).exists() and tier.num_bytes == 0
    assert tier.put(BLOCK) == () and same(tier.get(BLOCK.key), BLOCK)


def test_quarantine_keeps_the_newest_few_and_no_stranger_leaves(tmp_path: Path) -> None:
    tier = FilesTier(tmp_path, 2**20)
    stranger = tmp_path / "quarantine" / "notes.txt"
    stranger.write_text("mine")
    for key in range(MAX_QUARANTINED + 3):
        tier.put(make_block(key))
        path_of(tmp_path, key).write_bytes(b"damaged")
        assert tier.get(make_key(key)) is None
    names = {path.name[:64] for path in (tmp_path / "quarantine").iterdir() if path != stranger}
    assert len(names) == MAX_QUARANTINED and make_key(MAX_QUARANTINED + 2).hex in names
    assert stranger.read_text() == "mine"


def test_another_format_version_is_a_miss_and_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tier = FilesTier(tmp_path, 2**20)
    with monkeypatch.context() as other_version:
        other_version.setattr(cache_store.codec, "FORMAT_VERSION", 999)
        tier.put(BLOCK)
    assert tier.get(BLOCK.key) is None
    assert tier.counters == TierCounters(other_version=1)
    assert path_of(tmp_path).exists()


def test_opening_looks_into_no_entry_and_counts_no_stranger(tmp_path: Path) -> None:
    FilesTier(tmp_path, 2**20).put(BLOCK)
    path_of(tmp_path).write_bytes(b"damaged")
    misplaced = tmp_path / "ab" / "cd" / path_of(tmp_path).name
    misplaced.parent.mkdir(parents=True)
    strangers = [misplaced, tmp_path / "README", tmp_path / "ab" / "cd" / "notes", tmp_path / "staging" / "notes"]
    for stranger in strangers:
        stranger.write_text("mine")
        os.utime(stranger, (0, 0))
    tier = FilesTier(tmp_path, 2**20)
    assert list(tier.keys()) == [BLOCK.key] and tier.num_bytes == len(b"damaged")
    assert tier.counters == TierCounters()
    assert all(stranger.read_text() == "mine" for stranger in strangers)


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo], ids=["folder", "pipe"])
def test_what_bears_an_entrys_name_and_is_no_file_is_a_stranger(tmp_path: Path, make: Callable[[Path], None]) -> None:
    """It is not waited for, does not count, and is in nobody's way."""
    path = path_of(tmp_path)
    path.parent.mkdir(parents=True)
    make(path)
    os.utime(path, (0, 0))
    for _ in range(2):
        tier = FilesTier(tmp_path, 2 * ENTRY_BYTES)
        assert tier.get(make_key(0)) is None and make_key(0) not in tier
        for number in range(1, 5):
            assert tier.put(make_block(number)) == ()
        assert tier.num_bytes == 2 * ENTRY_BYTES and tier.counters.write_errors == 0
    assert path.exists()


def test_opening_with_a_smaller_budget_drops_the_oldest(tmp_path: Path) -> None:
    before = FilesTier(tmp_path, 2**20)
    for key in range(4):
        before.put(make_block(key))
    before.get(make_key(0))
    after = FilesTier(tmp_path, 2 * ENTRY_BYTES)
    assert list(after.keys()) == [make_key(3), make_key(0)]
    assert files_below(tmp_path) == after.num_bytes == 2 * ENTRY_BYTES


def test_entries_of_other_processes_count_and_their_use_too(tmp_path: Path) -> None:
    mine, theirs = FilesTier(tmp_path, 3 * ENTRY_BYTES), FilesTier(tmp_path, 3 * ENTRY_BYTES)
    mine.put(make_block(0))
    mine.put(make_block(1))
    theirs.put(make_block(2))
    theirs.get(make_key(0))
    mine.put(make_block(3))
    assert not path_of(tmp_path, 1).exists()
    assert files_below(tmp_path) == 3 * ENTRY_BYTES == mine.num_bytes


def test_leftovers_of_dead_writers_go_when_they_are_old(tmp_path: Path) -> None:
    FilesTier(tmp_path, 2**20)
    old, young = tmp_path / "staging" / f"{'a' * 32}.tmp", tmp_path / "staging" / f"{'b' * 32}.tmp"
    for staged in (old, young):
        staged.write_bytes(b"half of a blo")
    past_s = old.stat().st_mtime - STALE_STAGED_S - 1
    os.utime(old, (past_s, past_s))
    FilesTier(tmp_path, 2**20)
    assert list((tmp_path / "staging").iterdir()) == [young]


@pytest.mark.parametrize("path", ["file", "file/below", "loop"])
def test_a_directory_that_cannot_be_made_is_an_error_that_names_it(tmp_path: Path, path: str) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(UnusableTier, match=f"path: '{tmp_path / path}' cannot be used as a cache directory"):
        FilesTier(tmp_path / path, 2**20)


def test_a_directory_that_turns_into_a_file_is_misses_and_counters(tmp_path: Path) -> None:
    root = tmp_path / "store"
    tier = FilesTier(root, 2**20)
    tier.put(BLOCK)
    shutil.rmtree(root)
    root.write_text("")
    other = make_block(1)
    assert tier.get(BLOCK.key) is None and BLOCK.key not in tier
    assert tier.put(other) == (other,)
    tier.discard(BLOCK.key)
    counters = tier.counters
    assert counters.read_errors == 1 and counters.write_errors >= 2


def test_a_directory_that_was_emptied_is_used_again(tmp_path: Path) -> None:
    root = tmp_path / "store"
    tier = FilesTier(root, 2**20)
    tier.put(BLOCK)
    shutil.rmtree(root)
    assert tier.get(BLOCK.key) is None and tier.num_bytes == 0
    assert tier.put(BLOCK) == () and same(tier.get(BLOCK.key), BLOCK)
    assert tier.counters == TierCounters()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB; needs the right to mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if shutil.which("mount") is None:
        pytest.skip("no mount command here")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], capture_output=True, text=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip(f"a small file system cannot be mounted here: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_full_disk_is_a_refusal_and_a_counter(small_disk: Path) -> None:
    tier = FilesTier(small_disk, 2**20)
    tier.put(BLOCK)
    large = make_block(1, tokens=2000)
    assert tier.put(large) == (large,)
    assert tier.counters == TierCounters(write_errors=1)
    assert tier.get(large.key) is None and same(tier.get(BLOCK.key), BLOCK)
    assert list((small_disk / "staging").iterdir()) == []
    assert tier.put(make_block(2)) == ()


def test_a_disk_that_turns_read_only_still_gives_what_it_has(small_disk: Path) -> None:
    tier = FilesTier(small_disk, 2**20)
    tier.put(BLOCK)
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    other = make_block(1)
    assert same(tier.get(BLOCK.key), BLOCK)
    assert tier.put(other) == (other,)
    assert tier.counters.write_errors >= 1 and tier.counters.read_errors == 0
    with pytest.raises(UnusableTier, match="Read-only"):
        FilesTier(small_disk, 2**20)
