"""``foveate store``: what its commands print, what they change, and what they refuse."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import cache_store.codec
from cache_store.archive import Inventory, StoredFile
from cache_store.archives.directory import DirectoryArchive
from cache_store.block import KVBlock
from cache_store.codec import Header, encode
from cache_store.tiers.directory import STALE_STAGED_S
from cache_store.tiers.files import FilesTier
from pipeline import cli
from pipeline.quantities import in_bytes
from pipeline.store import list_entries, weigh
from pipeline.store_screen import ago
from pipeline.store_upkeep import Wish, named_by
from tests.cache_store.blocks import make_block, same

SALT = "salt-of-a-tenant"
MODELS = ("5eed" * 16, "beef" * 16)
HOUR_S = 3600


def foveate(*arguments: object) -> int:
    """Run ``foveate store`` in this process; its exit code."""
    with pytest.raises(SystemExit) as ended:
        cli.main(["store", *map(str, arguments)])
    return int(ended.value.code or 0)


def block(number: int) -> KVBlock:
    """Blocks of two models in turn; every third is of a tenant, every fourth of one question."""
    made = make_block(number, codec=("model", "int8")[number % 2], cost=100 + number)
    identity = replace(
        made.identity,
        weights=MODELS[number % 2],
        scorer=json.dumps({"kind": ("probe", "expected")[number % 2]}),
        tenant=SALT if number % 3 == 0 else "",
        question="digest" if number % 4 == 0 else None,
    )
    return replace(made, identity=identity, num_tokens=50 + number)


BLOCKS = [block(number) for number in range(12)]
SIZES = [len(encode(each)) for each in BLOCKS]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A store of ``BLOCKS``, each last used an hour after the one before, the last one an hour ago."""
    root = tmp_path / "store"
    tier = FilesTier(root, 2**20)
    for number, each in enumerate(BLOCKS):
        assert tier.put(each) == ()
        used_s = time.time() - (len(BLOCKS) - number) * HOUR_S
        os.utime(path_of(root, each), (used_s, used_s))
    return root


def path_of(root: Path, each: KVBlock) -> Path:
    name = each.key.hex
    return root / name[:2] / name[2:4] / f"{name}.safetensors"


def snapshot(root: Path) -> dict[Path, tuple[bytes, int]]:
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in root.rglob("*") if path.is_file()}


def readable(root: Path) -> list[int]:
    """Which of ``BLOCKS`` a tier gives back whole."""
    tier = FilesTier(root, 2**20)
    return [number for number, each in enumerate(BLOCKS) if same(tier.get(each.key), each)]


Printed = pytest.CaptureFixture[str]


# -- ls and stats --------------------------------------------------------------------------------


def test_ls_says_what_each_entry_is_newest_use_first(root: Path, capsys: Printed) -> None:
    before = snapshot(root)
    assert foveate("ls", root) == 0
    head, *lines, last = capsys.readouterr().out.splitlines()
    assert head.split()[:5] == ["KEY", "SIZE", "USED", "TOKENS", "COST"]
    assert [line.split()[0] for line in lines] == [each.key.hex[:12] for each in reversed(BLOCKS)]
    newest, zeroth = lines[0], lines[-1]
    for word in ("1 h ago", "61", "111", MODELS[1][:12], "float32", "expected", "int8", "any", in_bytes(SIZES[11])):
        assert f" {word} " in f"{newest} "
    assert newest.endswith("no")
    assert re.search(rf"12 h ago +50 +100 +{MODELS[0][:12]} +float32 +probe +as computed +one +yes$", zeroth)
    assert last == f"12 entries, {in_bytes(sum(SIZES))}"
    assert snapshot(root) == before


def test_ls_can_be_narrowed(root: Path, capsys: Printed) -> None:
    assert foveate("ls", root, "--limit", 2) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:4]] == [
        BLOCKS[11].key.hex[:12], BLOCKS[10].key.hex[:12], "...",
    ]  # fmt: skip
    assert foveate("ls", root, "--model", "5eed5") == 0
    *lines, last = capsys.readouterr().out.splitlines()[1:]
    assert len(lines) == 6 and all(MODELS[0][:12] in line for line in lines) and last.startswith("12 entries")
    assert foveate("ls", root, "--model", "5eed5", "--limit", 5, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["entries"]) == 5 and found["more"] is True


