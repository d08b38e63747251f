"""The benchmark of tiers: its entries, its media, its arithmetic by hand, and that it measures what it says."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import ray
import torch

from cache_store.bench import __main__ as bench
from cache_store.bench.sides import LAYERS, OPENERS, Array, InTier, Place, Sides, bytes_of, make_entry
from cache_store.bench.tiers import FEW_LAYERS, Speed, alternate, median_ratio, name_of, read_through, turns_of
from cache_store.tiers.memory import MemoryTier
from tests.cache_store.blocks import make_block
from tests.cache_store.clusters import join_shared_cluster, leave_shared_cluster

every_tier = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.cluster] if name == "ray" else []) for name in OPENERS]
)
SMALL = make_entry(0)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with ExitStack() as ends:
        yield Place(tmp_path, SMALL.num_bytes, ends)


def opened(name: str, place: Place) -> Sides:
    if name == "ray":
        join_shared_cluster()
    return OPENERS[name](SMALL, place)


def test_an_entry_is_shaped_like_the_real_ones() -> None:
    block = make_entry(24_000_000)
    assert block.counts_LG.shape == (30, 3) and set(block.counts_LG.flatten().tolist()) == {1024}
    assert block.keys_ND.shape == block.values_ND.shape == (30 * 3 * 1024, 64)
    assert block.keys_ND.dtype == torch.bfloat16 and name_of(block) == "24.0 MB bfloat16"
    assert 23_900_000 < block.num_bytes < 24_000_000
    eighth = make_entry(3_000_000)
    assert int(eighth.counts_LG[0, 0]) == 128 and int(eighth.positions_N.max()) == 1016
    packed = make_entry(24_000_000, "int8")
    assert packed.keys_ND.dtype == torch.int8 and name_of(packed) == "12.2 MB int8"
    assert len({block.key, eighth.key, packed.key}) == 3


def test_every_byte_is_looked_at_once() -> None:
    assert read_through([]) == 0
    assert read_through([np.array([1, 0, 0, 0, 2, 1, 0, 0], np.uint8)]) == 1 + 2 + 256
    assert read_through([np.array([1, 0, 0, 0, 2, 3], np.uint8), np.array([4], np.uint8)]) == 1 + 2 + 3 + 4
    assert bytes_of(torch.tensor([[1.0, -2.0]], dtype=torch.bfloat16)).tolist() == [0x80, 0x3F, 0x00, 0xC0]


def test_sides_take_turns_and_the_first_round_does_not_count() -> None:
    asked: list[str] = []

    def turn(side: str) -> float:
        asked.append(side)
        return float(len(asked))

    assert alternate(lambda: turn("a"), lambda: turn("b"), rounds=2) == [(3, 4), (5, 6)]
    assert "".join(asked) == "ababab"


def test_medians_by_hand() -> None:
    # The second round met a busy machine, on both sides: it moves neither.
    seconds = [(2.0, 1.0), (40.0, 10.0), (4.0, 2.0)]
    assert median_ratio(seconds) == 2.0
    assert Speed.of(8_000_000, seconds) == Speed(tier_mb_s=2.0, raw_mb_s=4.0, ratio=0.5)
    # The ratio is that of the rounds' own, not of the medians.
    assert Speed.of(1_000_000, [(1.0, 4.0), (2.0, 1.0), (4.0, 2.0)]) == Speed(0.5, 0.5, 0.5)


@every_tier
def test_both_sides_give_every_byte_that_was_put(name: str, place: Place) -> None:
    tier, raw, settle, *_ = opened(name, place)
    num_bytes = SMALL.num_bytes
    for _ in range(2):
        tier.put()
        raw.put()
        if settle is not None:
            settle()
        got, plain = tier.get(), raw.get()
        assert sum(map(len, got)) == num_bytes
        # A file or object has a header too; it names each tensor and its checksums, a few for each layer.
        assert num_bytes <= sum(map(len, plain)) < num_bytes + 20_000
        content = b"".join(array.tobytes() for array in plain)
        assert all(array.tobytes() in content for array in got)
        tier.drop()
        raw.drop()


@every_tier
def test_a_dropped_entry_can_be_dropped_and_is_gone(name: str, place: Place) -> None:
    tier, raw, *_ = opened(name, place)
    for side in (tier, raw):
        side.drop()
        side.put()
        side.drop()
        side.drop()
    with pytest.raises(OSError, match="lost an entry"):
        tier.get()
    assert not [path for path in place.folder.rglob("*") if path.is_file()]


@every_tier
def test_what_is_measured_of_each_tier(name: str, place: Place) -> None:
    names = {
        "memory": ["put", "get"],
        "files": ["put", "get", "get, 4 of 30 layers"],
        "objects": ["put", "get"],
        "objects behind": ["put", "put, written"],
        "ray": ["put", "put, written", "get"],
    }
    found = []
    for what, *turns in turns_of(opened(name, place)):
        assert all(turn() > 0 for _ in range(2) for turn in turns)
        found.append(what)
    assert found == names[name]


def test_a_put_is_of_a_new_entry_and_what_it_left_to_others_is_waited_for() -> None:
    events: list[str] = []

    class Recorded:
        def __init__(self, name: str) -> None:
            self.name = name

        def put(self) -> None:
            events.append(f"{self.name} put")

        def get(self, layers: range | None = None) -> list[Array]:
            events.append(f"{self.name} get")
            return []

        def drop(self) -> None:
            events.append(f"{self.name} drop")

    class RecordedInTier(Recorded, InTier):
        pass

    sides = Sides(RecordedInTier("tier"), Recorded("raw"), settle=lambda: events.append("settle"))
    for _, *turns in turns_of(sides):
        for turn in turns:
            turn()
    put = ["tier drop", "tier put", "settle", "raw drop", "raw put"]
    assert events == [*put, *put, "tier get", "raw get"]


def test_few_layers_are_a_part_of_what_is_read_in_whole(place: Place) -> None:
    tier, raw, *_ = opened("files", place)
    tier.put()
    raw.put()
    some = sum(map(len, tier.get(range(FEW_LAYERS))))
    assert some < SMALL.num_bytes * (FEW_LAYERS + 1) / LAYERS < sum(map(len, raw.get()))


def test_a_tier_that_does_not_keep_its_entry_ends_the_benchmark() -> None:
    with pytest.raises(OSError, match="tier memory: keeps no"):
        InTier(MemoryTier(10), make_block()).put()


def test_the_command_prints_a_line_for_all_that_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    bench.main(["tiers", "--size", "200KB", "--rounds", "1", "--tiers", "memory", "files", "objects", "objects behind"])
    lines = capsys.readouterr().out.splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("| ")]
    assert lines[0] == "MB/s of each tier and its raw medium, medians of 1:"
    assert rows[0] == ["tier", "what", "0.2 MB bfloat16", "raw", "ratio", "0.1 MB int8", "raw", "ratio"]
    assert [", ".join(row[:2]) for row in rows[2:]] == [
        "memory, put", "memory, get",
        "files, put", "files, get", "files, get, 4 of 30 layers",
        "objects, put", "objects, get",
        "objects behind, put", "objects behind, put, written",
    ]  # fmt: skip
    assert all(float(cell.replace(",", "")) >= 0 for row in rows[2:] for cell in row[2:])


@pytest.mark.cluster
def test_the_command_starts_its_own_ray_and_leaves_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    leave_shared_cluster()
    make, made = tempfile.mkdtemp, []

    def recorded(*arguments: str | None, **named: str | None) -> str:
        made.append(make(*arguments, **named))
        return made[-1]

    monkeypatch.setattr(tempfile, "mkdtemp", recorded)
    bench.main(["tiers", "--size", "200KB", "--rounds", "1", "--tiers", "ray"])
    rows = [line.split("|")[1:3] for line in capsys.readouterr().out.splitlines() if line.startswith("| ray")]
    assert [what.strip() for _, what in rows] == ["put", "put, written", "get"]
    assert not ray.is_initialized() and len(made) == 2 and not [folder for folder in made if Path(folder).exists()]


@pytest.mark.parametrize(
    "arguments", [["--size", "3 apples"], ["--rounds", "0"], ["--tiers", "disk"], ["--size"]], ids=" ".join
)
def test_a_wrong_command_is_told_what_is_allowed(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as refusal:
        bench.main(["tiers", *arguments])
    assert refusal.value.code == 2 and "error:" in capsys.readouterr().err
