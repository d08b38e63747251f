"""The benchmark of many entries: what it writes is what the tiers would have written, and every line is printed."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from cache_store.bench import __main__ as bench
from cache_store.bench import entries
from cache_store.bench.entries import KINDS, Line, fill, list_files, looking_up, make_entry, opening, time_of, weighing
from tests.cache_store.blocks import same

every_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


@every_kind
def test_a_filled_tier_holds_as_many_entries_and_the_real_ones_can_be_read(
    kind: entries.Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(entries, "_MOST_REAL", 5)
    real = fill(kind, tmp_path / "tier", num_entries=20)
    tier = kind.open(tmp_path / "tier")
    assert len(real) == 5 and len(set(tier.keys())) == 20 and set(real) < set(tier.keys())
    assert all(same(tier.get(key), make_entry(number)) for number, key in enumerate(real))
    assert tier.counters.corrupt == 0


@every_kind
def test_entries_lie_where_the_tier_itself_puts_them(kind: entries.Kind, tmp_path: Path) -> None:
    fill(kind, tmp_path / "filled", num_entries=1)
    kind.open(tmp_path / "put").put(make_entry(0))

    def written(root: Path) -> dict[str, bytes]:
        found = {Path(path).relative_to(root).as_posix(): Path(path).read_bytes() for path in list_files(root)}
        return {path: content for path, content in found.items() if path.endswith(".safetensors")}

    assert written(tmp_path / "filled") == written(tmp_path / "put") != {}


@every_kind
def test_a_listing_gives_every_name_and_size(kind: entries.Kind, tmp_path: Path) -> None:
    fill(kind, tmp_path, num_entries=7)
    listed = kind.listing(tmp_path)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 7
    assert {Path(path).name: size for path, size in listed.items()} == {
        path.name: path.stat().st_size for path in files
    }


@every_kind
def test_each_line_is_of_what_it_says(kind: entries.Kind, tmp_path: Path) -> None:
    real = fill(kind, tmp_path, num_entries=12)
    found = [*opening(kind, tmp_path, rounds=1), *looking_up(kind, tmp_path, real), weighing(kind, tmp_path, 12)]
    assert [line.what for line in found] == [
        "open", "open, processors' time", "look up what is there", "look up what is not", "memory per entry",
    ]  # fmt: skip
    assert [line.target for line in found] == ["2 s", "", "1,000 µs", "1,000 µs", ""]
    assert found[4].tier.endswith(" bytes") and not found[4].raw


def test_an_entry_that_is_lost_ends_the_benchmark(tmp_path: Path) -> None:
    kind = KINDS["files"]
    real = fill(kind, tmp_path, num_entries=2)
    next(path for path in tmp_path.rglob(f"{real[1].hex}.*")).write_bytes(b"damaged")
    with pytest.raises(OSError, match="lost entry"):
        list(looking_up(kind, tmp_path, real))


def test_a_line_by_hand() -> None:
    line = Line.of("open", [(2.0, 1.0), (40.0, 10.0), (4.0, 2.0)], lambda seconds: f"{seconds:g} s", "1 s")
    assert line == Line("open", "4 s", "2 s", "2.0", "1 s")


def test_only_the_action_is_timed() -> None:
    asked: list[tuple[int, int]] = []
    taken = time_of(lambda *numbers: asked.append(numbers), 1, 2)
    assert asked == [(1, 2)] and taken.clock_s > 0 and taken.processors_s >= 0


def test_the_command_prints_a_table_and_removes_what_it_wrote(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    bench.main(["entries", "--entries", "30", "--rounds", "1"])
    lines = capsys.readouterr().out.splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("| ")]
    assert lines[0] == "A tier of 30 entries, medians:"
    assert rows[0] == ["tier", "what", "measured", "raw", "ratio", "target"]
    assert [row[0] for row in rows[2:]] == ["files"] * 5 + ["objects"] * 5
    assert {len(row) for row in rows} == {6}
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("arguments", [["--entries", "0"], ["--rounds", "0"], ["--entries", "many"]], ids=" ".join)
def test_a_wrong_command_is_told_what_is_allowed(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as refusal:
        bench.main(["entries", *arguments])
    assert refusal.value.code == 2 and "error:" in capsys.readouterr().err
