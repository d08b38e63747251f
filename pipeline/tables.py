"""Outcomes as Parquet: the columns are the fields of ``Answer`` and ``Failure``, in their order.

Invariant: what is written reads back equal, except that a lone surrogate, which UTF-8 cannot hold, comes
back as its escape.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.outcome import Answer, Failure, Outcome, Span

SPAN_TYPE = pa.struct([("start", pa.int64()), ("end", pa.int64()), ("share", pa.float64()), ("text", pa.string())])
ANSWER_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("question_id", pa.string()),
        ("question", pa.string()),
        ("answer", pa.string()),
        ("spans", pa.list_(SPAN_TYPE)),
        ("document_tokens", pa.int64()),
        ("kept_tokens", pa.int64()),
        ("relevance_kept", pa.float64()),
        ("generated_tokens", pa.int64()),
        ("seconds_encode", pa.float64()),
        ("seconds_answer", pa.float64()),
        ("source_file", pa.string()),
        ("source_row", pa.int64()),
    ]
)
FAILURE_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("question_id", pa.string()),
        ("question", pa.string()),
        ("stage", pa.string()),
        ("error", pa.string()),
        ("message", pa.string()),
        ("attempts", pa.int64()),
        ("retryable", pa.bool_()),
        ("source_file", pa.string()),
        ("source_row", pa.int64()),
    ]
)


def to_parquet(outcomes: Sequence[Outcome], schema: pa.Schema) -> bytes:
    """``outcomes``, all of the kind that ``schema`` is for, as a Parquet file in their order."""
    rows = [_encodable(asdict(outcome)) for outcome in outcomes]
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema), buffer, compression="zstd")
    return buffer.getvalue()


def to_table(content: bytes) -> pa.Table:
    """The rows of a Parquet file."""
    return pq.read_table(pa.BufferReader(content))


def to_answers(content: bytes) -> list[Answer]:
    """The answers of a Parquet file that ``to_parquet`` made."""
    rows = to_table(content).to_pylist()
    return [Answer(**{**row, "spans": tuple(Span(**span) for span in row["spans"])}) for row in rows]


def to_failures(content: bytes) -> list[Failure]:
    """The failures of a Parquet file that ``to_parquet`` made."""
    return [Failure(**row) for row in to_table(content).to_pylist()]


def _encodable(value: Any) -> Any:
    """``value`` with every string fit for UTF-8: a question of a YAML file may hold a lone surrogate."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {key: _encodable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_encodable(item) for item in value]
    return value
