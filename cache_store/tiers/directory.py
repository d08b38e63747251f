"""A directory of entries that several processes share: what lies where, and how it gets there durably.

    ab/cd/<64 hex digits>.safetensors   an entry, whole
    staging/<random>.tmp                being written; a dead writer's is removed after ten minutes
    quarantine/<hex>.<random>           damaged or foreign, kept for a look: the newest few

Invariants: an entry appears under its name whole or not at all (staged, fsynced, renamed, directory
fsynced), whenever the writer dies; no file whose name is not one of the above is counted or removed; a file's
modification time is its last use by any process.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from cache_store.identity import BlockKey

STALE_STAGED_S = 600.0
MAX_QUARANTINED = 8

_SUFFIX = ".safetensors"
_FANOUT = re.compile(r"[0-9a-f]{2}")
_STAGED = re.compile(r"[0-9a-f]{32}\.tmp")
_QUARANTINED = re.compile(r"[0-9a-f]{64}\.[0-9a-f]{32}")


class Entry(NamedTuple):
    """A published entry, as its directory knows it without reading it."""

    key: BlockKey
    num_bytes: int
    used_ns: int


class EntryDirectory:
    """The layout above, below ``root``. Every method raises OSError where the file system does."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._staging = root / "staging"
        self._quarantine = root / "quarantine"

    def open(self) -> None:
        """Make the directory, make sure that it can be written, remove what dead writers left."""
        self._quarantine.mkdir(parents=True, exist_ok=True)
        self._stage(b"").unlink()
        oldest_s = time.time() - STALE_STAGED_S
        for staged in self._staging.iterdir():
            with contextlib.suppress(FileNotFoundError):
                if _STAGED.fullmatch(staged.name) and staged.stat().st_mtime < oldest_s:
                    staged.unlink()

    def path_of(self, key: BlockKey) -> Path:
        """Where the entry of this key lies."""
        return self.root / key.hex[:2] / key.hex[2:4] / f"{key.hex}{_SUFFIX}"

    def scan(self) -> list[Entry]:
        """Every entry, oldest use first."""
        return sorted(self._entries(), key=lambda entry: entry.used_ns)

    def stat(self, key: BlockKey) -> Entry | None:
        """The entry of this key, None where there is none."""
        return _stat(key, self.path_of(key))

    def publish(self, key: BlockKey, content: bytes) -> None:
        """Make ``content`` the entry of this key, durably and at once; on OSError nothing new is left."""
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

    def mark_used(self, key: BlockKey) -> None:
        """Tell other processes that the entry was used now, where the file system allows it."""
        with contextlib.suppress(OSError):
            _set_used(self.path_of(key))

    def remove(self, key: BlockKey) -> None:
        """Have no entry of this key."""
        with contextlib.suppress(FileNotFoundError):
            self.path_of(key).unlink()

    def quarantine(self, key: BlockKey) -> None:
        """Move the entry of this key aside, if it is still there; the oldest such files give way."""
        self._quarantine.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            self.path_of(key).replace(self._quarantine / f"{key.hex}.{uuid.uuid4().hex}")
        aside = [path for path in self._quarantine.iterdir() if _QUARANTINED.fullmatch(path.name)]
        with contextlib.suppress(FileNotFoundError):
            # The change time, because a rename leaves the modification time as it was.
            aside.sort(key=lambda path: path.stat().st_ctime_ns)
            for path in aside[:-MAX_QUARANTINED]:
                path.unlink()

    def _stage(self, content: bytes) -> Path:
        """Write ``content`` durably to a file of its own in this file system."""
        self._staging.mkdir(parents=True, exist_ok=True)
        staged = self._staging / f"{uuid.uuid4().hex}.tmp"
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

    def _entries(self) -> Iterator[Entry]:
        for outer in _fanout(self.root):
            for inner in _fanout(outer):
                for path in _children(inner):
                    with contextlib.suppress(ValueError):  # not one of our names
                        key = BlockKey.from_hex(path.name.removesuffix(_SUFFIX))
                        entry = _stat(key, path) if path == self.path_of(key) else None
                        if entry is not None:
                            yield entry


def _stat(key: BlockKey, path: Path) -> Entry | None:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return Entry(key, found.st_size, found.st_mtime_ns)


def _fanout(directory: Path) -> Iterator[Path]:
    """Subdirectories named by two hex digits."""
    return (path for path in _children(directory) if _FANOUT.fullmatch(path.name) and path.is_dir())


def _children(directory: Path) -> list[Path]:
    """What lies in a directory; nothing, if another process removed it meanwhile."""
    try:
        return list(directory.iterdir())
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
