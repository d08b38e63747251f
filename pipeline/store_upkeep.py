"""What ``foveate store verify`` and ``gc`` do to a store at rest.

Invariants: only ``set_aside`` changes the store, and nothing but the files that it is given; what a
wish names are its least recently used entries; a file that a running job removes meanwhile is passed over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum

from cache_store.archive import Archive, Inventory, StoredFile, prove
from cache_store.errors import CorruptBlock, OtherVersion
from cache_store.tiers.directory import STALE_STAGED_S
from pipeline.store import reason_of


class Verdict(StrEnum):
    """What reading a file came to. ``DAMAGED``: its bytes or its place are wrong. ``UNREADABLE``: the medium does not
    give it. ``GONE``: a tier removed it meanwhile."""

    SOUND = "sound"
    DAMAGED = "damaged"
    UNREADABLE = "unreadable"
    OTHER_VERSION = "other version"
    GONE = "gone"


BAD = (Verdict.DAMAGED, Verdict.UNREADABLE)
"""What should not be there as it is."""


@dataclass(frozen=True)
class Finding:
    """One file that has an entry's name, and why it is not sound. ``version``: of its format, where it is another."""

    file: StoredFile
    verdict: Verdict
    reason: str = ""
    version: int | None = None

    @property
    def words(self) -> str:
        """The verdict, and which other version."""
        return self.verdict if self.version is None else f"of format version {self.version}"


@dataclass(frozen=True)
class Verification:
    """What was found of every file, by verdict in their order."""

    findings: tuple[Finding, ...]

    def of(self, *verdicts: Verdict) -> tuple[Finding, ...]:
        """Those of these verdicts."""
        return tuple(finding for finding in self.findings if finding.verdict in verdicts)

    @property
    def bad(self) -> tuple[Finding, ...]:
        """Those that should not be there as they are."""
        return self.of(*BAD)


def verify(archive: Archive, jobs: int, heard: Callable[[Finding, int], None]) -> Verification:
    """Read every entry whole, ``jobs`` at once, and prove each of its bytes. ``heard``: told of every entry, and how
    many there are."""
    inventory = archive.inventory()
    findings = [
        Finding(file, Verdict.DAMAGED, "is where no tier looks: its folder is not its key's")
        for file in inventory.misplaced
    ]
    pool = ThreadPoolExecutor(jobs)
    try:
        for finding in pool.map(lambda file: _judge(archive, file), inventory.entries):
            findings.append(finding)
            heard(finding, len(inventory.entries))
    finally:
        pool.shutdown(cancel_futures=True)  # a Ctrl-C must not wait for the rest of the store
    order = list(Verdict)
    return Verification(tuple(sorted(findings, key=lambda finding: (order.index(finding.verdict), finding.file.name))))


def _judge(archive: Archive, file: StoredFile) -> Finding:
    try:
        prove(archive, file)
    except FileNotFoundError:
        return Finding(file, Verdict.GONE)
    except OtherVersion as error:
        return Finding(file, Verdict.OTHER_VERSION, reason_of(error, file.key), error.version)
    except CorruptBlock as error:
        return Finding(file, Verdict.DAMAGED, reason_of(error, file.key))
    except OSError as error:
        return Finding(file, Verdict.UNREADABLE, f"cannot be read: {reason_of(error, file.key)}")
    return Finding(file, Verdict.SOUND)


def set_aside(archive: Archive, findings: Iterable[Finding]) -> int:
    """Move what is damaged to the store's quarantine, where a tier would have put it; says how many files moved."""
    moved = 0
    for finding in findings:
        if finding.verdict is Verdict.DAMAGED:
            try:
                archive.set_aside(finding.file)
            except FileNotFoundError:
                continue
            moved += 1
    return moved


@dataclass(frozen=True)
class Wish:
    """What the user wants gone: entries beyond ``max_bytes``, entries not used for ``older_than_s``; with
    ``quarantine`` every quarantined file, and what writers left behind that died ten minutes ago or earlier."""

    max_bytes: int | None = None
    older_than_s: float | None = None
    quarantine: bool = False

    @property
    def is_empty(self) -> bool:
        """Whether it names nothing, whatever there is."""
        return self == Wish()


def named_by(wish: Wish, inventory: Inventory, now_s: float) -> tuple[StoredFile, ...]:
    """The files that a wish names: entries, least recently used first, then quarantined and left-over ones."""
    leaving: list[StoredFile] = []
    staying = sum(file.num_bytes for file in inventory.entries)
    for file in reversed(inventory.entries):
        is_over = wish.max_bytes is not None and staying > wish.max_bytes
        is_old = wish.older_than_s is not None and now_s - file.used_s > wish.older_than_s
        if not (is_over or is_old):
            break
        leaving.append(file)
        staying -= file.num_bytes
    if wish.quarantine:
        leaving += inventory.quarantined
        leaving += [file for file in inventory.staged if now_s - file.used_s > STALE_STAGED_S]
    return tuple(leaving)
