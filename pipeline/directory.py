"""Where a run keeps its records and rows: six operations, on a local directory or in object storage.

Invariants: ``create`` is atomic, durable and only-if-absent, so of two callers one is told True; nothing
partial is ever visible under its final name; names are ``/``-separated and relative to the directory; a
failed save is an ``OSError``, never a return value.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Protocol

import obstore
from obstore.exceptions import AlreadyExistsError
from obstore.store import ObjectStore

from pipeline.errors import DirectoryError
from pipeline.objects import as_os_error, is_url, local_path, locate

RECORDS = "_job"
STAGING = "_job/staging"
_RESTAGINGS = 5


class RunDirectory(Protocol):
    """What a run asks of its output directory."""

    url: str
    """The directory, in words."""

    def create(self, name: str, content: bytes) -> bool:
        """Publish ``content`` as ``name`` at once and durably. False, and nothing done, where it exists."""

    def read(self, name: str) -> bytes | None:
        """The content of ``name``, or None where there is none."""

    def names(self, folder: str) -> list[str]:
        """Names of all files below ``folder`` (``""``: of the whole directory), sorted; staging left out."""

    def top(self) -> list[str]:
        """Names of the files and folders directly in the directory; none where it does not exist yet."""

    def delete(self, name: str) -> None:
        """Remove ``name``; fine where it is gone already."""

    def sweep(self) -> None:
        """Remove what killed writers left half written."""


class LocalDirectory:
    """A directory of this machine or of a shared file system with hard links (POSIX, NFS).

    A file is staged under ``_job/staging``, synced, and linked to its name: the link is atomic and fails
    where the name exists. Then the folder is synced, and the staged name removed.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self.url = str(root)

    def create(self, name: str, content: bytes) -> bool:
        """As ``RunDirectory.create``; a staged file that another driver swept away is staged again."""
        final = self._root / name
        self._make_folder(final.parent)
        for _ in range(_RESTAGINGS):
            staged = self._root / STAGING / secrets.token_hex(8)
            self._make_folder(staged.parent)
            try:
                self._stage(staged, content)
                try:
                    os.link(staged, final)
                except FileExistsError:
                    return False
                self._sync_folder(final.parent)
                return True
            except FileNotFoundError:
                continue
            finally:
                _remove(staged)
        raise FileNotFoundError(f"{final}: its staged file was swept away {_RESTAGINGS} times")

    def read(self, name: str) -> bytes | None:
        """As ``RunDirectory.read``."""
        try:
            return (self._root / name).read_bytes()
        except FileNotFoundError:
            return None

    def names(self, folder: str) -> list[str]:
        """As ``RunDirectory.names``."""
        found = (path for path in (self._root / folder).rglob("*") if path.is_file())
        names = (path.relative_to(self._root).as_posix() for path in found)
        return sorted(name for name in names if not name.startswith(STAGING + "/"))

    def top(self) -> list[str]:
        """As ``RunDirectory.top``."""
        return sorted(path.name for path in self._root.iterdir()) if self._root.exists() else []

    def delete(self, name: str) -> None:
        """As ``RunDirectory.delete``."""
        _remove(self._root / name)

    def sweep(self) -> None:
        """As ``RunDirectory.sweep``. A living writer whose staged file goes too stages it again."""
        staging = self._root / STAGING
        for path in staging.iterdir() if staging.is_dir() else ():
            _remove(path)

    def _stage(self, staged: Path, content: bytes) -> None:
        descriptor = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        try:
            rest = memoryview(content)
            while rest:
                rest = rest[os.write(descriptor, rest) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _make_folder(self, folder: Path) -> None:
        """Create a folder and its missing parents, each one's name durable before it is used."""
        if folder.is_dir():
            return
        if folder != self._root:
            self._make_folder(folder.parent)
        folder.mkdir(exist_ok=True, parents=folder == self._root)
        self._sync_folder(folder.parent)

    def _sync_folder(self, folder: Path) -> None:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _remove(path: Path) -> None:
    try:
        os.unlink(path)  # noqa: PTH108 - beside os.link and os.fsync: the tests kill between these calls
    except FileNotFoundError:
        return


class ObjectDirectory:
    """A prefix of an object store with conditional puts (S3, GCS, Azure, in-process memory)."""

    def __init__(self, store: ObjectStore, prefix: str = "", url: str = "") -> None:
        self._store, self._prefix, self.url = store, prefix, url

    def create(self, name: str, content: bytes) -> bool:
        """As ``RunDirectory.create``: one conditional put."""
        try:
            with as_os_error(name):
                try:
                    obstore.put(self._store, self._prefix + name, content, mode="create")
                except AlreadyExistsError:
                    return False
        except FileNotFoundError as error:
            raise OSError(error.errno, "the bucket or container is missing", self.url) from error
        return True

    def read(self, name: str) -> bytes | None:
        """As ``RunDirectory.read``."""
        try:
            with as_os_error(name):
                return bytes(obstore.get(self._store, self._prefix + name).bytes())
        except FileNotFoundError:
            return None

    def names(self, folder: str) -> list[str]:
        """As ``RunDirectory.names``."""
        with as_os_error(folder):
            pages = obstore.list(self._store, (self._prefix + folder) or None, chunk_size=1000)
            return sorted(item["path"].removeprefix(self._prefix) for page in pages for item in page)

    def top(self) -> list[str]:
        """As ``RunDirectory.top``."""
        with as_os_error(self.url):
            found = obstore.list_with_delimiter(self._store, self._prefix or None)
        paths = [*found["common_prefixes"], *(item["path"] for item in found["objects"])]
        return sorted(path.removeprefix(self._prefix) for path in paths)

    def delete(self, name: str) -> None:
        """As ``RunDirectory.delete``."""
        try:
            with as_os_error(name):
                obstore.delete(self._store, self._prefix + name)
        except FileNotFoundError:
            return

    def sweep(self) -> None:
        """As ``RunDirectory.sweep``: a put is whole or nothing, so there is nothing to do."""


def existing_directory(path: str) -> RunDirectory:
    """The run directory at ``path`` (a path or URL), nothing created or written.

    Raises ``DirectoryError`` where no run was ever started.
    """
    directory = _at(path)
    try:
        started = directory.read("_job/job.json") is not None
    except OSError as error:
        raise DirectoryError(f"{path}: cannot be read: {error}") from error
    if not started:
        raise DirectoryError(f"{path}: not a run's directory: there is no _job/job.json in it")
    return directory


def open_directory(path: str) -> RunDirectory:
    """The run directory at ``path`` (a path or URL), created where it is missing, and proven writable.

    Raises ``DirectoryError`` for a file in the way, a directory of something else (not empty, no ``_job/``),
    and one that cannot be written to, link by link or put by conditional put.
    """
    directory = _at(path)
    try:
        _refuse_foreign(directory, path)
        prove_writable(directory)
    except NotADirectoryError as error:
        raise DirectoryError(f"{path}: a file is in the way; give a new or empty directory") from error
    except OSError as error:
        raise DirectoryError(f"{path}: cannot be written to: {error}") from error
    return directory


def _at(path: str) -> RunDirectory:
    if not is_url(path):
        return LocalDirectory(local_path(path))
    try:
        store, key = locate(path)
    except ValueError as error:
        raise DirectoryError(str(error)) from error
    return ObjectDirectory(store, key and key + "/", path)


def _refuse_foreign(directory: RunDirectory, path: str) -> None:
    names = directory.top()
    if names and RECORDS not in names:
        raise DirectoryError(
            f"{path}: holds something else ({names[0]!r}) and no {RECORDS}/; give a new or empty directory"
        )


def prove_writable(directory: RunDirectory) -> None:
    """Create a probe twice: ``DirectoryError`` where the second time succeeds, ``OSError`` where none does."""
    probe = f"{RECORDS}/probe-{secrets.token_hex(8)}"
    try:
        if not directory.create(probe, b"") or directory.create(probe, b""):
            raise DirectoryError(f"{directory.url}: this storage cannot create-if-absent, so no run can commit safely")
    finally:
        directory.delete(probe)
