"""Entries in object storage: what lies where below a URL, which errors that can give, and when to ask at all.

    ab/<64 hex digits>.safetensors   an entry, whole
    probe/<random>                   written and removed when the bucket is opened
    quarantine/<hex>.<random>        damaged or foreign, kept for a look: the newest few

One level of folders: object stores have none and split their key space by themselves, evenly here because the names
are digests; 256 keep a console and a local directory readable.

Invariants: an entry appears whole or not at all, and is written once: a second writer of the same bytes leaves the
first one's object alone. No object whose name is not one of the above is counted or removed. No message holds a
password. What does not answer is left alone for a while (``CoolOff``).
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import uuid
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, cast
from urllib.parse import urlsplit

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, PermissionDeniedError, UnauthenticatedError
from obstore.store import LocalStore, MemoryStore, ObjectStore, from_url

from cache_store.identity import BlockKey
from cache_store.tiers.cooloff import CoolOff
from cache_store.tiers.directory import MAX_QUARANTINED

if TYPE_CHECKING:  # obstore has these in its stubs only
    from obstore.store import ClientConfig, RetryConfig

# Of remote stores, with the prefix of their settings in the environment.
_REMOTE = {"s3": "AWS_", "s3a": "AWS_", "gs": "GOOGLE_"} | dict.fromkeys(
    ("az", "azure", "abfs", "abfss", "adl"), "AZURE_"
)
SCHEMES = (*_REMOTE, "file", "memory")

_ENTRY = re.compile(r"([0-9a-f]{2})/(\1[0-9a-f]{62})\.safetensors")
_QUARANTINED = re.compile(r"quarantine/[0-9a-f]{64}\.[0-9a-f]{32}")
_PAGE = 10_000
# A status that says no, rather than "not now"; a local directory always answers.
_ANSWER = re.compile(r"status code: (4(?!08|29)\d\d|501)|LocalFileSystem error")
_FORBIDDEN = re.compile(r"status code: 40[13]|os error 13")
# Where a client without credentials asks for some: the machine's own metadata service, which only a cloud has.
_NO_CREDENTIALS = re.compile(r"/latest/(api|meta-data)/|/computeMetadata/|/metadata/identity/")
_USER_INFO = re.compile(r"//[^/\s@]*:\S*@")
_QUERY = re.compile(r"\?\S*")
# What obstore takes from the environment only where it is given no client options at all.
_FROM_ENVIRONMENT = ("allow_http", "allow_invalid_certificates", "proxy_url", "proxy_ca_certificate", "proxy_excludes")
_log = logging.getLogger(__name__)


class NoAnswer(ConnectionError):
    """The object store could not be reached, took too long, or said that it cannot now."""


class Resting(NoAnswer):
    """Nothing was asked, because nothing was answered a moment ago."""


class Bucket:
    """The layout above, below ``url``; an object store that one call waits for about ``timeout_s`` at most.

    Every method raises OSError where the object store does: NoAnswer, PermissionError, FileNotFoundError for a bucket
    that is not there. The constructor asks nothing, and raises ValueError for a URL that names no object store.
    """

    def __init__(self, url: str, timeout_s: float, cooloff: CoolOff) -> None:
        self.url = without_secrets(url)
        self._store = _store_at(url, timeout_s)
        self._cooloff = cooloff

    @property
    def is_resting(self) -> bool:
        """Whether a call would raise Resting."""
        return self._cooloff.remaining_s > 0

    def open(self) -> None:
        """Make sure that objects can be written and removed here."""
        probe = f"probe/{uuid.uuid4().hex}"
        self._create(probe, b"")
        self._delete([probe])

    def scan(self) -> list[tuple[BlockKey, int]]:
        """Every entry and its bytes, first written first."""
        with self._asking():
            items = (item for page in obstore.list(self._store, chunk_size=_PAGE) for item in page)
            found = ((_ENTRY.fullmatch(item["path"]), item) for item in items)
            entries = [(item["last_modified"], match[2], item["size"]) for match, item in found if match]
        return [(BlockKey(bytes.fromhex(name)), size) for _, name, size in sorted(entries)]

    def size_of(self, key: BlockKey) -> int | None:
        """Bytes of the entry of this key, None where there is none."""
        with contextlib.suppress(FileNotFoundError), self._asking():
            return obstore.head(self._store, _path_of(key))["size"]
        return None

    def read(self, key: BlockKey) -> bytes | None:
        """The entry's bytes, None where there is none."""
        with contextlib.suppress(FileNotFoundError), self._asking():
            return bytes(obstore.get(self._store, _path_of(key)).bytes())
        return None

    def publish(self, key: BlockKey, content: bytes) -> None:
        """Make ``content`` the entry of this key. An object that differs, which means damage, is replaced."""
        path = _path_of(key)
        if not self._create(path, content) and self.read(key) != content:
            with self._asking():
                obstore.put(self._store, path, content, use_multipart=False)

    def remove(self, keys: Sequence[BlockKey]) -> None:
        """Have no entries of these keys."""
        self._delete([_path_of(key) for key in keys])

    def quarantine(self, key: BlockKey) -> None:
        """Move the entry of this key aside, if it is still there; the oldest such objects give way."""
        with self._asking():
            with contextlib.suppress(FileNotFoundError):
                obstore.rename(self._store, _path_of(key), f"quarantine/{key.hex}.{uuid.uuid4().hex}")
            items = [item for page in obstore.list(self._store, "quarantine") for item in page]
        aside = sorted((item["last_modified"], item["path"]) for item in items if _QUARANTINED.fullmatch(item["path"]))
        self._delete([path for _, path in aside[:-MAX_QUARANTINED]])

    def _create(self, path: str, content: bytes) -> bool:
        """Write an object unless there is one, which is False."""
        with contextlib.suppress(AlreadyExistsError), self._asking():
            obstore.put(self._store, path, content, mode="create")
            return True
        return False

    def _delete(self, paths: Sequence[str]) -> None:
        if not paths:
            return
        try:
            with self._asking():
                obstore.delete(self._store, paths)
        except FileNotFoundError:  # not every store says so; then others of these may still be there
            for path in paths:
                with contextlib.suppress(FileNotFoundError), self._asking():
                    obstore.delete(self._store, path)

    @contextlib.contextmanager
    def _asking(self) -> Iterator[None]:
        """Scope of calls to the object store: refused while it rests, its errors made OSError."""
        if self.is_resting:
            raise Resting(f"{self.url}: not asked, for another {self._cooloff.remaining_s:.1f} s")
        try:
            yield
        except (FileNotFoundError, AlreadyExistsError):
            self._cooloff.answered()
            raise
        except (BaseError, OSError, NotImplementedError) as error:
            raise self._judged(error) from None  # what obstore says can hold a password, and a traceback would show it
        self._cooloff.answered()

    def _judged(self, error: Exception) -> OSError:
        """The error in our words, and what it says about asking again."""
        text = without_secrets(_first_line(error))
        denied = isinstance(error, PermissionDeniedError | UnauthenticatedError)
        if denied or _ANSWER.search(text):
            self._cooloff.answered()
        else:
            self._cooloff.no_answer()
            _log.warning("%s: no answer, left alone for %.0f s: %s", self.url, self._cooloff.remaining_s, text)
        if _NO_CREDENTIALS.search(text):
            return PermissionError(f"no credentials in the environment: {text}")
        if denied or _FORBIDDEN.search(text):
            return PermissionError(f"permission denied: {text}")
        return OSError(text) if _ANSWER.search(text) else NoAnswer(text)


