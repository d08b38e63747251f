"""The corpus: Parquet files, checked as a whole at the start and then read as a stream of documents.

Invariants: every file's footer is checked before any row is read; only the named columns are read, a few
rows at a time, so that memory holds at most one page of each column (as the file's writer cut them) and a
few documents, whatever the size of file or row group; damage to a row's bytes costs rows, never the run,
while an error of the storage itself (an ``OSError`` with an errno) is raised.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from blake3 import blake3

from configs.schema import Corpus, Question
from pipeline.columns import cell_values, column_problems
from pipeline.discovery import find_files, open_file
from pipeline.document import (
    ROW_QUESTION,
    Asked,
    Document,
    Fault,
    Row,
    job_questions,
    make_document,
    unreadable_document,
)
from pipeline.errors import CorpusError
from pipeline.objects import first_line

__all__ = ["Asked", "CorpusFile", "CorpusFiles", "Document", "Fault", "RowGroup", "RowRun", "open_corpus"]

_BATCH_ROWS = 8
_BUFFER_BYTES = 1 << 20
_FOOTER_READERS = 8
_KEPT_FOOTERS = 4
_SHOWN_PROBLEMS = 10
_DAMAGE = (pa.ArrowException, OSError)


@dataclass(frozen=True)
class RowGroup:
    """``text_bytes``: uncompressed size of the text column's chunk, as the footer gives it."""

    rows: int
    text_bytes: int


@dataclass(frozen=True)
class CorpusFile:
    """One file. ``size`` in bytes and ``footer``, the blake3 of the Parquet footer, are its fingerprint. They
    catch every rewrite: the footer holds offset, size and statistics of each column chunk. They do not catch
    bytes flipped in place inside a page; those show when the page is decoded (always, where the writer added
    page checksums)."""

    path: str
    size: int
    footer: str
    row_groups: tuple[RowGroup, ...]

    @cached_property
    def first_rows(self) -> tuple[int, ...]:
        """Row at which each row group begins, and at last the number of rows."""
        return tuple(accumulate((group.rows for group in self.row_groups), initial=0))

    @property
    def rows(self) -> int:
        """Rows in the file."""
        return self.first_rows[-1]


@dataclass(frozen=True)
class RowRun:
    """Rows ``[start, stop)`` of one row group, counted within it; ``file`` indexes ``CorpusFiles.files``."""

    file: int
    row_group: int
    start: int
    stop: int


@dataclass(frozen=True)
class CorpusFiles:
    """All files of a corpus, in reading order, with the job's questions."""

    corpus: Corpus
    files: tuple[CorpusFile, ...]
    asked: tuple[Asked, ...] = ()
    _names: tuple[str, ...] = field(init=False, repr=False, compare=False)
    _metadata: dict[int, pq.FileMetaData] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Short names for ``id: null``: the file's own name, or its path where two files share a name."""
        short = [PurePosixPath(file.path).name for file in self.files]
        uses = Counter(short)
        names = (name if uses[name] == 1 else f.path for name, f in zip(short, self.files, strict=True))
        object.__setattr__(self, "_names", tuple(names))

    def place(self, file: int, row: int) -> str:
        """A row's place, in words."""
        return f"{self.files[file].path} row {row}"

    def rows(
        self, run: RowRun, first_places: Mapping[tuple[int, int], tuple[int, int]] | None = None
    ) -> Iterator[Document]:
        """The documents of ``run``, in order, exactly ``stop - start`` of them.

        ``first_places`` maps the (file, row) of each duplicate to the (file, row) that has its id already:
        ``Plan.first_places``. From a damaged place on, the rest of the run are UnreadableRow documents.
        Raises ``OSError`` when the storage fails and ``CorpusError`` when the file is not the one planned.
        """
        file, offset = self.files[run.file], self.files[run.file].first_rows[run.row_group]
        row = run.start
        cells = self.cells(run, self.corpus.columns)
        while row < run.stop:
            at = offset + row
            try:
                values = next(cells)
            except _DAMAGE as error:
                refuse_storage_error(error)
                for lost in range(at, offset + run.stop):
                    yield unreadable_document(file.path, lost, self.corpus, self.asked, first_line(error))
                return
            first = (first_places or {}).get((run.file, at))
            source = Row(values, file.path, at, f"{self._names[run.file]}:{at}")
            yield make_document(source, self.corpus, self.asked, first and self.place(*first))
            row += 1

    def cells(self, run: RowRun, columns: Sequence[str], batch_rows: int = _BATCH_ROWS) -> Iterator[dict[str, Any]]:
        """The undecoded cells of each row of ``run``: text as bytes, integers as int, lists as lists.

        Raises what pyarrow raises for damaged bytes, and ``OSError`` with an errno when the storage fails.
        """
        done = 0
        with open_file(self.files[run.file].path) as source:
            batches = self._parquet(run.file, source).iter_batches(
                batch_size=batch_rows, row_groups=[run.row_group], columns=list(columns), use_threads=False
            )
            for batch in batches:
                first, last = max(run.start - done, 0), min(run.stop - done, batch.num_rows)
                done += batch.num_rows
                if first < last:
                    part = batch.slice(first, last - first)
                    values = {name: cell_values(part.column(name)) for name in columns}
                    for index in range(part.num_rows):
                        yield {name: column[index] for name, column in values.items()}
                if done >= run.stop:
                    return
        raise pa.ArrowInvalid(f"the row group ends after {done} rows")

    def _parquet(self, index: int, source: pa.NativeFile) -> pq.ParquetFile:
        """A file as Parquet; ``CorpusError`` if it is not the one that was checked at the start. The parsed
        footers of the last few files are kept: a file of many row groups has a footer of megabytes."""
        file = self.files[index]
        try:
            found = _footer(source)
        except pa.ArrowInvalid:
            found = None
        if found != (file.size, file.footer):
            raise CorpusError(f"{file.path}: changed since it was checked; put the old file back, or start anew")
        parquet = _parquet(source, self._metadata.get(index))
        if index not in self._metadata:
            if len(self._metadata) >= _KEPT_FOOTERS:
                self._metadata.clear()
            self._metadata[index] = parquet.metadata
        return parquet


