"""A directory of entries that several processes share, and how they get there durably (``layout.IN_DIRECTORY``).

Invariants: an entry appears under its name whole or not at all (staged, fsynced, renamed, directory fsynced), whenever
the writer dies, whose staged file is removed after ten minutes; a file's modification time is its last use by any
process.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from cache_store.block import KVBlock
from cache_store.codec import decode_file
from cache_store.identity import BlockKey
from cache_store.layout import IN_DIRECTORY, QUARANTINE, Sort
from cache_store.tiers.medium import MAX_QUARANTINED

STALE_STAGED_S = 600.0

_FANOUT = re.compile(r"[0-9a-f]{2}")


class EntryDirectory:
    """Files below ``root`` as a ``Medium``."""

    records_uses = True
    is_resting = False

    def __init__(self, root: Path) -> None:
        self.root = root

    def open(self) -> None:
        """Make the directory, make sure that it can be written, remove what dead writers left."""
        (self.root / QUARANTINE).mkdir(parents=True, exist_ok=True)
        self._stage(b"").unlink()
        oldest_s = time.time() - STALE_STAGED_S
        for path in self._files(IN_DIRECTORY.staging, Sort.STAGED):
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_mtime < oldest_s:
                    path.unlink()

    def path_of(self, key: BlockKey) -> Path:
        """Where the entry of this key lies."""
        return self.root / IN_DIRECTORY.entry(key)

    def scan(self) -> list[tuple[BlockKey, int]]:
        """As ``Medium.scan``."""
        return [(key, num_bytes) for _, key, num_bytes in sorted(self._entries(), key=lambda entry: entry[0])]

    def size_of(self, key: BlockKey) -> int | None:
        """As ``Medium.size_of``."""
        with contextlib.suppress(FileNotFoundError):
            found = self.path_of(key).stat()
            return found.st_size if stat.S_ISREG(found.st_mode) else None  # a folder or a pipe is a stranger's
        return None

    def read(self, key: BlockKey, layers: range | None = None) -> KVBlock | None:
        """As ``Medium.read``; with ``layers``, of the file only their bytes. Other processes are told of the use, where
        the file system allows it."""
        path = self.path_of(key)
        if self.size_of(key) is None:  # before it is opened: a pipe would wait for its writer
            return None
        try:
            block = decode_file(path, key, layers)
        except FileNotFoundError:
            return None
        with contextlib.suppress(OSError):
            _set_used(path)
        return block

    def publish(self, key: BlockKey, content: bytes) -> None:
        """As ``Medium.publish``; durably."""
        target = self.path_of(key)
        staged = self._stage(content)
        try:
            for directory in (target.parent.parent, target.parent):
                _make_directory(directory)
            staged.replace(target)
        except BaseException:
            staged.unlink(missing_ok=True)
            raise
        _fsync_directory(target.parent)

    def remove(self, keys: Sequence[BlockKey]) -> None:
        """As ``Medium.remove``."""
        for key in keys:
            self.path_of(key).unlink(missing_ok=True)

    def quarantine(self, key: BlockKey) -> None:
        """As ``Medium.quarantine``."""
        (self.root / QUARANTINE).mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            self.path_of(key).replace(self.root / IN_DIRECTORY.new_quarantined(key))
        with contextlib.suppress(FileNotFoundError):
            # The change time, because a rename leaves the modification time as it was.
            aside = sorted(self._files(QUARANTINE, Sort.QUARANTINED), key=lambda path: path.stat().st_ctime_ns)
            for path in aside[:-MAX_QUARANTINED]:
                path.unlink()

    def _stage(self, content: bytes) -> Path:
        """Write ``content`` durably to a file of its own in this file system."""
        staged = self.root / IN_DIRECTORY.new_staged()
        staged.parent.mkdir(parents=True, exist_ok=True)
        try:
            with staged.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            _set_used(staged)
        except BaseException:
            staged.unlink(missing_ok=True)
            raise
        return staged

    def _files(self, folder: str, sort: Sort) -> list[Path]:
        names = (f"{folder}/{item.name}" for item in items_in(str(self.root / folder)))
        return [self.root / name for name in names if IN_DIRECTORY.sort_of(name) is sort]

    def _entries(self) -> Iterator[tuple[int, BlockKey, int]]:
        """Every entry: its last use, whose it is, its bytes."""
        for folder, item in items_of_entries(str(self.root)):
            key = IN_DIRECTORY.key_at(f"{folder}/{item.name}")
            if key is not None:
                with contextlib.suppress(FileNotFoundError):
                    found = item.stat()
                    if stat.S_ISREG(found.st_mode):
                        yield found.st_mtime_ns, key, found.st_size


def items_of_entries(root: str) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """What lies in the folders that hold entries, and the name of each one's folder below ``root``. Paths are strings
    here: a store may have as many folders as entries."""
    for outer in fanout_in(root):
        for inner in fanout_in(f"{root}/{outer}"):
            folder = f"{outer}/{inner}"
            for item in items_in(f"{root}/{folder}"):
                yield folder, item


def fanout_in(folder: str) -> list[str]:
    """The folders in one that can hold entries, by name and in its order."""
    return sorted(item.name for item in items_in(folder) if _FANOUT.fullmatch(item.name) and item.is_dir())


def items_in(folder: str) -> list[os.DirEntry[str]]:
    """What lies in a folder; nothing, if another process removed it meanwhile."""
    try:
        with os.scandir(folder) as items:
            return list(items)
    except FileNotFoundError:
        return []


def _set_used(path: Path) -> None:
    # Not the kernel's own stamp: that one stands still for some milliseconds.
    now_ns = time.time_ns()
    os.utime(path, ns=(now_ns, now_ns))


def _make_directory(directory: Path) -> None:
    """Make a directory and its name durable, unless it is there."""
    try:
        directory.mkdir()
    except FileExistsError:
        return
    _fsync_directory(directory.parent)


def _fsync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
