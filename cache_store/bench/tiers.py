"""How fast each tier puts and gets, beside its raw medium with the same bytes: MB per second, and the ratio of both.

    memory           the tensors' copies             gets give the tensors themselves on both sides
    files            a file                          written beside its name, fsynced, renamed; read whole
    objects          an object of obstore's file://  put and got in one request
    objects behind   the same                        "written": until the thread that writes is done
    ray              an object of ray.put, ray.get   "written": until the ledger's own copy of it can be read

An entry holds what a chunk of 1,024 tokens left of SmolLM2-135M (30 layers, 3 kv heads of dimension 64, bfloat16):
24 MB are all pairs, 3 MB an eighth; and the largest once more as int8. Bytes are those of its tensors, also where a few
layers are asked for: what they take is compared with reading the whole file and looking at as much of it.

Invariants: tier and medium take turns in one process, after one turn each that does not count; each number is the
median over the rounds, the ratio that of each round's own. No clock sees the raw bytes being made, but it does see
the tier encode and prove them. A get ends with one pass over every byte it gave, on both sides alike (else what is
given in place would cost nothing): how fast that is alone is the raw get of memory. What is got was put just
before and comes from the page cache on both sides, so of the disk only fsync is measured. A put finds no entry of its
key, budgets are never full, Ray's node holds another entry, and what a put left to others is done before the next turn.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
from pydantic import TypeAdapter

from cache_store.bench.sides import LAYERS, OPENERS, Array, Place, Side, Sides, make_entry
from cache_store.block import KVBlock
from configs.schema import Bytes

FEW_LAYERS = 4

Turn: TypeAlias = Callable[[], float]
"""Does something once, and says how many seconds it took."""


def read_through(arrays: Sequence[Array]) -> int:
    """Look at every byte once; gives a sum of them, as nothing else would need to look."""
    total = 0
    for array in arrays:
        border = len(array) // 4 * 4
        total += int(np.add.reduce(array[:border].view(np.uint32), dtype=np.uint32)) + int(array[border:].sum())
    return total


def name_of(block: KVBlock) -> str:
    """What the table calls an entry."""
    return f"{block.num_bytes / 1e6:.1f} MB {str(block.keys_ND.dtype).removeprefix('torch.')}"


def turns_of(sides: Sides) -> Iterator[tuple[str, Turn, Turn]]:
    """What is measured: its name, a turn of the tier and one of its medium."""
    tier, raw, settle, by_layer, gets = sides
    settle = settle or (lambda: None)
    yield "put", lambda: _put(tier, after=settle), lambda: _put(raw)
    if sides.settle is not None:
        yield "put, written", lambda: _put(tier, within=settle), lambda: _put(raw)
    if gets:
        yield "get", lambda: _get(tier.get), lambda: _get(raw.get)
    if by_layer:
        few = range(FEW_LAYERS)
        yield (
            f"get, {FEW_LAYERS} of {LAYERS} layers",
            lambda: _get(lambda: tier.get(few)),
            lambda: _get(lambda: [array[: len(array) * FEW_LAYERS // LAYERS] for array in raw.get()]),
        )


def _put(side: Side, within: Callable[[], object] = lambda: None, after: Callable[[], object] = lambda: None) -> float:
    """Seconds of a put of a new entry and what belongs to it; ``after`` is waited for too, off the clock."""
    side.drop()
    start_s = time.perf_counter()
    side.put()
    within()
    taken_s = time.perf_counter() - start_s
    after()
    return taken_s


def _get(get: Callable[[], Sequence[Array]]) -> float:
    start_s = time.perf_counter()
    read_through(get())
    return time.perf_counter() - start_s


def alternate(one: Turn, other: Turn, rounds: int) -> list[tuple[float, float]]:
    """Seconds of both, a pair per round, after a round that does not count."""
    return [(one(), other()) for _ in range(1 + rounds)][1:]


def median_ratio(pairs: Sequence[tuple[float, float]]) -> float:
    """Median of what the first of each pair is of the second: noise that lasts for a round meets both."""
    return statistics.median(first / second for first, second in pairs)


class Speed(NamedTuple):
    """Of a tier and its medium."""

    tier_mb_s: float
    raw_mb_s: float
    ratio: float

    @classmethod
    def of(cls, num_bytes: int, seconds: Sequence[tuple[float, float]]) -> Speed:
        """Medians over rounds, in each of which tier and medium took so many seconds for so many bytes."""
        tier_s, raw_s = (statistics.median(each) for each in zip(*seconds, strict=True))
        ratio = median_ratio([(raw, tier) for tier, raw in seconds])
        return cls(num_bytes / 1e6 / tier_s, num_bytes / 1e6 / raw_s, ratio)


def measure(sides: Sides, num_bytes: int, rounds: int) -> dict[str, Speed]:
    """Speeds by what was measured; nothing of the entry is left."""
    measured = {name: Speed.of(num_bytes, alternate(one, other, rounds)) for name, one, other in turns_of(sides)}
    sides.tier.drop()
    sides.raw.drop()
    return measured


def table(names: Sequence[str], blocks: Sequence[KVBlock], rounds: int) -> str:
    """The Markdown table: a line per tier and what it did, three columns per entry."""
    header = ["tier", "what", *itertools.chain(*([name_of(block), "raw", "ratio"] for block in blocks))]
    lines = [header, ["---"] * 2 + ["---:"] * (len(header) - 2)]
    max_entry_bytes = max(block.num_bytes for block in blocks)
    with tempfile.TemporaryDirectory(prefix="foveate-bench-") as scratch, ExitStack() as ends:
        for name in names:
            rows: dict[str, list[str]] = {}
            for number, block in enumerate(blocks):
                place = Place(Path(scratch, f"{name.replace(' ', '-')}-{number}"), max_entry_bytes, ends)
                place.folder.mkdir()
                for what, speed in measure(OPENERS[name](block, place), block.num_bytes, rounds).items():
                    cells = [f"{speed.tier_mb_s:,.0f}", f"{speed.raw_mb_s:,.0f}", f"{speed.ratio:.2f}"]
                    rows.setdefault(what, [name, what]).extend(cells)
            lines.extend(rows.values())
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _size(text: str) -> int:
    """Bytes; raises ValueError for what is no size."""
    return int(TypeAdapter(Bytes).validate_python(text))


def main(arguments: Sequence[str]) -> None:
    """Print the table for the entries and tiers that were asked for."""
    parser = argparse.ArgumentParser(prog="python -m cache_store.bench tiers")
    parser.add_argument("--size", type=_size, nargs="+", default=[24_000_000, 3_000_000], help="of entries")
    parser.add_argument("--rounds", type=int, default=5, help="turns that count, of each side")
    parser.add_argument("--tiers", nargs="+", choices=OPENERS, default=list(OPENERS), metavar="TIER")
    wish = parser.parse_args(arguments)
    if wish.rounds < 1:
        parser.error(f"--rounds: {wish.rounds}; allowed: 1 or more")
    blocks = [*map(make_entry, wish.size), make_entry(max(wish.size), "int8")]
    print(
        f"MB/s of each tier and its raw medium, medians of {wish.rounds}:\n\n{table(wish.tiers, blocks, wish.rounds)}"
    )
