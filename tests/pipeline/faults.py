"""What can happen to a store's directory before a run over it, or in the middle of one.

A fault is real: files are damaged, the kernel refuses. Whatever has to be undone, so that the
next run finds an ordinary store again, is in ``Ground.undo``.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import NamedTuple

import pytest

import cache_store.codec
import cache_store.identity
from cache_store.codec import decode, encode
from cache_store.identity import BlockKey
from cache_store.store import StoreCounters

NONE, ONE, SOME, ANY = range(1), range(1, 2), range(1, 10_000), range(10_000)
"""How often something is counted."""
ALL = range(8, 9)
"""Once for each entry of the corpus of ``test_store_faults``."""

Plant = Callable[["Ground"], None]


@dataclass
class Ground:
    """Where a fault is planted: the directory of a store that an earlier run filled. ``midway`` is called before the
    run's second chunk; afterwards ``untouched`` files hold these bytes still, and those that are ``set_aside`` lie in
    quarantine, by key."""

    store: Path
    undo: ExitStack
    midway: Callable[[], None] = lambda: None
    untouched: dict[Path, bytes] = field(default_factory=dict)
    set_aside: dict[str, bytes] = field(default_factory=dict)

    def leave(self, path: Path, content: bytes) -> None:
        """Put a file there that nobody may touch, as old as files get."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        os.utime(path, (0, 0))
        self.untouched[path] = content


class Fault(NamedTuple):
    """``shows``: what the store's counters must say of the run, of those in ``TELLING``; others nothing. ``mends``:
    whether the run itself leaves a store in which the next one finds everything."""

    plant: Plant
    shows: Mapping[str, range]
    mends: bool


TELLING = ("misses", "corrupt", "other_version", "read_errors", "write_errors", "skipped")


def told(counters: StoreCounters) -> dict[str, int]:
    """What a run's store counted of faults."""
    return {name: getattr(counters, name) for name in TELLING}


def entries(store: Path) -> list[Path]:
    """The files of a store's entries, in the order of their names."""
    return sorted(path for path in store.glob("[0-9a-f][0-9a-f]/**/*.safetensors") if path.is_file())


# -- before the run ------------------------------------------------------------------------------------------------


def _damaging(damages: Sequence[Callable[[bytes], bytes]]) -> Plant:
    def plant(ground: Ground) -> None:
        for path, damage in zip(entries(ground.store), cycle(damages), strict=False):
            damaged = damage(path.read_bytes())
            path.write_bytes(damaged)
            ground.set_aside[path.stem] = damaged

    return plant


def _header_end(content: bytes) -> int:
    return 8 + int.from_bytes(content[:8], "little")


CUTS: Sequence[Callable[[bytes], bytes]] = (
    lambda content: b"",
    lambda content: content[: _header_end(content) // 2],
    lambda content: content[: (_header_end(content) + len(content)) // 2],
    lambda content: content[:-1],
)


def _flipping_one_bit(seed: int) -> Callable[[bytes], bytes]:
    chance = random.Random(seed)

    def flip(content: bytes) -> bytes:
        place, bit = chance.randrange(len(content)), 1 << chance.randrange(8)
        return content[:place] + bytes([content[place] ^ bit]) + content[place + 1 :]

    return flip


def _of_another_version(path: Path) -> tuple[str, bytes]:
    """What another version of Foveate would call an entry, and write."""
    block = decode(path.read_bytes(), BlockKey.from_hex(path.stem))
    with pytest.MonkeyPatch.context() as patch:
        for module in (cache_store.codec, cache_store.identity):
            patch.setattr(module, "FORMAT_VERSION", 999)
        return block.identity.key().hex, encode(block)


def _another_version_under_our_names(ground: Ground) -> None:
    for path in entries(ground.store):
        path.write_bytes(_of_another_version(path)[1])


def _strangers(ground: Ground) -> None:
    for path in entries(ground.store):
        name, content = _of_another_version(path)
        folders = (name[:2], name[2:4])[: len(path.relative_to(ground.store).parts) - 1]
        ground.leave(ground.store.joinpath(*folders, f"{name}.safetensors"), content)
        ground.leave(ground.store / "zz" / path.name, path.read_bytes())
        ground.leave(path.with_suffix(".txt"), b"mine")
    for name in ("README", "staging/notes", "quarantine/notes", ".git/config", "00/1/2/3"):
        ground.leave(ground.store / name, b"mine")


def _directories_in_the_place_of_entries(ground: Ground) -> None:
    for path in entries(ground.store)[::3]:
        path.unlink()
        ground.leave(path / "notes", b"mine")
        ground.undo.callback(shutil.rmtree, path)


# -- in the middle of it -------------------------------------------------------------------------------------------


def _vanishes(ground: Ground) -> None:
    ground.midway = lambda: shutil.rmtree(ground.store)


def _becomes_a_file(ground: Ground) -> None:
    def midway() -> None:
        shutil.rmtree(ground.store)
        ground.store.write_text("")

    ground.midway = midway
    ground.undo.callback(ground.store.unlink)


def _does(*command: str | Path) -> bool:
    """Whether a command of the system is there and succeeds."""
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


def _may_not_be_written(ground: Ground) -> None:
    """Root may write where permissions forbid it, though not where the file system does."""
    on, off = (("chattr", "+i"), ("chattr", "-i")) if os.geteuid() == 0 else (("chmod", "500"), ("chmod", "700"))

    def is_set(*command: str) -> bool:
        return _does(*command, ground.store, *(path for path in ground.store.rglob("*") if path.is_dir()))

    def midway() -> None:
        assert is_set(*on)

    for path in entries(ground.store):
        path.unlink()
    ground.undo.callback(is_set, *off)
    if not is_set(*on):
        pytest.skip(f"writing cannot be forbidden here: {' '.join(on)}")
    is_set(*off)
    ground.midway = midway


def _fills_up(ground: Ground) -> None:
    """A disk with room for half of the entries."""
    num_pages = sum(-(-path.stat().st_size // 4096) for path in entries(ground.store))
    shutil.rmtree(ground.store)
    ground.store.mkdir()
    if not _does("mount", "-t", "tmpfs", "-o", f"size={2 * num_pages}k", "tmpfs", ground.store):
        pytest.skip("a small file system cannot be mounted here")
    # Lazily: an entry of it may still be mapped.
    ground.undo.callback(_does, "umount", "--lazy", ground.store)


FAULTS: Mapping[str, Fault] = {
    "cut short": Fault(_damaging(CUTS), {"misses": ALL, "corrupt": ALL}, mends=True),
    "a bit flipped": Fault(_damaging([_flipping_one_bit(0)]), {"misses": ALL, "corrupt": ALL}, mends=True),
    "another version": Fault(_another_version_under_our_names, {"misses": ALL, "other_version": ALL}, mends=True),
    "strangers": Fault(_strangers, {}, mends=True),
    "directories": Fault(
        _directories_in_the_place_of_entries,
        {"misses": SOME, "read_errors": ANY, "write_errors": SOME},  # to a bucket, there is no such object
        mends=False,
    ),
    "vanishes": Fault(_vanishes, {"misses": SOME}, mends=False),
    "becomes a file": Fault(_becomes_a_file, {"misses": SOME, "read_errors": SOME, "write_errors": SOME}, mends=False),
    "may not be written": Fault(_may_not_be_written, {"misses": SOME, "write_errors": SOME}, mends=False),
    "fills up": Fault(_fills_up, {"misses": SOME, "write_errors": SOME}, mends=False),
}
