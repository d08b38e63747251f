"""Object storage as the corpus and the run directory see it: a store, a key, a seekable reader.

Invariants: foreign errors leave as ``OSError`` with an errno (a missing object as ``FileNotFoundError``), so
that an unreachable store is never mistaken for a damaged file; ``memory://`` names one store per process.
"""

from __future__ import annotations

import errno
import io
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

import obstore
from obstore.exceptions import BaseError
from obstore.store import MemoryStore, ObjectStore, from_url

SCHEMES = ("s3", "s3a", "gs", "az", "azure", "abfs", "abfss", "adl", "memory")


def is_url(path: str) -> bool:
    """Whether ``path`` names an object store; ``file://`` is a local path in other words."""
    return "://" in path and not path.startswith("file://")


def local_path(path: str) -> Path:
    """A local path, from itself or from a ``file://`` URL; ``~`` is the user's home."""
    plain = unquote(urlsplit(path).path) if path.startswith("file://") else path
    return Path(plain).expanduser()


@cache
def _root(scheme: str, bucket: str) -> ObjectStore:
    return MemoryStore() if scheme == "memory" else from_url(f"{scheme}://{bucket}")


def locate(url: str) -> tuple[ObjectStore, str]:
    """The store behind ``url`` (one per bucket) and the key inside it, without slashes at its ends.

    Credentials and regions come from the environment, as obstore documents. Raises ``ValueError`` for an
    unknown scheme or an incomplete configuration.
    """
    scheme, _, rest = url.partition("://")
    if scheme not in SCHEMES:
        raise ValueError(f"{url}: unknown scheme {scheme!r}; allowed: {', '.join(SCHEMES)}, file, or a path")
    bucket, _, key = ("", "", rest) if scheme == "memory" else rest.partition("/")
    try:
        return _root(scheme, bucket), key.strip("/")
    except (BaseError, ValueError) as error:
        raise ValueError(f"{url}: {first_line(error)}") from error


def first_line(error: BaseException) -> str:
    """An error's own words, without the debug dump that obstore appends."""
    return (str(error).splitlines() or [type(error).__name__])[0]


@contextmanager
def as_os_error(name: str) -> Iterator[None]:
    """Turn obstore's errors into ``OSError`` that name the object; a missing one keeps its own class."""
    try:
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(errno.ENOENT, "no such object", name) from error
    except BaseError as error:
        raise OSError(errno.EIO, first_line(error), name) from error


class ObjectReader(io.RawIOBase):
    """A seekable, unbuffered file over range requests: what pyarrow needs to read Parquet in place."""

    def __init__(self, store: ObjectStore, key: str) -> None:
        super().__init__()
        self._store, self._key, self._position = store, key, 0
        with as_os_error(key):
            self._size = obstore.head(store, key)["size"]

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always."""
        return True

    def tell(self) -> int:
        """The position, in bytes."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to ``offset`` from the start, from here or from the end; returns the new position."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def read(self, size: int | None = -1) -> bytes:
        """Up to ``size`` bytes from here on; all of the rest for ``None`` or a negative size."""
        rest = max(0, self._size - self._position)
        length = rest if size is None or size < 0 else min(size, rest)
        if length == 0:
            return b""
        with as_os_error(self._key):
            found = obstore.get_range(self._store, self._key, start=self._position, length=length)
        self._position += length
        return bytes(found)
