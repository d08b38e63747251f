"""How a tier does with many small entries: how long it takes to open, to look one up, and what its books weigh.

    open                      beside a listing of the same names and sizes: os.scandir and stat, or obstore's
    open, processors' time    the same, in seconds of all processors instead of the clock's
    look up what is there     a get, beside reading that file whole
    look up what is not       a get, beside trying to read such a file
    memory per entry          what an opened tier holds, in Python's own memory

Both tiers are on the local disk, in the machine's temporary directory, and are removed in the end. A few hundred
entries are real, which is what is looked up; the others hold the same bytes under keys that are not theirs, written
without waiting for the disk: of those, only names and sizes are ever read.

Invariants: tier and medium take turns in one process, the tier first; each number is a median, over rounds (after one
that does not count) or over the keys that are looked up, each once, and the ratio that of each turn's own. Everything
was written just before: directories and files come from the system's caches, on both sides.
"""

from __future__ import annotations

import argparse
import gc
import os
import random
import statistics
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import obstore
import torch
from blake3 import blake3
from obstore.store import LocalStore

from cache_store.bench.sides import IDENTITY
from cache_store.bench.tiers import median_ratio
from cache_store.block import Entry, HeadPairs, KVBlock
from cache_store.codec import encode
from cache_store.identity import BlockKey
from cache_store.tiers.base import Tier
from cache_store.tiers.bucket import Bucket
from cache_store.tiers.cooloff import CoolOff
from cache_store.tiers.directory import EntryDirectory
from cache_store.tiers.files import FilesTier
from cache_store.tiers.objects import ObjectsTier

_OPEN_TARGET = "2 s"
_LOOK_UP_TARGET = "1,000 µs"
_MOST_REAL = 300
_NEVER_FULL = 2**40
_TIMEOUT_S = 60.0

_HEADER = ("tier", "what", "measured", "raw", "ratio", "target")


class Kind(NamedTuple):
    """A tier in a directory, and its medium: ``write`` puts contents there as the tier lays them out, ``listing`` gives
    every name with its bytes."""

    open: Callable[[Path], Tier]
    write: Callable[[Path, Iterable[tuple[BlockKey, bytes]]], None]
    listing: Callable[[Path], dict[str, int]]


