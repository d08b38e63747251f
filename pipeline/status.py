"""What a run directory holds, read by anyone at any time: nothing is written, no lock is taken.

Invariant: answers and failures are those of exactly the committed parts, whole, although a driver may be
committing while they are read.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pyarrow as pa

from pipeline.commit import CommitRecord, CommittedFile, Totals
from pipeline.directory import RunDirectory
from pipeline.plan import Plan
from pipeline.records import (
    EPOCHS,
    SUCCESS,
    EpochRecord,
    read_commits,
    read_committed,
    read_job,
    read_json,
    read_plan,
    unnamed_files,
)
from pipeline.tables import ANSWER_SCHEMA, FAILURE_SCHEMA, to_table

_LOOKS = 3


@dataclass(frozen=True)
class Status:
    """A run at one moment. ``parts``, ``documents`` and ``tokens`` are planned (tokens as ``plan.Part``
    estimates them), ``tokens_committed`` the same estimate of the committed parts, ``totals`` what the commits
    say. ``orphans``: data files that no commit names, in the making or left by a killed driver."""

    url: str
    is_finished: bool
    parts: int
    documents: int
    unasked: int
    tokens: int
    tokens_committed: int
    totals: Totals
    epochs: tuple[EpochRecord, ...]
    orphans: tuple[str, ...]


def read_status(directory: RunDirectory) -> Status:
    """The status of a run, running or not. ``DirectoryError`` where none was started or a record is damaged."""
    read_job(directory)
    plan = read_plan(directory) or Plan((), ())
    records = read_commits(directory)
    return Status(
        url=directory.url,
        is_finished=directory.read(SUCCESS) is not None,
        parts=len(plan.parts),
        documents=plan.rows,
        unasked=plan.unasked,
        tokens=plan.tokens,
        tokens_committed=sum(part.tokens for part in plan.parts if part.index in records),
        totals=Totals.of(records.values()),
        epochs=_epochs(directory),
        orphans=tuple(unnamed_files(directory, records.values())),
    )


def read_answers(directory: RunDirectory) -> pa.Table:
    """All committed answers, in part order; columns as ``outcome.Answer``. ``DirectoryError`` for damage."""
    return _read_tables(directory, lambda record: record.answers, ANSWER_SCHEMA)


def read_failures(directory: RunDirectory) -> pa.Table:
    """All committed failures, in part order; columns as ``outcome.Failure``. ``DirectoryError`` for damage."""
    return _read_tables(directory, lambda record: record.failures, FAILURE_SCHEMA)


def _read_tables(
    directory: RunDirectory, choose: Callable[[CommitRecord], CommittedFile | None], schema: pa.Schema
) -> pa.Table:
    """A file that is gone was replaced by a later revision: look at the records again."""
    for look in range(_LOOKS):
        files = [file for record in read_commits(directory).values() if (file := choose(record)) is not None]
        try:
            tables = [to_table(read_committed(directory, file)) for file in files]
        except FileNotFoundError:
            if look == _LOOKS - 1:
                raise
            continue
        return pa.concat_tables([schema.empty_table(), *tables])
    raise AssertionError("the last look returns or raises")


def _epochs(directory: RunDirectory) -> tuple[EpochRecord, ...]:
    records = (read_json(directory, name) for name in directory.names(EPOCHS))
    found = [EpochRecord(**record) for record in records if record is not None]
    return tuple(sorted(found, key=lambda record: record.epoch))