def test_no_command_says_a_tenants_salt(root: Path, capsys: Printed) -> None:
    for arguments in (["ls"], ["ls", "--json"], ["stats"], ["stats", "--json"], ["verify"]):
        assert foveate(arguments[0], root, *arguments[1:]) == 0
    said = capsys.readouterr()
    assert SALT not in said.out + said.err
    assert SALT.encode() in path_of(root, BLOCKS[0]).read_bytes(), "then this test shows nothing"


def test_json_and_table_say_the_same(root: Path, capsys: Printed) -> None:
    assert foveate("ls", root, "--json") == 0
    entries = json.loads(capsys.readouterr().out)["entries"]
    assert foveate("ls", root) == 0
    lines = capsys.readouterr().out.splitlines()[1:-1]
    for entry, line in zip(entries, lines, strict=True):
        said = [in_bytes(entry["num_bytes"]), f"{entry['tokens']:,}", f"{entry['cost']:,}"]
        assert line.startswith(entry["key"][:12]) and all(f" {word} " in line for word in said)
        assert line.endswith("yes" if entry["has_tenant"] else "no")
        assert f" {'one' if entry['is_of_one_question'] else 'any'} " in line
    assert [entry["num_bytes"] for entry in entries] == SIZES[::-1]


def test_stats_sum_up_by_kind(root: Path, capsys: Printed) -> None:
    assert foveate("stats", root, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    for kind in found["kinds"]:
        own = [number for number in range(12) if MODELS[number % 2] == kind["model"]]
        num_bytes, tokens = sum(SIZES[n] for n in own), sum(BLOCKS[n].num_tokens for n in own)
        assert (kind["entries"], kind["num_bytes"], kind["tokens"]) == (6, num_bytes, tokens)
        assert kind["bytes_per_1000_tokens"] == 1000 * num_bytes / tokens
    assert found["all"]["num_bytes"] == sum(SIZES) == found["files"]["entries"]["num_bytes"]
    assert foveate("stats", root) == 0
    lines = capsys.readouterr().out.splitlines()
    for kind, line in zip([*found["kinds"], found["all"]], lines[1:4], strict=True):
        density = in_bytes(round(kind["bytes_per_1000_tokens"]))
        assert line.split()[-1] == density.split()[-1] and f" {density}" in line
        assert f" {in_bytes(kind['num_bytes'])} " in line and f" {kind['tokens']:,} " in line


def test_stats_tell_of_what_is_no_entry_of_this_version(
    root: Path, capsys: Printed, monkeypatch: pytest.MonkeyPatch
) -> None:
    path_of(root, BLOCKS[0]).write_bytes(b"damaged")
    with monkeypatch.context() as other_version:
        other_version.setattr(cache_store.codec, "FORMAT_VERSION", 999)
        FilesTier(root, 2**20).put(BLOCKS[1])
    (root / "quarantine" / f"{'a' * 64}.{'b' * 32}").write_bytes(b"old trouble")
    (root / "staging" / f"{'a' * 32}.tmp").write_bytes(b"half")
    assert foveate("stats", root) == 0
    said = capsys.readouterr().out
    assert "format 4: 10 entries" in said and "1 entry: block of format version 999" in said
    assert "cannot be read: 1 entry: not an entry" in said
    assert "1 quarantined file, 11 B; 1 staged file, 4 B" in said
    assert foveate("ls", root) == 0
    said = capsys.readouterr().out
    assert f"{BLOCKS[0].key.hex[:12]}" in said and "cannot be read: block of format version 999" in said
    assert foveate("ls", root, "--json") == 0
    versions = {entry["key"]: entry["format_version"] for entry in json.loads(capsys.readouterr().out)["entries"]}
    assert [versions[each.key.hex] for each in BLOCKS[:3]] == [None, 999, 4]


def test_an_empty_store_is_empty(tmp_path: Path, capsys: Printed) -> None:
    FilesTier(tmp_path, 2**20)
    for arguments in (["ls"], ["stats"], ["verify"], ["gc", "--max-bytes", "0"]):
        assert foveate(arguments[0], tmp_path, *arguments[1:]) == 0
    assert capsys.readouterr().out.count("0 entries, 0 B") == 4
    assert foveate("ls", tmp_path, "--json") == 0
    assert json.loads(capsys.readouterr().out)["entries"] == []
    assert foveate("stats", tmp_path, "--json") == 0
    assert json.loads(capsys.readouterr().out)["all"]["bytes_per_1000_tokens"] is None


def test_what_a_file_says_of_itself_cannot_speak_to_the_terminal(tmp_path: Path, capsys: Printed) -> None:
    made = make_block()
    identity = replace(made.identity, scorer=json.dumps({"kind": "\x1b[31mred\n[bold]"}), weights="\x07weights")
    FilesTier(tmp_path, 2**20).put(replace(made, identity=identity))
    assert foveate("ls", tmp_path) == 0 and foveate("stats", tmp_path) == 0
    said = capsys.readouterr().out
    assert "\x1b" not in said and "\x07" not in said and "[31mred [bold]" in said


class Watched(DirectoryArchive):
    """Counts what is opened."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.headers = self.contents = 0

    def header(self, file: StoredFile) -> Header:
        self.headers += 1
        return super().header(file)

    def content(self, file: StoredFile) -> bytes:
        self.contents += 1
        return super().content(file)


def test_twenty_thousand_files_are_listed_by_their_names(root: Path) -> None:
    for number in range(20_000 - len(BLOCKS)):
        folder, name = f"{root}/{number % 100:02d}/00", f"{number % 100:02d}00{number:060d}.safetensors"
        if number < 100:
            Path(folder).mkdir(parents=True, exist_ok=True)
        os.close(os.open(f"{folder}/{name}", os.O_CREAT))
    for number, each in enumerate(BLOCKS):
        newer_s = time.time() + HOUR_S + number
        os.utime(path_of(root, each), (newer_s, newer_s))
    archive = Watched(root)
    listing = list_entries(archive, "", 10)
    assert [entry.file.key for entry in listing.entries] == [each.key for each in BLOCKS[:1:-1]]
    assert listing.more and len(listing.inventory.entries) == 20_000
    assert (archive.headers, archive.contents) == (10, 0)


def test_listing_and_weighing_read_headers_alone(root: Path) -> None:
    archive = Watched(root)
    assert len(list_entries(archive, MODELS[0], 100).entries) == 6
    assert (archive.headers, archive.contents) == (12, 0)
    heard: list[tuple[int, int]] = []
    assert weigh(archive, lambda done, total: heard.append((done, total))).total.entries == 12
    assert (archive.headers, archive.contents) == (24, 0)
    assert heard == [(done, 12) for done in range(1, 13)]


# -- verify --------------------------------------------------------------------------------------


def test_a_sound_store_is_verified_and_left_as_it_was(root: Path, capsys: Printed) -> None:
    before = snapshot(root)
    assert foveate("verify", root) == 0
    assert capsys.readouterr().out == f"12 entries, {in_bytes(sum(SIZES))}: 12 sound\n"
    assert snapshot(root) == before


def plant(root: Path) -> dict[Path, str]:
    """Damage of every sort; each file with words of its reason."""
    paths = [path_of(root, each) for each in BLOCKS]
    paths[0].write_bytes(paths[0].read_bytes()[:-1])
    last = paths[1].read_bytes()
    paths[1].write_bytes(last[:-1] + bytes([last[-1] ^ 1]))
    paths[2].write_bytes(b"something else entirely")
    paths[3].write_bytes(paths[4].read_bytes())
    paths[5].write_bytes(b"")
    astray = root / "00" / "11" / paths[6].name
    astray.parent.mkdir(parents=True)
    paths[6].replace(astray)
    return {
        paths[0]: "not an entry",
        paths[1]: "checksum mismatch",
        paths[2]: "not an entry",
        paths[3]: f"block of key {BLOCKS[4].key.hex}",
        paths[5]: "not an entry",
        astray: "where no tier looks",
    }


@pytest.mark.parametrize("jobs", [1, 3])
def test_verify_names_every_planted_damage_and_changes_nothing(root: Path, capsys: Printed, jobs: int) -> None:
    planted = plant(root)
    before = snapshot(root)
    assert foveate("verify", root, "--jobs", jobs) == 1
    *lines, last = capsys.readouterr().out.splitlines()
    assert last.endswith(": 6 sound, 6 damaged")
    assert len(lines) == len(planted)
    for path, reason in planted.items():
        [line] = [line for line in lines if path.relative_to(root).as_posix() in line]
        assert line.startswith("damaged ") and reason in line
    assert snapshot(root) == before


def test_verify_sets_aside_what_is_damaged_if_it_may(root: Path, capsys: Printed) -> None:
    planted = plant(root)
    contents = sorted(path.read_bytes() for path in planted)
    assert foveate("verify", root, "--quarantine") == 1
    assert "moved 6 files to quarantine/" in capsys.readouterr().out
    assert sorted(path.read_bytes() for path in (root / "quarantine").iterdir()) == contents
    assert foveate("verify", root) == 0
    assert readable(root) == [4, 7, 8, 9, 10, 11]


def test_another_format_version_is_told_apart_and_is_no_error(
    root: Path, capsys: Printed, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as other_version:
        other_version.setattr(cache_store.codec, "FORMAT_VERSION", 999)
        FilesTier(root, 2**20).put(BLOCKS[5])
    assert foveate("verify", root, "--quarantine") == 0
    line, last, moved = capsys.readouterr().out.splitlines()
    assert line.startswith("other version ") and "format version 999" in line
    assert "11 sound, 1 of format version 999" in last and moved == "moved 0 files to quarantine/"
    assert path_of(root, BLOCKS[5]).exists()


def test_what_the_disk_does_not_give_is_bad_but_not_moved(root: Path, capsys: Printed) -> None:
    path = path_of(root, BLOCKS[0])
    path.unlink()
    path.symlink_to("/proc/self/mem")  # a file whose every read fails
    assert foveate("verify", root, "--quarantine") == 1
    line, *_ = capsys.readouterr().out.splitlines()
    assert line.startswith("unreadable ") and "cannot be read: Input/output error" in line
    assert path.is_symlink()


# -- gc ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("criterion", "stays"),
    [
        (["--max-bytes", sum(SIZES[7:])], range(7, 12)),
        (["--max-bytes", sum(SIZES[7:]) - 1], range(8, 12)),
        (["--max-bytes", "1MiB"], range(12)),
        (["--max-bytes", 0], range(0)),
        (["--older-than", "4.5h"], range(8, 12)),
        (["--older-than", "270min"], range(8, 12)),
        (["--older-than", "1w"], range(12)),
        (["--older-than", "4.5h", "--max-bytes", sum(SIZES[10:])], range(10, 12)),
        (["--older-than", "4.5h", "--max-bytes", sum(SIZES[3:])], range(8, 12)),
        (["--quarantine"], range(12)),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, list) else "",
)
def test_gc_removes_what_was_named_and_a_dry_run_names_it(
    root: Path, capsys: Printed, criterion: Sequence[object], stays: range
) -> None:
    strangers = [root / "README", root / "ab" / "notes.txt", root / "00" / "11" / path_of(root, BLOCKS[0]).name]
    for stranger in strangers:
        stranger.parent.mkdir(parents=True, exist_ok=True)
        stranger.write_text("mine")
        os.utime(stranger, (0, 0))
    aside, staged = root / "quarantine" / f"{'a' * 64}.{'b' * 32}", root / "staging" / f"{'a' * 32}.tmp"
    young = root / "staging" / f"{'b' * 32}.tmp"
    for path in (aside, staged, young):
        path.write_bytes(b"left")
    os.utime(staged, (0, 0))
    before = snapshot(root)

    assert foveate("gc", root, *criterion, "--dry-run") == 0
    *named, last = capsys.readouterr().out.splitlines()
    assert snapshot(root) == before
    assert foveate("gc", root, *criterion) == 0
    [done] = capsys.readouterr().out.splitlines()
    gone = {path.relative_to(root).as_posix() for path in before.keys() - snapshot(root).keys()}
    assert {line.split()[0] for line in named} == gone and len(named) == len(gone)
    assert done == last.replace("would remove", "removed")

    with_quarantine = {path.relative_to(root).as_posix() for path in (aside, staged)}
    assert gone & with_quarantine == (with_quarantine if "--quarantine" in criterion else set())
    assert all(stranger.read_text() == "mine" for stranger in strangers) and young.exists()
    assert readable(root) == list(stays)


some_files = st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), max_size=12).map(
    lambda pairs: [StoredFile(str(number), size, float(used)) for number, (size, used) in enumerate(pairs)]
)


@given(
    some_files,
    some_files,
    st.builds(
        Wish,
        max_bytes=st.none() | st.integers(0, 300),
        older_than_s=st.none() | st.floats(0, 60),
        quarantine=st.booleans(),
    ),
)
def test_a_wish_names_the_least_recently_used_and_as_few_as_will_do(
    files: list[StoredFile], others: list[StoredFile], wish: Wish
) -> None:
    entries = tuple(sorted(files, key=lambda file: -file.used_s))
    named = named_by(wish, Inventory(entries, tuple(others), tuple(others), ()), now_s=60.0)
    leaving = named[: len(named) - (len(others) if wish.quarantine else 0)]
    assert named[len(leaving) :] == (tuple(others) if wish.quarantine else ())
    assert leaving == entries[::-1][: len(leaving)]
    staying = entries[: len(entries) - len(leaving)]
    if wish.max_bytes is not None:
        assert sum(file.num_bytes for file in staying) <= wish.max_bytes
    if wish.older_than_s is not None:
        assert all(60.0 - file.used_s <= wish.older_than_s for file in staying)
    if leaving:  # the last one to leave had to
        is_old = wish.older_than_s is not None and 60.0 - leaving[-1].used_s > wish.older_than_s
        left = sum(file.num_bytes for file in (*staying, leaving[-1]))
        assert is_old or (wish.max_bytes is not None and left > wish.max_bytes)


def test_a_living_writers_file_stays() -> None:
    young, old = StoredFile("young", 1, 1000.0 - STALE_STAGED_S), StoredFile("old", 1, 999.0 - STALE_STAGED_S)
    assert named_by(Wish(quarantine=True), Inventory((), (), (), (young, old)), now_s=1000.0) == (old,)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "nothing is named; allowed: --max-bytes SIZE, --older-than AGE, --quarantine"),
        (["--dry-run"], "nothing is named"),
        (["--max-bytes", "5 GiB/s"], "--max-bytes: '5 GiB/s'; allowed: bytes, or a size such as 512MiB or 5GiB"),
        (["--max-bytes", "-1"], "--max-bytes: '-1'; allowed"),
        (["--older-than", "30"], "--older-than: '30'; allowed: a number with s, min, m, h, d, w, such as 12h or 30d"),
        (["--older-than", "-3d"], "--older-than: '-3d'; allowed"),
    ],
)
def test_gc_refuses_what_it_does_not_understand(root: Path, capsys: Printed, arguments: list[str], said: str) -> None:
    before = snapshot(root)
    assert foveate("gc", root, *arguments) == 2
    assert said in capsys.readouterr().err
    assert snapshot(root) == before


# -- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [["ls"], ["stats"], ["verify"], ["gc", "--quarantine"]], ids=lambda c: c[0])
@pytest.mark.parametrize("name", ["missing", "file", "other"])
def test_what_is_no_store_is_a_message_that_names_it(
    tmp_path: Path, capsys: Printed, command: list[str], name: str
) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    assert foveate(command[0], tmp_path / name, *command[1:]) == 2
    out, err = capsys.readouterr()
    assert not out and err.startswith(f"foveate: {tmp_path / name}: ") and "allowed: " in err
    assert not (tmp_path / "missing").exists()


def test_ages_are_in_their_largest_unit() -> None:
    ages = [-5.0, 0.4, 1.0, 59.9, 60.0, 3 * HOUR_S, 26 * HOUR_S, 2000 * 86_400.0]
    said = ["just now", "just now", "1 s ago", "59 s ago", "1 min ago", "3 h ago", "1 d ago", "2,000 d ago"]
    assert [ago(age) for age in ages] == said