def _write_files(root: Path, contents: Iterable[tuple[BlockKey, bytes]]) -> None:
    directory = EntryDirectory(root)
    for key, content in contents:
        path = directory.path_of(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def _write_objects(root: Path, contents: Iterable[tuple[BlockKey, bytes]]) -> None:
    bucket = Bucket(root.as_uri(), _TIMEOUT_S, CoolOff())
    for key, content in contents:
        bucket.publish(key, content)


def list_files(root: Path) -> dict[str, int]:
    """Bytes of every file below a directory, by path."""
    found: dict[str, int] = {}
    folders = [str(root)]
    while folders:
        with os.scandir(folders.pop()) as children:
            for child in children:
                if child.is_dir():
                    folders.append(child.path)
                else:
                    found[child.path] = child.stat().st_size
    return found


def _list_objects(root: Path) -> dict[str, int]:
    pages = obstore.list(LocalStore(root), chunk_size=10_000)
    return {item["path"]: item["size"] for page in pages for item in page}


KINDS: Mapping[str, Kind] = {
    "files": Kind(lambda root: FilesTier(root, _NEVER_FULL), _write_files, list_files),
    "objects": Kind(
        lambda root: ObjectsTier(root.as_uri(), _NEVER_FULL, _TIMEOUT_S),
        _write_objects,
        _list_objects,
    ),
}


def make_entry(number: int) -> KVBlock:
    """A small entry, of two layers of two kv heads that keep a token each."""
    pairs = HeadPairs(torch.zeros(1, dtype=torch.int32), torch.ones(1, 4), torch.ones(1, 4))
    entry = Entry(replace(IDENTITY, chunk=str(number)), num_tokens=1, cost=1, scores_RHB=torch.zeros(1, 1, 1))
    return KVBlock.of_heads(entry, [[pairs, pairs], [pairs, pairs]])


def fill(kind: Kind, root: Path, num_entries: int) -> list[BlockKey]:
    """Write so many entries, in any order; gives the keys of those that are real."""
    real = {block.key: encode(block) for block in map(make_entry, range(min(num_entries, _MOST_REAL)))}
    some_content = next(iter(real.values()))
    contents = [*real.items(), *((key, some_content) for key in _absent_keys(num_entries - len(real), "nobody's"))]
    random.Random(0).shuffle(contents)
    kind.write(root, contents)
    return list(real)


def _absent_keys(num_keys: int, word: str) -> list[BlockKey]:
    """Keys of no entry that can be; other ones for each word."""
    return [BlockKey(blake3(f"{word} {number}".encode()).digest()) for number in range(num_keys)]


class Taken(NamedTuple):
    """How long something took."""

    clock_s: float
    processors_s: float


def time_of(action: Callable[..., object], *arguments: object) -> Taken:
    """How long an action takes; not counted is what it takes to forget its result."""
    start_s, start_processors_s = time.perf_counter(), time.process_time()
    result = action(*arguments)
    taken = Taken(time.perf_counter() - start_s, time.process_time() - start_processors_s)
    del result
    return taken


class Line(NamedTuple):
    """A line of the table, but for the tier."""

    what: str
    tier: str
    raw: str = ""
    ratio: str = ""
    target: str = ""

    @classmethod
    def of(cls, what: str, pairs: Sequence[tuple[float, float]], unit: Callable[[float], str], target: str) -> Line:
        """Medians of seconds of the tier and its medium."""
        tier_s, raw_s = (statistics.median(each) for each in zip(*pairs, strict=True))
        return cls(what, unit(tier_s), unit(raw_s), f"{median_ratio(pairs):.1f}", target)


def opening(kind: Kind, root: Path, rounds: int) -> Iterator[Line]:
    """The lines about opening."""
    turns = [(time_of(kind.open, root), time_of(kind.listing, root)) for _ in range(1 + rounds)][1:]
    yield Line.of("open", [(tier.clock_s, raw.clock_s) for tier, raw in turns], _seconds, _OPEN_TARGET)
    processors_s = [(tier.processors_s, raw.processors_s) for tier, raw in turns]
    yield Line.of("open, processors' time", processors_s, _seconds, "")


def looking_up(kind: Kind, root: Path, present: Sequence[BlockKey]) -> Iterator[Line]:
    """The lines about looking up, one entry each; raises OSError where a tier has lost one."""
    tier = kind.open(root)
    paths = {Path(path).stem: Path(path) for path in list_files(root)}
    there = [(time_of(_require, tier, key).clock_s, time_of(paths[key.hex].read_bytes).clock_s) for key in present]
    gone = []
    for key, neighbour in zip(_absent_keys(len(present), "absent"), present, strict=True):
        path = paths[neighbour.hex].with_stem(key.hex)
        gone.append((time_of(tier.get, key).clock_s, time_of(_read_or_not, path).clock_s))
    yield Line.of("look up what is there", there, _microseconds, _LOOK_UP_TARGET)
    yield Line.of("look up what is not", gone, _microseconds, _LOOK_UP_TARGET)


def _require(tier: Tier, key: BlockKey) -> KVBlock:
    block = tier.get(key)
    if block is None:
        raise OSError(f"tier {tier.name}: lost entry {key}: {tier.counters}")
    return block


def _read_or_not(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def weighing(kind: Kind, root: Path, num_entries: int) -> Line:
    """The line about memory."""
    gc.collect()
    tracemalloc.start()
    try:
        tier = kind.open(root)
        gc.collect()
        held_bytes, _ = tracemalloc.get_traced_memory()
        assert len(tuple(tier.keys())) == num_entries
    finally:
        tracemalloc.stop()
    return Line("memory per entry", f"{held_bytes / num_entries:,.0f} bytes")


def _seconds(seconds: float) -> str:
    return f"{seconds:.2f} s"


def _microseconds(seconds: float) -> str:
    return f"{1e6 * seconds:,.0f} µs"


def table(num_entries: int, rounds: int) -> Iterator[str]:
    """The Markdown table, line by line as it is measured: removing so many files can take longer than all else."""
    yield from map(_row, (_HEADER, ["---"] * 2 + ["---:"] * (len(_HEADER) - 2)))
    for name, kind in KINDS.items():
        with tempfile.TemporaryDirectory(prefix="foveate-bench-") as scratch:
            root = Path(scratch, "tier")
            real = fill(kind, root, num_entries)
            for line in (
                *opening(kind, root, rounds),
                *looking_up(kind, root, real),
                weighing(kind, root, num_entries),
            ):
                yield _row([name, *line])


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def main(arguments: Sequence[str]) -> None:
    """Print the table for as many entries as were asked for."""
    parser = argparse.ArgumentParser(prog="python -m cache_store.bench entries")
    parser.add_argument("--entries", type=int, default=100_000, help="how many each tier has")
    parser.add_argument("--rounds", type=int, default=5, help="how often each tier is opened")
    wish = parser.parse_args(arguments)
    for name in ("entries", "rounds"):
        if getattr(wish, name) < 1:
            parser.error(f"--{name}: {getattr(wish, name)}; allowed: 1 or more")
    print(f"A tier of {wish.entries:,} entries, medians:\n")
    for line in table(wish.entries, wish.rounds):
        print(line, flush=True)
