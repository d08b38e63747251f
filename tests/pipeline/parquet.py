"""Real Parquet files, sound and damaged, for the tests of the corpus."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from configs.schema import Corpus, Question
from pipeline.corpus import CorpusFiles, Document, RowRun, open_corpus

WHO = Question(id="who", text="Who?")


def write(path: Path, columns: dict[str, Any], **options: Any) -> Path:
    """Write ``columns`` as a Parquet file; ``options`` are pyarrow's."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, **options)
    return path


def documents(path: Path, *texts: str, first: int = 0, **options: Any) -> Path:
    """Write documents ``d0, d1, ...`` with these texts."""
    ids = [f"d{first + index}" for index in range(len(texts))]
    return write(path, {"id": ids, "text": list(texts)}, **options)


def raw_strings(values: Sequence[bytes]) -> pa.Array:
    """A string column of these bytes, unchecked: how a sloppy writer stores text that is not UTF-8."""
    ends = itertools.accumulate((len(value) for value in values), initial=0)
    offsets = b"".join(end.to_bytes(4, "little") for end in ends)
    return pa.Array.from_buffers(
        pa.string(), len(values), [None, pa.py_buffer(offsets), pa.py_buffer(b"".join(values))]
    )


def flip_in_page(path: Path, row_group: int, column: str, where: Literal["page", "header"] = "page") -> None:
    """Flip bytes in the middle of a column chunk, or in its first page's header; the footer stays sound."""
    metadata = pq.read_metadata(path)
    chunk = metadata.row_group(row_group).column(metadata.schema.names.index(column))
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    content = bytearray(path.read_bytes())
    first = start if where == "header" else start + chunk.total_compressed_size // 2
    for place in range(first, first + 8):
        content[place] ^= 0xFF
    path.write_bytes(content)


def opened(path: Path | str, *questions: Question, **corpus: Any) -> CorpusFiles:
    """The corpus at ``path``, asked ``WHO`` where nothing else is said."""
    asked = questions or (() if "question" in corpus else (WHO,))
    return open_corpus(Corpus(path=str(path), **corpus), asked)


def read_all(corpus: CorpusFiles) -> list[Document]:
    """Every document, in order."""
    return [
        document
        for file_index, file in enumerate(corpus.files)
        for group_index, group in enumerate(file.row_groups)
        for document in corpus.rows(RowRun(file_index, group_index, 0, group.rows))
    ]


def read_one(path: Path, **corpus: Any) -> Document:
    """The only document of a file."""
    (document,) = read_all(opened(path, **corpus))
    return document
