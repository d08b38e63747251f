"""What a run writes down about itself, and the names under which it does.

    _job/job.json                     the resolved job, and the identity that a resume must share
    _job/plan.json                    pipeline.plan.Plan
    _job/epoch/3.json                 one per start of the driver
    _job/end/3.json                   how that driver left the run unfinished, where it could still say so
    _job/commits/part-00007.0.json    the commit of part 7; the trailing number is its revision
    data/part-00007.0-e3-1f2e.parquet answers     failed/part-00007.0-e3-1f2e.parquet dead letters
    _SUCCESS                          last of all

Invariants: a record is created once and never changed; a part is committed when its record exists, and of
several revisions the highest counts; a data file that no counting record names is not output. The name of a
data file says which commit it was written for, so that a file can be told from rubbish while others work.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from blake3 import blake3

from pipeline.commit import CommitRecord, CommittedFile
from pipeline.directory import RunDirectory
from pipeline.errors import DirectoryError
from pipeline.plan import Plan

FORMAT = 2
"""What is written. Format 1 lacks the times, slowest documents and examples of failures in commit records."""
_READABLE = (1, 2)
_READERS = 16
JOB = "_job/job.json"
PLAN = "_job/plan.json"
EPOCHS = "_job/epoch"
ENDS = "_job/end"
COMMITS = "_job/commits"
ANSWERS = "data"
FAILURES = "failed"
SUCCESS = "_SUCCESS"

_COMMIT_NAME = re.compile(rf"{COMMITS}/part-(\d+)\.(\d+)\.json")
_FILE_NAME = re.compile(rf"(?:{ANSWERS}|{FAILURES})/part-(\d+)\.(\d+)-e\d+-[0-9a-f]+\.parquet")


@dataclass(frozen=True)
class EpochRecord:
    """One start of a driver. ``started``: UTC, ISO 8601."""

    epoch: int
    host: str
    process: int
    started: str
    nonce: str


@dataclass(frozen=True)
class EndRecord:
    """A driver that left the run unfinished. ``ended``: UTC, ISO 8601. ``error``: why, in a line; None: it was asked to
    stop. Who finishes leaves none, and neither does who is killed."""

    epoch: int
    ended: str
    error: str | None


_Told = TypeVar("_Told", EpochRecord, EndRecord)


def to_json(record: Mapping[str, Any]) -> bytes:
    """A record's bytes, readable by people too."""
    return json.dumps(record, indent=1).encode()


def read_json(directory: RunDirectory, name: str) -> dict[str, Any] | None:
    """A parsed record, or None where there is none. ``DirectoryError`` where it is not JSON."""
    content = directory.read(name)
    if content is None:
        return None
    try:
        record: dict[str, Any] = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DirectoryError(f"{directory.url}: {name} is damaged: {error}") from error
    if not isinstance(record, dict):
        raise DirectoryError(f"{directory.url}: {name} is damaged: it holds {type(record).__name__}, no record")
    return record


def read_plan(directory: RunDirectory) -> Plan | None:
    """The stored plan, or None where there is none. ``DirectoryError`` where it is damaged."""
    content = directory.read(PLAN)
    if content is None:
        return None
    try:
        return Plan.from_json(content)
    except (ValueError, KeyError, TypeError) as error:
        raise DirectoryError(f"{directory.url}: {PLAN} is damaged: {error!r}") from error


def read_job(directory: RunDirectory) -> tuple[dict[str, Any], dict[str, Any]]:
    """The job and the identity that the directory was started with. ``DirectoryError`` where it was not."""
    record = read_json(directory, JOB)
    if record is None:
        raise DirectoryError(f"{directory.url}: no run was started here: there is no {JOB}")
    if record.get("format") not in _READABLE:
        raise DirectoryError(
            f"{directory.url}: written in format {record.get('format')!r}, by another version of foveate; "
            f"this one reads formats {' and '.join(map(str, _READABLE))}"
        )
    if not all(isinstance(record.get(key), dict) for key in ("job", "identity")):
        raise DirectoryError(f"{directory.url}: {JOB} is damaged: it lacks job or identity")
    return record["job"], record["identity"]


def read_commits(directory: RunDirectory, known: Mapping[int, CommitRecord] | None = None) -> dict[int, CommitRecord]:
    """The record that counts of each committed part, in part order. ``known`` ones are not read again, the others
    several at a time: a long run in object storage has tens of thousands. ``DirectoryError`` for a damaged one."""
    newest: dict[int, int] = {}
    for name in directory.names(COMMITS):
        if match := _COMMIT_NAME.fullmatch(name):
            part, revision = int(match[1]), int(match[2])
            newest[part] = max(revision, newest.get(part, 0))
    found = {part: record for part, record in (known or {}).items() if newest.get(part) == record.revision}
    found |= _read_records(directory, [(part, newest[part]) for part in newest.keys() - found.keys()])
    return dict(sorted(found.items()))


