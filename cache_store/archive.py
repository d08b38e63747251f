"""A store at rest: every file that its medium holds, for those who list, verify and clear it without opening a tier.

Invariants: nothing here counts as a use; a file that a tier would not have named is a stranger: not listed, not
removed; only ``remove`` and ``set_aside`` change anything, each the one file that it is given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from cache_store.codec import Header, decode, header_end, parse_header
from cache_store.errors import CorruptBlock
from cache_store.identity import BlockKey
from cache_store.layout import Layout, Sort, key_in

_HEAD_BYTES = 2**16
"""What is read of an entry for its header, which is seldom longer."""


class StoredFile(NamedTuple):
    """One file, as its medium knows it without reading it. ``name``: below the store's root, with slashes.
    ``used_s``: its last use (of a staged file: its last write), seconds since 1970."""

    name: str
    num_bytes: int
    used_s: float

    @property
    def key(self) -> BlockKey:
        """Whose entry the name says that this is; only of ``Inventory.entries`` and ``misplaced``."""
        key = key_in(self.name)
        assert key is not None, f"{self.name} is not an entry's name"
        return key


class Inventory(NamedTuple):
    """A store's files, each kind newest use first. ``misplaced``: an entry's name where no tier looks for it."""

    entries: tuple[StoredFile, ...]
    misplaced: tuple[StoredFile, ...]
    quarantined: tuple[StoredFile, ...]
    staged: tuple[StoredFile, ...]


class Archive(Protocol):
    """A store's medium. Every method raises OSError where the medium does; FileNotFoundError for a file that a tier
    removed meanwhile. Every method may be called from many threads at once."""

    @property
    def url(self) -> str:
        """The place, in words, without passwords."""
        ...

    @property
    def dates(self) -> str:
        """What ``used_s`` of an entry is here: ``used`` or, where uses are not recorded, ``written``."""
        ...

    def inventory(self) -> Inventory:
        """Every file of the store, none of them opened. Raises NoSuchStore where there is nothing of a store."""
        ...

    def header(self, file: StoredFile) -> Header:
        """What an entry says of itself; its tensors are not read. Raises UnreadableBlock."""
        ...

    def content(self, file: StoredFile) -> bytes:
        """All of a file."""
        ...

    def remove(self, files: Sequence[StoredFile]) -> None:
        """Have no such files; fine where they are gone."""
        ...

    def set_aside(self, file: StoredFile) -> None:
        """Move an entry or a misplaced one to ``quarantine/``, from which nothing leaves for it."""
        ...


def open_archive(place: str) -> Archive:
    """The store at a URL, as the objects tier lays it out, or in a directory, as the files tier does. Nothing is asked
    yet. Raises NoSuchStore for a URL that names no object store."""
    if "://" in place:
        from cache_store.archives.objects import ObjectArchive

        return ObjectArchive(place)
    from cache_store.archives.directory import DirectoryArchive

    return DirectoryArchive(Path(place).expanduser())


def sort_out(files: Iterable[StoredFile], layout: Layout) -> Inventory:
    """Files by what their names say that they are, strangers left out."""
    found: dict[Sort | None, list[StoredFile]] = {sort: [] for sort in (*Sort, None)}
    for file in sorted(files, key=lambda file: (-file.used_s, file.name)):
        found[layout.sort_of(file.name)].append(file)
    return Inventory(*(tuple(found[sort]) for sort in Sort))


def header_of(file: StoredFile, first_bytes: Callable[[int], bytes]) -> Header:
    """What an entry says of itself. ``first_bytes``: gives so many of its bytes; asked once, seldom twice. Raises
    UnreadableBlock."""
    head = first_bytes(min(_HEAD_BYTES, file.num_bytes))
    if len(head) < header_end(head) <= file.num_bytes:
        head = first_bytes(header_end(head))
    return parse_header(head, file.num_bytes, file.key)


def prove(archive: Archive, file: StoredFile) -> None:
    """Read all of an entry; raises CorruptBlock unless each of its bytes is what was written under its key,
    OtherVersion for an entry that another version wrote, and OSError.

    Read rather than mapped: a bad sector is then an error and not the end of the process."""
    content = archive.content(file)
    decode(content, file.key)
    # The one place where a reader sees no change: a JSON parser takes any white space for the format's spaces.
    if not content[8 : header_end(content)].rstrip(b" ").endswith(b"}"):
        raise CorruptBlock("the header's padding is not what was written")
