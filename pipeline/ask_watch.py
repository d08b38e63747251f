"""What a question cost: how much was read for it, how much was there, and why not more.

Invariants: counted is what engines say that they did; a store is looked into only once something had to be read, and
what is wrong with it there ends no run.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cache_store.archive import Archive, StoredFile, open_archive
from cache_store.codec import Header
from cache_store.errors import OtherVersion, StoreError
from cache_store.explain import explain
from configs.schema import FilesTier, Job, ObjectsTier
from pipeline.prepared import Prepared
from workers.messages import Encoded

_SAMPLE = 300
"""Entries whose headers are read to say why none fits."""
_TRIES = 3
"""Messages after which an entry that was made is no longer looked for."""

_log = logging.getLogger(__name__)


@dataclass
class ChunkCount:
    """Chunks of a document, or of all: read by the model, and found in the store."""

    read: int = 0
    found: int = 0


class Watch:
    """Counts what is read and what was there, and says once why something had to be read although the store holds
    entries."""

    def __init__(self, job: Job) -> None:
        self.chunks: dict[tuple[str, int], ChunkCount] = {}
        self._places = tuple(_places(job))
        self._started_s = time.time()
        self._tries_left = _TRIES
        self._is_told = False
        self._missed: tuple[Prepared, str] | None = None

    def __call__(self, prepared: Prepared, encoded: Encoded) -> None:
        """As ``scheduler.OnRead``."""
        document = prepared.document
        count = self.chunks.setdefault((document.source_file, document.source_row), ChunkCount())
        num_read = len(encoded.relevance) - encoded.cache_hits
        count.read += num_read
        count.found += encoded.cache_hits
        if num_read and self._missed is None:
            self._missed = prepared, encoded.keys[0]
        if self._missed is not None and self._tries_left:
            self._tries_left -= 1
            self._say_why()

    def close(self) -> None:
        """Say what could not be said earlier, because what was made was still to be written."""
        self._say_why()

    @property
    def total(self) -> ChunkCount:
        """Of all documents."""
        counts = self.chunks.values()
        return ChunkCount(sum(count.read for count in counts), sum(count.found for count in counts))

    def _say_why(self) -> None:
        """Ask the stores that can be looked into, of which a run needs none to; again with the next message, if what
        was made is not there to be compared yet."""
        if self._missed is None or self._is_told:
            return
        prepared, missed = self._missed
        for place in self._places:
            try:
                why = self._why_in(open_archive(place), prepared, missed)
            except (StoreError, OSError) as error:
                _log.debug("%s: %s", place, error)
                continue
            self._is_told |= why is not None
            if why:
                _log.info("%s: %s; reading it anew", prepared.document.id, why)
                return

    def _why_in(self, archive: Archive, prepared: Prepared, missed: str) -> str | None:
        """The entry that was just made is compared with those that nobody has used since the start. Empty where there
        is nothing to say, None where the entry is not there yet."""
        entries = archive.inventory().entries
        before = [file for file in entries if file.used_s < self._started_s]
        if not before:
            return ""
        made = next((file for file in entries if file.key.hex == missed), None)
        if made is None:
            return None
        headers, other_versions = _headers(archive, before[:_SAMPLE])
        if other_versions > len(headers):
            return f"the store holds {len(before):,} entries, most of them written by another version of foveate"
        chunks = [chunk.token_ids for chunk in prepared.chunks]
        return explain(archive.header(made).identity, chunks, headers, {file.key for file in before}) or ""


def _places(job: Job) -> Iterator[str]:
    """Where entries outlive a run."""
    for tier in job.store.tiers:
        if isinstance(tier, FilesTier | ObjectsTier):
            yield tier.path if isinstance(tier, FilesTier) else tier.url


def _headers(archive: Archive, files: Sequence[StoredFile]) -> tuple[list[Header], int]:
    """What can be read of entries, and how many are of another format version."""
    headers: list[Header] = []
    other_versions = 0
    for file in files:
        try:
            headers.append(archive.header(file))
        except OtherVersion:
            other_versions += 1
        except (StoreError, OSError):
            continue
    return headers, other_versions