def without_secrets(text: str) -> str:
    """A text in which URLs have lost ``user:password@`` and what follows a question mark."""
    return _QUERY.sub("", _USER_INFO.sub("//", text))


def _path_of(key: BlockKey) -> str:
    return f"{key.hex[:2]}/{key.hex}.safetensors"


def _store_at(url: str, timeout_s: float) -> ObjectStore:
    scheme = url.partition("://")[0]
    if scheme not in SCHEMES:
        raise ValueError(f"unknown scheme {without_secrets(scheme)!r}")
    if urlsplit(url).password is not None:
        raise ValueError("credentials do not belong into it; give them by the environment")
    try:
        if scheme in _REMOTE:
            return from_url(url, client_options=_client(timeout_s, scheme), retry_config=_retries(timeout_s))
        return MemoryStore() if scheme == "memory" else LocalStore.from_url(url, mkdir=True)
    except (BaseError, OSError, ValueError) as error:
        raise ValueError(without_secrets(_first_line(error))) from None


def _client(timeout_s: float, scheme: str) -> ClientConfig:
    limit = f"{max(1, round(1000 * timeout_s))}ms"
    named = {option: os.environ.get(_REMOTE[scheme] + option.upper()) for option in _FROM_ENVIRONMENT}
    options = {option: value for option, value in named.items() if value is not None}
    return cast("ClientConfig", options | {"timeout": limit, "connect_timeout": limit})


def _retries(timeout_s: float) -> RetryConfig:
    """Only what fails within the first tenth of the time is tried again, so that all of it ends shortly after."""
    tenth = timedelta(seconds=timeout_s / 10)
    return {"max_retries": 3, "retry_timeout": tenth, "backoff": {"init_backoff": tenth / 10, "max_backoff": tenth}}


def _first_line(error: Exception) -> str:
    """An error's own words, without the document that the server sent and the debug dump of obstore."""
    return (str(error).splitlines() or [type(error).__name__])[0].partition(": <?xml")[0].strip(" :")
