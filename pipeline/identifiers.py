"""Ids that are used twice, found before the run in one pass over the id column.

Invariants: memory is about 26 bytes a document (a 64-bit hash, the sort order, a mark), never the ids
themselves; equal hashes are only suspects, and a second pass over the suspects' row groups compares the
ids; rows in damaged places have no id here, they fail on their own.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.corpus import CorpusFiles, RowRun, refuse_storage_error

_SCAN_ROWS = 1024
_HASH_BYTES = 8


@dataclass(frozen=True)
class DuplicateRow:
    """A row whose id an earlier row has. Rows count within their file, from 0."""

    file: int
    row: int
    first_file: int
    first_row: int


def find_duplicates(corpus: CorpusFiles) -> tuple[DuplicateRow, ...]:
    """Every row whose id an earlier row has, in reading order. Without an id column there are none."""
    column = corpus.corpus.id
    if column is None:
        return ()
    starts = np.cumsum([0, *(file.rows for file in corpus.files)])
    suspects = _rows_with_equal_hashes(corpus, column, starts)
    if not suspects:
        return ()
    suspect_files = set(np.searchsorted(starts, sorted(suspects), side="right") - 1)
    first: dict[bytes, tuple[int, int]] = {}
    found = []
    for file, row, value in readable_cells(corpus, column, suspect_files):
        if value is None or int(starts[file]) + row not in suspects:
            continue
        place = first.setdefault(_as_bytes(value), (file, row))
        if place != (file, row):
            found.append(DuplicateRow(file, row, *place))
    return tuple(found)


def readable_cells(
    corpus: CorpusFiles, column: str, files: Collection[int] | None = None
) -> Iterator[tuple[int, int, Any]]:
    """(file, row, value) of every readable cell of ``column``, streaming; the rest of a row group after a
    damaged place is left out. ``files``: only these, by index."""
    for file_index, file in enumerate(corpus.files):
        if files is not None and file_index not in files:
            continue
        row = 0
        for group_index, group in enumerate(file.row_groups):
            run = RowRun(file_index, group_index, 0, group.rows)
            cells = corpus.cells(run, (column,), _SCAN_ROWS)
            for index in range(group.rows):
                try:
                    cell = next(cells)
                except (pa.ArrowException, OSError) as error:
                    refuse_storage_error(error)
                    break
                yield file_index, row + index, cell[column]
            row += group.rows


def _rows_with_equal_hashes(corpus: CorpusFiles, column: str, starts: NDArray[np.int64]) -> set[int]:
    """Rows, counted over all files, whose id's hash another row has too."""
    hashes = np.zeros(int(starts[-1]), dtype=np.uint64)
    has_id = np.zeros(len(hashes), dtype=bool)
    for file, row, value in readable_cells(corpus, column):
        if value is not None:
            place = int(starts[file]) + row
            hashes[place] = int.from_bytes(blake2b(_as_bytes(value), digest_size=_HASH_BYTES).digest())
            has_id[place] = True
    rows = np.flatnonzero(has_id)
    order = rows[np.argsort(hashes[rows], kind="stable")]
    equal = np.flatnonzero(hashes[order][1:] == hashes[order][:-1])
    return {int(row) for row in np.concatenate([order[equal], order[equal + 1]])}


def _as_bytes(value: bytes | int) -> bytes:
    """Ids are compared as the text they become: the integer 7 and the text "7" are the same id."""
    return value if isinstance(value, bytes) else str(value).encode()