def read_first_commits(
    directory: RunDirectory, records: Mapping[int, CommitRecord], known: Mapping[int, CommitRecord] | None = None
) -> dict[int, CommitRecord]:
    """The record that each part of ``records`` was committed with at first, before any retry of its failures. As
    ``read_commits`` otherwise."""
    found = {part: record for part, record in records.items() if record.revision == 0}
    found |= {part: record for part, record in (known or {}).items() if part in records}
    return found | _read_records(directory, [(part, 0) for part in records.keys() - found.keys()])


def _read_records(directory: RunDirectory, wanted: Sequence[tuple[int, int]]) -> dict[int, CommitRecord]:
    """Records by part. ``wanted``: parts with their revisions."""
    if len(wanted) < _READERS:
        return {part: _read_record(directory, part, revision) for part, revision in wanted}
    with ThreadPoolExecutor(_READERS) as readers:
        records = readers.map(lambda one: _read_record(directory, *one), wanted)
        return {part: record for (part, _), record in zip(wanted, records, strict=True)}


def _read_record(directory: RunDirectory, part: int, revision: int) -> CommitRecord:
    name = commit_name(part, revision)
    content = read_json(directory, name)
    if content is None:
        raise DirectoryError(f"{directory.url}: the commit of part {part} was removed while it was read")
    try:
        record = CommitRecord.from_json(content)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DirectoryError(f"{directory.url}: {name} is damaged: {error!r}") from error
    foreign = [file.name for file in record.files if not _is_file_of(file.name, part, revision)]
    if foreign or (record.part, record.revision) != (part, revision):
        named = f"it names {foreign[0]!r}" if foreign else f"it is of part {record.part}.{record.revision}"
        raise DirectoryError(f"{directory.url}: {name} is damaged: {named}")
    return record


def _is_file_of(name: object, part: int, revision: int) -> bool:
    """Whether a record may name this file. What it names is read and, by a later revision, removed: a record that was
    tampered with must not reach beyond its own part's files."""
    match = _FILE_NAME.fullmatch(name) if isinstance(name, str) else None
    return match is not None and (int(match[1]), int(match[2])) == (part, revision)


def read_epochs(directory: RunDirectory) -> tuple[EpochRecord, ...]:
    """The starts of drivers, in order. ``DirectoryError`` for a damaged record."""
    return _by_epoch(directory, EPOCHS, EpochRecord)


def read_ends(directory: RunDirectory) -> tuple[EndRecord, ...]:
    """The drivers that said that they left, in the order of their starts. ``DirectoryError`` for a damaged record."""
    return _by_epoch(directory, ENDS, EndRecord)


def _by_epoch(directory: RunDirectory, folder: str, kind: type[_Told]) -> tuple[_Told, ...]:
    found = []
    for name in directory.names(folder):
        record = read_json(directory, name)
        try:
            found += [kind(**record)] if record is not None else []
        except TypeError as error:
            raise DirectoryError(f"{directory.url}: {name} is damaged: {error}") from error
    return tuple(sorted(found, key=lambda record: record.epoch))


def commit_name(part: int, revision: int) -> str:
    """Name of a commit record."""
    return f"{COMMITS}/part-{part:05d}.{revision}.json"


def read_committed(directory: RunDirectory, file: CommittedFile) -> bytes:
    """A committed file, whole. ``FileNotFoundError`` where it is gone (a later revision replaces its files),
    ``DirectoryError`` where its bytes are not those that were committed."""
    content = directory.read(file.name)
    if content is None:
        raise FileNotFoundError(f"{directory.url}: {file.name} was committed and is gone")
    if blake3(content).hexdigest() != file.digest:
        raise DirectoryError(
            f"{directory.url}: {file.name} is damaged: {len(content)} bytes with another checksum than the "
            f"{file.size} bytes that were committed"
        )
    return content


def unnamed_files(directory: RunDirectory, records: Iterable[CommitRecord]) -> list[str]:
    """Data files that no counting record names: in the making, abandoned, or replaced by a later revision."""
    named = {file.name for record in records for file in record.files}
    present = [*directory.names(ANSWERS), *directory.names(FAILURES)]
    return [name for name in present if _FILE_NAME.fullmatch(name) and name not in named]


def is_settled(name: str, records: Mapping[int, CommitRecord]) -> bool:
    """Whether the commit that the data file ``name`` was written for is there already, so that a file which
    no record names will never be named."""
    match = _FILE_NAME.fullmatch(name)
    record = records.get(int(match[1])) if match else None
    return match is not None and record is not None and int(match[2]) <= record.revision
