"""A store in a directory, as the files tier lays it out (``tiers.directory``).

Invariants: only the folders of that layout are looked into; what vanishes while it is listed was never there.
"""

from __future__ import annotations

import contextlib
import os
import re
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

from cache_store.archive import Inventory, StoredFile, sort_out
from cache_store.codec import Header, read_header
from cache_store.errors import NoSuchStore
from cache_store.identity import BlockKey
from cache_store.tiers.directory import EntryDirectory

_STAGING, _QUARANTINE = "staging", "quarantine"
_LAYOUT = EntryDirectory(Path())
_FANOUT = re.compile(r"[0-9a-f]{2}")


class DirectoryArchive:
    """See the module. Nothing is made, not even the directory."""

    dates = "used"

    def __init__(self, root: Path) -> None:
        self._root = root
        self.url = str(root)

    def inventory(self) -> Inventory:
        """As ``Archive.inventory``. A store that was never written to is known by its two folders."""
        try:
            os.scandir(self._root).close()
            found = sort_out(self._files(), _home)
            folders = [(self._root / name).is_dir() for name in (_STAGING, _QUARANTINE)]
        except (FileNotFoundError, NotADirectoryError) as error:
            raise NoSuchStore(f"{self.url}: {error.strerror}; allowed: the directory of a store") from error
        except PermissionError as error:
            raise NoSuchStore(f"{self.url}: no permission to look into {error.filename}") from error
        if not any(found) and not all(folders):
            raise NoSuchStore(
                f"{self.url}: nothing of a store is in it; allowed: the path of a {{kind: files}} tier, with entries "
                f"(ab/cd/<64 hexadecimal digits>.safetensors) or at least {_STAGING}/ and {_QUARANTINE}/"
            )
        return found

    def header(self, file: StoredFile) -> Header:
        """As ``Archive.header``."""
        return read_header(self._root / file.name, file.key)

    def content(self, file: StoredFile) -> bytes:
        """As ``Archive.content``."""
        return (self._root / file.name).read_bytes()

    def remove(self, files: Sequence[StoredFile]) -> None:
        """As ``Archive.remove``. Folders stay: a writer may be about to use them."""
        for file in files:
            (self._root / file.name).unlink(missing_ok=True)

    def set_aside(self, file: StoredFile) -> None:
        """As ``Archive.set_aside``."""
        aside = self._root / _QUARANTINE / f"{file.key.hex}.{uuid.uuid4().hex}"
        aside.parent.mkdir(exist_ok=True)
        (self._root / file.name).replace(aside)

    def _files(self) -> Iterator[StoredFile]:
        """Every file of the layout's folders, and of those in which an entry may have gone astray."""
        yield from _files_in(self._root, "")
        for outer in _folders_in(self._root):
            if outer in (_STAGING, _QUARANTINE):
                yield from _files_in(self._root, outer)
            elif _FANOUT.fullmatch(outer):
                yield from _files_in(self._root, outer)
                for inner in _folders_in(self._root / outer):
                    if _FANOUT.fullmatch(inner):
                        yield from _files_in(self._root, f"{outer}/{inner}")


def _home(key: BlockKey) -> str:
    return _LAYOUT.path_of(key).as_posix()


def _folders_in(folder: Path) -> list[str]:
    return sorted(item.name for item in _items(folder) if item.is_dir())


def _files_in(root: Path, folder: str) -> Iterator[StoredFile]:
    for item in _items(root / folder):
        with contextlib.suppress(FileNotFoundError):
            if item.is_file():
                found = item.stat()
                name = f"{folder}/{item.name}" if folder else item.name
                yield StoredFile(name, found.st_size, found.st_mtime)


def _items(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as items:
            return list(items)
    except FileNotFoundError:
        return []
