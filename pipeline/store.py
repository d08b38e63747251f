"""What ``foveate store ls`` and ``stats`` say of a store at rest, from its entries' headers.

Invariants: no tensor is read; a header is read when it is asked for; an entry that a running job removes meanwhile is
passed over; one that cannot be read is listed with the reason.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

from cache_store.archive import Archive, Inventory, StoredFile
from cache_store.codec import Header
from cache_store.errors import OtherVersion, UnreadableBlock
from cache_store.identity import FORMAT_VERSION, BlockKey, Identity

Tick = Callable[[int, int], None]
"""Hears how many of all entries were looked at."""
_AT_ONCE = 16
"""Headers that are asked for together: from object storage each takes a round trip."""


class Kind(NamedTuple):
    """What entries have in common that makes them as large as they are. ``model``: the fingerprint of its weights.
    ``codec``: of the pairs, ``none`` where only scores are stored."""

    model: str
    dtype: str
    scorer: str
    codec: str

    @classmethod
    def of(cls, identity: Identity) -> Kind:
        """The kind of an entry."""
        start, stop = identity.layers
        codec = identity.codec if stop > start else "none"
        return cls(identity.weights, identity.dtype.removeprefix("torch."), _named(identity.scorer), codec)


def _named(record: str) -> str:
    """The ``kind`` of a part's record, ``?`` where it says none."""
    try:
        return str(json.loads(record)["kind"])
    except (ValueError, LookupError, TypeError):
        return "?"


@dataclass(frozen=True)
class Listed:
    """One entry. ``fault``: why it cannot be read; then there is no header. ``version``: of its format, where it is
    known."""

    file: StoredFile
    header: Header | None
    fault: str = ""
    version: int | None = FORMAT_VERSION


@dataclass(frozen=True)
class Listing:
    """The first of a store's entries. ``more``: there are others that were not asked for. ``dates``: as ``Archive``."""

    entries: tuple[Listed, ...]
    more: bool
    inventory: Inventory
    dates: str


def list_entries(archive: Archive, model: str, limit: int) -> Listing:
    """Entries, newest use first, at most ``limit``; with ``model``, those of weights whose fingerprint begins so."""
    inventory = archive.inventory()
    if model:
        found = (entry for entry in _looked_at(archive, inventory.entries) if _is_of(entry, model))
        first = tuple(islice(found, limit + 1))
        return Listing(first[:limit], len(first) > limit, inventory, archive.dates)
    first = tuple(_looked_at(archive, inventory.entries[:limit]))
    return Listing(first, len(inventory.entries) > limit, inventory, archive.dates)


def _is_of(entry: Listed, model: str) -> bool:
    return entry.header is not None and entry.header.identity.weights.startswith(model)


def _looked_at(archive: Archive, files: Sequence[StoredFile]) -> Iterator[Listed]:
    """The entries and their headers, some at once and no more of them than were asked for, or nearly."""
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for start in range(0, len(files), _AT_ONCE):
            looks = pool.map(lambda file: _look(archive, file), files[start : start + _AT_ONCE])
            yield from (entry for entry in looks if entry is not None)


def _look(archive: Archive, file: StoredFile) -> Listed | None:
    """None for a file that is gone."""
    try:
        return Listed(file, archive.header(file))
    except FileNotFoundError:
        return None
    except OtherVersion as error:
        return Listed(file, None, reason_of(error, file.key), error.version)
    except (UnreadableBlock, OSError) as error:
        return Listed(file, None, reason_of(error, file.key), None)


def reason_of(error: Exception, key: BlockKey) -> str:
    """An error's own words on one line, without the key that stands beside them."""
    words = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return " ".join(words.removeprefix(f"block {key.hex}: ").split())


@dataclass
class Weight:
    """What the entries of one kind come to. ``tokens``: of documents, each counted in every entry that is of it."""

    entries: int = 0
    num_bytes: int = 0
    tokens: int = 0

    @property
    def bytes_per_1000_tokens(self) -> float | None:
        """None where there is no entry."""
        return 1000 * self.num_bytes / self.tokens if self.tokens else None


@dataclass(frozen=True)
class Weighing:
    """A store in numbers. ``faults``: entries that cannot be read, by why: other format versions are among them."""

    inventory: Inventory
    kinds: Mapping[Kind, Weight]
    faults: Mapping[str, int]

    @property
    def total(self) -> Weight:
        """All entries that can be read."""
        weights = self.kinds.values()
        return Weight(
            sum(w.entries for w in weights), sum(w.num_bytes for w in weights), sum(w.tokens for w in weights)
        )


def weigh(archive: Archive, tick: Tick) -> Weighing:
    """Read every entry's header and sum up."""
    inventory = archive.inventory()
    kinds: dict[Kind, Weight] = {}
    faults: Counter[str] = Counter()
    for done, entry in enumerate(_looked_at(archive, inventory.entries), start=1):
        tick(done, len(inventory.entries))
        if entry.header is None:
            faults[entry.fault] += 1
            continue
        weight = kinds.setdefault(Kind.of(entry.header.identity), Weight())
        weight.entries += 1
        weight.num_bytes += entry.file.num_bytes
        weight.tokens += entry.header.num_tokens
    heaviest = sorted(kinds.items(), key=lambda item: item[1].num_bytes, reverse=True)
    return Weighing(inventory, dict(heaviest), dict(faults.most_common()))
