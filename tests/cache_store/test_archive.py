"""What a store's medium says of itself, without a tier: one law for every medium, over what a real tier wrote."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import cache_store.archive
import cache_store.codec
from cache_store.archive import Archive, Inventory, StoredFile, open_archive, prove
from cache_store.block import KVBlock
from cache_store.codec import encode
from cache_store.errors import CorruptBlock, NoSuchStore, OtherVersion
from cache_store.tiers.base import Tier
from cache_store.tiers.directory import EntryDirectory
from cache_store.tiers.files import FilesTier
from cache_store.tiers.medium import MAX_QUARANTINED
from cache_store.tiers.objects import ObjectsTier
from tests.cache_store.blocks import make_block, said_of, same

BLOCKS = [make_block(0), make_block(1, tokens=2, codec="int8"), make_block(2, layers=0, codec="float16")]


@dataclass(frozen=True)
class Medium:
    """A place that is a directory below, whatever it is to its tier."""

    root: Path
    place: str
    tier: Tier

    @property
    def archive(self) -> Archive:
        return open_archive(self.place)

    def path(self, number: int) -> Path:
        """Where the tier put one of ``BLOCKS``."""
        [path] = self.root.rglob(f"{BLOCKS[number].key.hex}.safetensors")
        return path

    def entry(self, number: int) -> StoredFile:
        [file] = [file for file in self.archive.inventory().entries if file.key == BLOCKS[number].key]
        return file


def _files(root: Path) -> Medium:
    return Medium(root, str(root), FilesTier(root, 2**20))


def _objects(root: Path) -> Medium:
    root.mkdir()
    return Medium(root, f"file://{root}", ObjectsTier(f"file://{root}", 2**20))


MEDIA = {"files": _files, "objects": _objects}


@pytest.fixture(params=MEDIA)
def medium(request: pytest.FixtureRequest, tmp_path: Path) -> Medium:
    return MEDIA[request.param](tmp_path / "store")


def fill(medium: Medium, blocks: list[KVBlock]) -> None:
    """Put blocks, each used an hour after the one before."""
    for hour, block in enumerate(blocks):
        assert medium.tier.put(block) == ()
        [path] = medium.root.rglob(f"{block.key.hex}.safetensors")
        os.utime(path, (hour * 3600, hour * 3600))


def snapshot(root: Path) -> dict[str, tuple[bytes, int]]:
    return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in root.rglob("*") if path.is_file()}


def test_an_inventory_is_what_the_tier_holds_newest_use_first(medium: Medium) -> None:
    fill(medium, BLOCKS)
    before = snapshot(medium.root)
    entries = medium.archive.inventory().entries
    assert [file.key for file in entries] == [block.key for block in reversed(BLOCKS)]
    assert [file.num_bytes for file in entries] == [len(encode(block)) for block in reversed(BLOCKS)]
    assert [file.used_s for file in entries] == [7200, 3600, 0]
    assert medium.archive.inventory() == (entries, (), (), ())
    assert snapshot(medium.root) == before


@pytest.mark.parametrize("head_bytes", [8, 2**16])
def test_headers_say_what_the_blocks_are_and_proof_changes_nothing(
    medium: Medium, monkeypatch: pytest.MonkeyPatch, head_bytes: int
) -> None:
    """Whether the header is among the bytes that are asked for first or not."""
    monkeypatch.setattr(cache_store.archive, "_HEAD_BYTES", head_bytes)
    fill(medium, BLOCKS)
    before = snapshot(medium.root)
    for file, block in zip(medium.archive.inventory().entries, reversed(BLOCKS), strict=True):
        header = medium.archive.header(file)
        assert said_of(header) == said_of(block)
        prove(medium.archive, file)
    assert snapshot(medium.root) == before


@pytest.mark.parametrize("kind", MEDIA)
@given(data=st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_proof_finds_any_changed_byte(kind: str, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    medium = _filled(kind, tmp_path_factory)
    path = medium.path(data.draw(st.integers(0, len(BLOCKS) - 1), label="entry"))
    content = path.read_bytes()
    at = data.draw(st.integers(0, len(content) - 1), label="at")
    changed = data.draw(st.integers(0, 255).filter(lambda byte: byte != content[at]), label="byte")
    path.write_bytes(content[:at] + bytes([changed]) + content[at + 1 :])
    try:
        assert _unproven(medium.archive) == [path.name]
    finally:
        path.write_bytes(content)
    assert _unproven(medium.archive) == []


_stores: dict[str, Medium] = {}


def _filled(kind: str, factory: pytest.TempPathFactory) -> Medium:
    """The same store for every example: each example mends what it damaged."""
    if kind not in _stores:
        _stores[kind] = MEDIA[kind](factory.mktemp("proof") / "store")
        fill(_stores[kind], BLOCKS)
    return _stores[kind]


def _unproven(archive: Archive) -> list[str]:
    names = []
    for file in archive.inventory().entries:
        try:
            prove(archive, file)
        except CorruptBlock:
            names.append(Path(file.name).name)
    return names


def test_every_byte_of_the_padding_counts(medium: Medium) -> None:
    """A parser takes tabs for spaces: this damage no reader of JSON sees."""
    fill(medium, BLOCKS)
    padded = 0
    for number in range(len(BLOCKS)):
        path = medium.path(number)
        content = path.read_bytes()
        last = 7 + int.from_bytes(content[:8], "little")
        if content[last] == ord(" "):
            padded += 1
            path.write_bytes(content[:last] + b"\t" + content[last + 1 :])
            with pytest.raises(CorruptBlock, match="padding"):
                prove(medium.archive, medium.entry(number))
    assert padded, "no entry has padding: choose others"


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[: len(content) // 2],
        lambda content: content[:-1],
        lambda content: content + b"x",
        lambda content: b"something else entirely",
        lambda content: encode(make_block(7)),
    ],
    ids=["emptied", "halved", "one byte short", "extended", "foreign", "another key's"],
)
def test_proof_finds_every_planted_damage(medium: Medium, damage: Callable[[bytes], bytes]) -> None:
    fill(medium, BLOCKS)
    path = medium.path(0)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(CorruptBlock):
        prove(medium.archive, medium.entry(0))
    prove(medium.archive, medium.entry(1))


def test_an_unreadable_header_says_why(medium: Medium) -> None:
    fill(medium, BLOCKS)
    for content in (b"", b"ten bytes!", bytes(100), b"\xff" * 100):
        medium.path(0).write_bytes(content)
        with pytest.raises(CorruptBlock):
            medium.archive.header(medium.entry(0))


def test_another_format_version_is_told_apart(medium: Medium, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as other_version:
        other_version.setattr(cache_store.codec, "FORMAT_VERSION", 999)
        fill(medium, BLOCKS[:1])
    for look in (medium.archive.header, lambda file: prove(medium.archive, file)):
        with pytest.raises(OtherVersion, match="version 999"):
            look(medium.entry(0))


@pytest.mark.parametrize("folder", ["", "00", "00/11"])
def test_an_entry_in_a_wrong_folder_is_misplaced(medium: Medium, folder: str) -> None:
    fill(medium, BLOCKS)
    astray = medium.root / folder / medium.path(0).name
    astray.parent.mkdir(parents=True, exist_ok=True)
    medium.path(0).replace(astray)
    inventory = medium.archive.inventory()
    assert [file.name for file in inventory.misplaced] == [astray.relative_to(medium.root).as_posix()]
    assert len(inventory.entries) == 2


def test_strangers_are_not_listed(medium: Medium) -> None:
    fill(medium, BLOCKS)
    name, aside = f"{'ab' * 32}.safetensors", f"{'ab' * 32}.{'c' * 32}"
    for stranger in (
        "README", "ab/notes.txt", f"ab/{'AB' * 32}.safetensors", f"ab/cd/{'ab' * 31}.safetensors", f"models/{name}",
        f"ab/cd/ef/{name}", f"quarantine/{name}", "quarantine/notes", f"quarantine/old/{aside}", "staging/notes.tmp",
        f"ab/{aside}", f"{'d' * 32}.tmp",
    ):  # fmt: skip
        path = medium.root / stranger
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
    inventory = medium.archive.inventory()
    assert len(inventory.entries) == 3 and not any(inventory[1:])


def test_removing_takes_the_named_files_and_no_others(medium: Medium) -> None:
    fill(medium, BLOCKS)
    doomed = [medium.entry(0), medium.entry(2)]
    medium.path(0).unlink()
    medium.archive.remove(doomed)
    medium.archive.remove([])
    assert [file.key for file in medium.archive.inventory().entries] == [BLOCKS[1].key]
    assert same(medium.tier.get(BLOCKS[1].key), BLOCKS[1]) and medium.tier.get(BLOCKS[2].key) is None


def test_what_is_gone_meanwhile_is_no_such_file(medium: Medium) -> None:
    fill(medium, BLOCKS)
    file = medium.entry(0)
    medium.path(0).unlink()
    for look in (medium.archive.header, medium.archive.content, medium.archive.set_aside):
        with pytest.raises(FileNotFoundError):
            look(file)


def test_set_aside_is_where_a_tier_would_put_it_and_nothing_gives_way(medium: Medium) -> None:
    blocks = [make_block(key) for key in range(MAX_QUARANTINED + 3)]
    fill(medium, blocks)
    content = medium.path(0).read_bytes()
    for file in medium.archive.inventory().entries:
        medium.archive.set_aside(file)
    inventory = medium.archive.inventory()
    assert len(inventory.quarantined) == len(blocks) and not inventory.entries
    assert content in {medium.archive.content(file) for file in inventory.quarantined}


def test_what_a_tier_sets_aside_is_known(medium: Medium) -> None:
    fill(medium, BLOCKS)
    medium.path(0).write_bytes(b"damaged")
    assert medium.tier.get(BLOCKS[0].key) is None
    [aside] = medium.archive.inventory().quarantined
    assert medium.archive.content(aside) == b"damaged"


def test_what_a_dying_writer_leaves_is_known(tmp_path: Path) -> None:
    medium = _files(tmp_path)
    EntryDirectory(tmp_path)._stage(b"half of a blo")
    [staged] = medium.archive.inventory().staged
    assert staged.num_bytes == 13
    medium.archive.remove([staged])
    assert not any(medium.archive.inventory())


def test_a_store_in_a_bucket_is_looked_through_over_http(s3_bucket: str) -> None:
    place = f"{s3_bucket}/store"
    tier, archive = ObjectsTier(place, 2**20), open_archive(place)
    with pytest.raises(NoSuchStore, match="nothing of a store"):
        archive.inventory()
    large = make_block(3, tokens=5000)  # more than one look at a header brings
    blocks = [*BLOCKS, large]
    for block in blocks:
        assert tier.put(block) == ()
    entries = {file.key: file for file in archive.inventory().entries}
    assert len(entries) == len(blocks) and entries[large.key].num_bytes > 2**17
    for block in blocks:
        assert archive.header(entries[block.key]).identity == block.identity
        prove(archive, entries[block.key])
    archive.set_aside(entries[large.key])
    archive.remove([entries[block.key] for block in BLOCKS[:2]])
    inventory = archive.inventory()
    assert [file.key for file in inventory.entries] == [BLOCKS[2].key] and len(inventory.quarantined) == 1
    with pytest.raises(FileNotFoundError):
        archive.header(entries[large.key])
    archive.remove(list(entries.values()))
    assert not archive.inventory().entries
    with pytest.raises(NoSuchStore, match="no such place"):
        open_archive("s3://no-such-bucket/store").inventory()


def test_a_directory_that_was_only_opened_is_an_empty_store(tmp_path: Path) -> None:
    assert _files(tmp_path).archive.inventory() == Inventory((), (), (), ())


@pytest.mark.parametrize("prefix", ["", "file://"])
@pytest.mark.parametrize("name", ["missing", "file", "empty", "other", "missing/below"])
def test_what_is_no_store_is_named_and_not_made(tmp_path: Path, prefix: str, name: str) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    (tmp_path / "other" / "staging").mkdir(parents=True)
    (tmp_path / "other" / "notes.txt").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(NoSuchStore, match=f"{tmp_path / name}.*"):
        open_archive(f"{prefix}{tmp_path / name}").inventory()
    assert sorted(tmp_path.rglob("*")) == before


def test_a_scheme_that_is_no_object_store_is_refused_without_its_password() -> None:
    with pytest.raises(NoSuchStore, match="unknown scheme") as refused:
        open_archive("ftp://me:secret@host/store")
    assert "secret" not in str(refused.value)


def test_a_directory_that_may_not_be_looked_into_is_an_error_that_names_it(tmp_path: Path) -> None:
    medium = _files(tmp_path / "store")
    archive = medium.archive
    medium.root.chmod(0)
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(65534)
    try:
        with pytest.raises(NoSuchStore, match=f"{medium.root}: no permission"):
            archive.inventory()
    finally:
        if is_root:
            os.seteuid(0)
        medium.root.chmod(0o700)
