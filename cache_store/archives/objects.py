"""A store in object storage, as the objects tier lays it out (``layout.IN_BUCKET``).

Invariants: a header costs one ranged read, seldom two, whatever the entry weighs; no message holds a password.
"""

from __future__ import annotations

import contextlib
import errno
import re
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING

import obstore
from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError
from obstore.store import ObjectStore, from_url

from cache_store.archive import Inventory, StoredFile, header_of, sort_out
from cache_store.codec import Header
from cache_store.errors import NoSuchStore
from cache_store.layout import IN_BUCKET
from cache_store.tiers.bucket import SCHEMES, without_secrets

if TYPE_CHECKING:  # obstore has it in its stubs only
    from obstore.store import RetryConfig

_PAGE = 10_000
# For listings, obstore has no class of error that says so.
_ABSENT = re.compile(r"status code: 404")
_FORBIDDEN = re.compile(r"status code: 40[13]|os error 13")
# Somebody waits in front of a screen.
_RETRIES: RetryConfig = {"max_retries": 3, "retry_timeout": timedelta(seconds=20)}


class ObjectArchive:
    """See the module. Credentials and regions come from the environment, as obstore documents."""

    dates = "written"

    def __init__(self, url: str) -> None:
        self.url = without_secrets(url)
        self._store = _store_at(url)

    def inventory(self) -> Inventory:
        """As ``Archive.inventory``."""
        try:
            with self._asking(""):
                items = [item for page in obstore.list(self._store, chunk_size=_PAGE) for item in page]
        except FileNotFoundError as error:
            raise NoSuchStore(f"{self.url}: there is no such place; allowed: the URL of a store") from error
        except PermissionError as error:
            raise NoSuchStore(f"{self.url}: no permission to list it, or no credentials: {error.strerror}") from error
        except OSError as error:
            raise OSError(f"{self.url}: cannot be listed: {error.strerror}") from error
        found = sort_out(
            (StoredFile(item["path"], item["size"], item["last_modified"].timestamp()) for item in items), IN_BUCKET
        )
        if not any(found):
            raise NoSuchStore(
                f"{self.url}: nothing of a store is in it; allowed: the url of a {{kind: objects}} tier, with entries "
                "(ab/<64 hexadecimal digits>.safetensors)"
            )
        return found

    def header(self, file: StoredFile) -> Header:
        """As ``Archive.header``."""

        def first_bytes(count: int) -> bytes:
            if count == 0:  # for which there is no range
                return b""
            with self._asking(file.name):
                return bytes(obstore.get_range(self._store, file.name, start=0, length=count))

        return header_of(file, first_bytes)

    def content(self, file: StoredFile) -> bytes:
        """As ``Archive.content``."""
        with self._asking(file.name):
            return bytes(obstore.get(self._store, file.name).bytes())

    def remove(self, files: Sequence[StoredFile]) -> None:
        """As ``Archive.remove``."""
        paths = [file.name for file in files]
        try:
            with self._asking(""):
                obstore.delete(self._store, paths)
        except FileNotFoundError:  # not every store says so; then others of these may still be there
            for path in paths:
                with contextlib.suppress(FileNotFoundError), self._asking(path):
                    obstore.delete(self._store, path)

    def set_aside(self, file: StoredFile) -> None:
        """As ``Archive.set_aside``."""
        with self._asking(file.name):
            obstore.rename(self._store, file.name, IN_BUCKET.new_quarantined(file.key))

    @contextlib.contextmanager
    def _asking(self, name: str) -> Iterator[None]:
        """Scope of a call to the object store, whose errors become OSError."""
        place = f"{self.url}/{name}".rstrip("/")
        try:
            yield
        except FileNotFoundError as error:
            raise FileNotFoundError(errno.ENOENT, "no such object", place) from error
        except BaseError as error:
            words = _first_line(error)
            if _ABSENT.search(words):
                raise FileNotFoundError(errno.ENOENT, words, place) from error
            if isinstance(error, PermissionDeniedError | UnauthenticatedError) or _FORBIDDEN.search(words):
                raise PermissionError(errno.EACCES, words, place) from error
            raise OSError(errno.EIO, words, place) from error


def _store_at(url: str) -> ObjectStore:
    scheme = url.partition("://")[0]
    if scheme not in SCHEMES:
        raise NoSuchStore(f"{without_secrets(url)}: unknown scheme; allowed: {', '.join(SCHEMES)}, or a directory")
    try:
        # No client options: given any, obstore takes none from the environment.
        return from_url(url) if scheme in ("file", "memory") else from_url(url, retry_config=_RETRIES)
    except (BaseError, OSError, ValueError) as error:
        raise NoSuchStore(f"{without_secrets(url)}: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    """An error's own words, without passwords, the document that the server sent and the debug dump of obstore."""
    first = (str(error).splitlines() or [type(error).__name__])[0]
    return without_secrets(first.partition(": <?xml")[0])
