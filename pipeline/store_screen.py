"""What ``foveate store`` prints, as lines for people or as JSON for programs: both from the same values.

Invariants: lines are never cut, since a pipe may want all of them; what a file says of itself is printed on one line,
as it is; whether an entry has a tenant is said, its salt never.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from typing import Any

from cache_store.archive import Inventory, StoredFile
from cache_store.identity import FORMAT_VERSION
from pipeline.quantities import count, in_bytes
from pipeline.store import Kind, Listed, Listing, Weighing, Weight
from pipeline.store_upkeep import Verdict, Verification

_DIGITS = 12
_CODECS = {"model": "as computed", "none": "scores only"}
_UNITS = (("d", 86_400), ("h", 3600), ("min", 60), ("s", 1))
_LISTED = ("KEY", "SIZE", "{dates}", "TOKENS", "COST", "MODEL", "DTYPE", "SCORER", "PAIRS", "QUESTION", "TENANT")
_WEIGHED = ("MODEL", "DTYPE", "SCORER", "PAIRS", "ENTRIES", "SIZE", "TOKENS", "PER 1,000 TOKENS")


def ago(seconds: float) -> str:
    """An age in its largest unit: ``3 h ago``."""
    return next((f"{int(seconds // size):,} {unit} ago" for unit, size in _UNITS if seconds >= size), "just now")


def listing_lines(listing: Listing, now_s: float) -> list[str]:
    """The listed entries as a table, and what else there is."""
    rows = [_row(entry, now_s) for entry in listing.entries]
    more = ["... and more; --limit N shows more"] if listing.more else []
    head = [title.format(dates=listing.dates.upper()) for title in _LISTED]
    return [*_columns([head, *rows], right={1, 3, 4}), *more, _inventory_words(listing.inventory)]


def _row(entry: Listed, now_s: float) -> tuple[str, ...]:
    file, header = entry.file, entry.header
    start = (file.key.hex[:_DIGITS], in_bytes(file.num_bytes), ago(now_s - file.used_s))
    if header is None:
        return (*start, "", "", f"cannot be read: {entry.fault}")
    kind = Kind.of(header.identity)
    question = "any" if header.identity.question is None else "one"
    tenant = "yes" if header.identity.tenant else "no"
    return (*start, f"{header.num_tokens:,}", f"{header.cost:,}", *_kind_words(kind), question, tenant)


def _kind_words(kind: Kind) -> tuple[str, ...]:
    return (kind.model[:_DIGITS], kind.dtype, kind.scorer, _CODECS.get(kind.codec, kind.codec))


def _inventory_words(inventory: Inventory) -> str:
    """How many files of each sort there are; sorts that are absent are not mentioned, but for entries."""
    entries, misplaced, quarantined, staged = inventory
    words = [f"{count(len(entries), 'entry', 'entries')}, {in_bytes(num_bytes(entries))}"]
    words += [f"{count(len(misplaced), 'entry', 'entries')} in a wrong folder"] if misplaced else []
    words += (
        [f"{count(len(quarantined), 'quarantined file')}, {in_bytes(num_bytes(quarantined))}"] if quarantined else []
    )
    words += [f"{count(len(staged), 'staged file')}, {in_bytes(num_bytes(staged))}"] if staged else []
    return "; ".join(words)


def listing_json(listing: Listing) -> dict[str, Any]:
    """What the table says, as plain values."""
    return {
        "entries": [_entry_json(entry) for entry in listing.entries],
        "more": listing.more,
        "dates": listing.dates,
        "files": _inventory_json(listing.inventory),
    }


def _entry_json(entry: Listed) -> dict[str, Any]:
    file, header = entry.file, entry.header
    date = datetime.fromtimestamp(file.used_s, UTC).isoformat(timespec="seconds")
    start = {"key": file.key.hex, "num_bytes": file.num_bytes, "date": date, "format_version": entry.version}
    if header is None:
        return {**start, "fault": entry.fault}
    identity = header.identity
    kind = Kind.of(identity)._asdict()
    return {
        **start,
        "tokens": header.num_tokens,
        "cost": header.cost,
        **kind,
        "is_of_one_question": identity.question is not None,
        "has_tenant": bool(identity.tenant),
    }


def _inventory_json(inventory: Inventory) -> dict[str, Any]:
    return {sort: {"files": len(files), "num_bytes": num_bytes(files)} for sort, files in inventory._asdict().items()}


def weighing_lines(weighing: Weighing) -> list[str]:
    """A line for each kind of entry and one for all of them, then what cannot be read and what else there is."""
    rows = [(*_kind_words(kind), *_weight_words(weight)) for kind, weight in weighing.kinds.items()]
    total = ("all", "", "", "", *_weight_words(weighing.total))
    readable = weighing.total.entries
    return [
        *_columns([_WEIGHED, *rows, total], right={4, 5, 6, 7}),
        "",
        f"format {FORMAT_VERSION}: {count(readable, 'entry', 'entries')}",
        *(f"cannot be read: {count(number, 'entry', 'entries')}: {why}" for why, number in weighing.faults.items()),
        _inventory_words(weighing.inventory),
    ]


def _weight_words(weight: Weight) -> tuple[str, ...]:
    density = weight.bytes_per_1000_tokens
    words = "-" if density is None else in_bytes(round(density))
    return (f"{weight.entries:,}", in_bytes(weight.num_bytes), f"{weight.tokens:,}", words)


def weighing_json(weighing: Weighing) -> dict[str, Any]:
    """What the table says, as plain values."""
    kinds = [{**kind._asdict(), **_weight_json(weight)} for kind, weight in weighing.kinds.items()]
    return {
        "kinds": kinds,
        "all": _weight_json(weighing.total),
        "format_version": FORMAT_VERSION,
        "faults": dict(weighing.faults),
        "files": _inventory_json(weighing.inventory),
    }


def _weight_json(weight: Weight) -> dict[str, Any]:
    return {
        "entries": weight.entries,
        "num_bytes": weight.num_bytes,
        "tokens": weight.tokens,
        "bytes_per_1000_tokens": weight.bytes_per_1000_tokens,
    }


def verification_lines(verification: Verification) -> list[str]:
    """Every file that is not sound, with its reason; then how many of each there are."""
    unsound = [finding for finding in verification.findings if finding.verdict is not Verdict.SOUND]
    rows = [(finding.verdict, finding.file.name, finding.reason) for finding in unsound]
    sizes = num_bytes([finding.file for finding in verification.findings])
    counts = Counter(finding.words for finding in verification.findings)
    said = ", ".join(f"{number:,} {words}" for words, number in counts.items())
    total = count(len(verification.findings), "entry", "entries")
    return [*_columns(rows), f"{total}, {in_bytes(sizes)}{f': {said}' if said else ''}"]


def cleared_lines(files: Sequence[StoredFile], inventory: Inventory, is_done: bool, now_s: float) -> list[str]:
    """What left the store, or would leave it, and what stays."""
    kept = [file for file in inventory.entries if file not in set(files)]
    rows = [(file.name, in_bytes(file.num_bytes), ago(now_s - file.used_s)) for file in files]
    verb = "removed" if is_done else "would remove"
    return [
        *([] if is_done else _columns(rows, right={1})),
        f"{verb} {count(len(files), 'file')}, {in_bytes(num_bytes(files))}; "
        f"{count(len(kept), 'entry', 'entries')}, {in_bytes(num_bytes(kept))} stay",
    ]


def num_bytes(files: Sequence[StoredFile]) -> int:
    """Of all of them."""
    return sum(file.num_bytes for file in files)


def _columns(rows: Sequence[Sequence[str]], right: Collection[int] = ()) -> list[str]:
    """Rows as lines in columns; those in ``right`` end below each other. A row's last cell takes what it needs."""
    flat = [[_one_line(cell) for cell in row] for row in rows]
    widths: Counter[int] = Counter()
    for row in flat:
        for index, cell in enumerate(row):
            if index < len(row) - 1 or index in right:
                widths[index] = max(widths[index], len(cell))
    return [
        "  ".join(_padded(cell, widths[index], index in right) for index, cell in enumerate(row)).rstrip()
        for row in flat
    ]


def _padded(cell: str, width: int, at_right: bool) -> str:
    return cell.rjust(width) if at_right else cell.ljust(width)


def _one_line(text: str) -> str:
    return "".join(letter if letter.isprintable() else " " for letter in text)
