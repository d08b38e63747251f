"""The committed rows, one part after another, so that a report needs memory for a part and not for a run.

Invariant: each part comes as one of its revisions, whole, although a driver may be committing meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pyarrow as pa

from pipeline.commit import CommitRecord, CommittedFile
from pipeline.directory import RunDirectory
from pipeline.records import read_commits, read_committed
from pipeline.tables import to_table

_LOOKS = 3


def answer_tables(directory: RunDirectory) -> Iterator[pa.Table]:
    """Each part's answers, parts without any left out. ``DirectoryError`` for damage."""
    return _tables(directory, lambda record: record.answers)


def failure_tables(directory: RunDirectory) -> Iterator[pa.Table]:
    """Each part's failures, parts without any left out. ``DirectoryError`` for damage."""
    return _tables(directory, lambda record: record.failures)


def _tables(directory: RunDirectory, choose: Callable[[CommitRecord], CommittedFile | None]) -> Iterator[pa.Table]:
    records = read_commits(directory)
    for part in list(records):
        for look in range(_LOOKS):
            file = choose(records[part])
            if file is None:
                break
            try:
                yield to_table(read_committed(directory, file))
                break
            except FileNotFoundError:  # a later revision replaced it
                if look == _LOOKS - 1:
                    raise
                records = read_commits(directory, records)
