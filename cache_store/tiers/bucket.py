"""Entries in object storage (``layout.IN_BUCKET``): how they get there, which errors that can give, and when to ask.

Invariants: an entry appears whole or not at all, and is written once: a second writer of the same bytes leaves the
first one's object alone. No message holds a password. What does not answer is left alone for a while (``CoolOff``).
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, cast
from urllib.parse import urlsplit

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, PermissionDeniedError, UnauthenticatedError
from obstore.store import LocalStore, MemoryStore, ObjectStore, from_url

from cache_store.block import KVBlock
from cache_store.codec import decode
from cache_store.identity import BlockKey
from cache_store.layout import IN_BUCKET, QUARANTINE, Sort
from cache_store.tiers.cooloff import CoolOff
from cache_store.tiers.medium import MAX_QUARANTINED, NoAnswer, Resting

if TYPE_CHECKING:  # obstore has these in its stubs only
    from obstore.store import ClientConfig, RetryConfig

# Of remote stores, with the prefix of their settings in the environment.
_REMOTE = {"s3": "AWS_", "s3a": "AWS_", "gs": "GOOGLE_"} | dict.fromkeys(
    ("az", "azure", "abfs", "abfss", "adl"), "AZURE_"
)
SCHEMES = (*_REMOTE, "file", "memory")

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


class Bucket:
    """Objects below ``url`` as a ``Medium``; one call waits for about ``timeout_s`` at most.

    Every method raises what the object store does as NoAnswer, PermissionError, FileNotFoundError for a bucket that is
    not there, or another OSError. The constructor asks nothing, and raises ValueError for a URL that names no object
    store.
    """

    records_uses = False

    def __init__(self, url: str, timeout_s: float, cooloff: CoolOff) -> None:
        self.url = without_secrets(url)
        self._store = _store_at(url, timeout_s)
        self._cooloff = cooloff

    @property
    def is_resting(self) -> bool:
        """As ``Medium.is_resting``."""
        return self._cooloff.remaining_s > 0

    def open(self) -> None:
        """As ``Medium.open``."""
        probe = IN_BUCKET.new_staged()
        self._create(probe, b"")
        self._delete([probe])

    def scan(self) -> list[tuple[BlockKey, int]]:
        """As ``Medium.scan``."""
        with self._asking():
            items = (item for page in obstore.list(self._store, chunk_size=_PAGE) for item in page)
            found = [(IN_BUCKET.key_at(item["path"]), item) for item in items]
        entries = [(item["last_modified"], key.digest, key, item["size"]) for key, item in found if key is not None]
        return [(key, size) for _, _, key, size in sorted(entries, key=lambda entry: entry[:2])]

    def size_of(self, key: BlockKey) -> int | None:
        """As ``Medium.size_of``."""
        with contextlib.suppress(FileNotFoundError), self._asking():
            return obstore.head(self._store, IN_BUCKET.entry(key))["size"]
        return None

    def read(self, key: BlockKey, layers: range | None = None) -> KVBlock | None:
        """As ``Medium.read``; whole, in one request, which costs less time than several for a few layers."""
        content = self._content(key)
        return None if content is None else decode(content, key)

    def publish(self, key: BlockKey, content: bytes) -> None:
        """As ``Medium.publish``. An object that differs, which means damage, is replaced."""
        path = IN_BUCKET.entry(key)
        if not self._create(path, content) and self._content(key) != content:
            with self._asking():
                obstore.put(self._store, path, content, use_multipart=False)

    def remove(self, keys: Sequence[BlockKey]) -> None:
        """As ``Medium.remove``; in one request."""
        self._delete([IN_BUCKET.entry(key) for key in keys])

    def quarantine(self, key: BlockKey) -> None:
        """As ``Medium.quarantine``."""
        with self._asking():
            with contextlib.suppress(FileNotFoundError):
                obstore.rename(self._store, IN_BUCKET.entry(key), IN_BUCKET.new_quarantined(key))
            items = [item for page in obstore.list(self._store, QUARANTINE) for item in page]
        quarantined = (item for item in items if IN_BUCKET.sort_of(item["path"]) is Sort.QUARANTINED)
        aside = sorted((item["last_modified"], item["path"]) for item in quarantined)
        self._delete([path for _, path in aside[:-MAX_QUARANTINED]])

    def _content(self, key: BlockKey) -> bytes | None:
        with contextlib.suppress(FileNotFoundError), self._asking():
            return bytes(obstore.get(self._store, IN_BUCKET.entry(key)).bytes())
        return None

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