def open_corpus(corpus: Corpus, questions: Sequence[Question] = ()) -> CorpusFiles:
    """Find and check all files of ``corpus``; ``questions`` are the job's, asked of every document.

    Raises ``CorpusError`` that names each unreadable file and each column that is missing or of a type that
    cannot be used, with the columns there are and the types that are allowed.
    """
    paths = find_files(corpus.path)
    with ThreadPoolExecutor(_FOOTER_READERS) as readers:
        checked = list(readers.map(lambda path: _check_file(path, corpus), paths))
    problems = [problem for _, found in checked for problem in found]
    if problems:
        more = len(problems) - _SHOWN_PROBLEMS
        shown = problems[:_SHOWN_PROBLEMS] + ([f"... and {more} more"] if more > 0 else [])
        raise CorpusError("\n".join(shown))
    refuse_reserved(corpus, questions)
    files = tuple(file for file, _ in checked if file is not None)
    return CorpusFiles(corpus, files, job_questions(questions))


def refuse_storage_error(error: BaseException) -> None:
    """Raise ``error`` again if the storage failed; return if the bytes are damaged. pyarrow reports damage
    with its own errors or an ``OSError`` without an errno."""
    if isinstance(error, OSError) and error.errno is not None:
        raise error


def refuse_reserved(corpus: Corpus, questions: Sequence[Question]) -> None:
    for question in questions if corpus.question is not None else ():
        if question.id == ROW_QUESTION or question.id.startswith(ROW_QUESTION + "-"):
            raise CorpusError(
                f"questions: id {question.id!r} is taken: with corpus.question, ids {ROW_QUESTION!r} and "
                f"'{ROW_QUESTION}-...' name the rows' own questions"
            )


def _check_file(path: str, corpus: Corpus) -> tuple[CorpusFile | None, list[str]]:
    """The file if its footer can be read, and what is wrong with it."""
    try:
        with open_file(path) as source:
            size, footer = _footer(source)
            parquet = _parquet(source)
            problems = column_problems(path, parquet.schema_arrow, corpus)
            groups = () if problems else _row_groups(parquet.metadata, corpus.text)
    except (pa.ArrowException, OSError) as error:
        return None, [f"{path}: cannot be read as Parquet: {first_line(error)}"]
    return CorpusFile(path, size, footer, groups), problems


def _parquet(source: pa.NativeFile, metadata: pq.FileMetaData | None = None) -> pq.ParquetFile:
    """Buffered by pages instead of whole column chunks; page checksums are compared where there are any."""
    return pq.ParquetFile(
        source,
        metadata=metadata,
        buffer_size=_BUFFER_BYTES,
        pre_buffer=False,
        page_checksum_verification=True,
    )


def _footer(source: pa.NativeFile) -> tuple[int, str]:
    """Size of the file and blake3 of its footer; ``ArrowInvalid`` where the file does not end in one."""
    size = source.size()
    tail = source.read_at(8, size - 8) if size >= 12 else b""
    length = int.from_bytes(tail[:4], "little")
    if tail[4:] != b"PAR1" or length + 12 > size:
        raise pa.ArrowInvalid(f"it does not end in a Parquet footer ({size} bytes; not Parquet, or truncated)")
    return size, blake3(source.read_at(length, size - 8 - length)).hexdigest()


def _row_groups(metadata: pq.FileMetaData, text: str) -> tuple[RowGroup, ...]:
    paths = [metadata.schema.column(index).path for index in range(metadata.num_columns)]
    column = paths.index(text)
    groups = (metadata.row_group(index) for index in range(metadata.num_row_groups))
    return tuple(RowGroup(group.num_rows, group.column(column).total_uncompressed_size) for group in groups)
