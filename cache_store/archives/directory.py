"""A store in a directory, as the files tier lays it out (``layout.IN_DIRECTORY``).

Invariants: only the folders of that layout are looked into; what vanishes while it is listed was never there.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from cache_store.archive import Inventory, StoredFile, header_of, sort_out
from cache_store.codec import Header
from cache_store.errors import NoSuchStore
from cache_store.layout import IN_DIRECTORY, QUARANTINE
from cache_store.tiers.directory import fanout_in, items_in, items_of_entries

_OWN = (IN_DIRECTORY.staging, QUARANTINE)
"""The folders that a tier makes before it has entries."""


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
            own = [name for name in _OWN if (self._root / name).is_dir()]
            found = sort_out(self._files(own), IN_DIRECTORY)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise NoSuchStore(f"{self.url}: {error.strerror}; allowed: the directory of a store") from error
        except PermissionError as error:
            raise NoSuchStore(f"{self.url}: no permission to look into {error.filename}") from error
        if not any(found) and len(own) < len(_OWN):
            raise NoSuchStore(
                f"{self.url}: nothing of a store is in it; allowed: the path of a {{kind: files}} tier, with entries "
                f"(ab/cd/<64 hexadecimal digits>.safetensors) or at least {'/ and '.join(_OWN)}/"
            )
        return found

    def header(self, file: StoredFile) -> Header:
        """As ``Archive.header``."""

        def first_bytes(count: int) -> bytes:
            with (self._root / file.name).open("rb") as entry:
                return entry.read(count)

        return header_of(file, first_bytes)

    def content(self, file: StoredFile) -> bytes:
        """As ``Archive.content``."""
        return (self._root / file.name).read_bytes()

    def remove(self, files: Sequence[StoredFile]) -> None:
        """As ``Archive.remove``. Folders stay: a writer may be about to use them."""
        for file in files:
            (self._root / file.name).unlink(missing_ok=True)

    def set_aside(self, file: StoredFile) -> None:
        """As ``Archive.set_aside``."""
        aside = self._root / IN_DIRECTORY.new_quarantined(file.key)
        aside.parent.mkdir(exist_ok=True)
        (self._root / file.name).replace(aside)

    def _files(self, own: Sequence[str]) -> Iterator[StoredFile]:
        """Every file of the layout's folders, and of those in which an entry may have gone astray."""
        root = str(self._root)
        for folder in ("", *own, *fanout_in(root)):
            for item in items_in(f"{root}/{folder}"):
                yield from _file(folder, item)
        for folder, item in items_of_entries(root):
            yield from _file(folder, item)


def _file(folder: str, item: os.DirEntry[str]) -> Iterator[StoredFile]:
    """The file, unless it is none, or none any more."""
    with contextlib.suppress(FileNotFoundError):
        if item.is_file():
            found = item.stat()
            yield StoredFile(f"{folder}/{item.name}".lstrip("/"), found.st_size, found.st_mtime)
