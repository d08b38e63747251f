"""Which column types a corpus may have, and how their values come out undecoded.

Invariant: text leaves as bytes. Parquet readers do not check UTF-8, and one bad string must cost one row.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pyarrow as pa

from configs.schema import Corpus


def cell_values(column: pa.Array) -> list[Any]:
    """Python values of a column, text as bytes: pyarrow would fail a whole batch for one bad string."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if _is_text(column.type):
        values: list[Any] = column.cast(pa.large_binary()).to_pylist()
        return values
    if _is_list(column.type):
        return [cell_values(cell.values) if cell.is_valid else None for cell in column]
    plain: list[Any] = column.to_pylist()
    if pa.types.is_floating(column.type):
        return [None if value is None or math.isnan(value) else _whole(value) for value in plain]
    return plain


def _whole(value: float) -> float:
    return int(value) if value.is_integer() else value


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _or_list(accepts: Callable[[pa.DataType], bool]) -> Callable[[pa.DataType], bool]:
    return lambda kind: accepts(kind) or (_is_list(kind) and accepts(kind.value_type))


_TEXTS = (
    "text (string, large_string, string_view, or a dictionary of these), or a list of text",
    _or_list(_is_text),
)
_ALLOWED: dict[str, tuple[str, Callable[[pa.DataType], bool]]] = {
    "id": ("text or an integer", lambda kind: _is_text(kind) or pa.types.is_integer(kind)),
    "text": ("text (string, large_string, string_view, or a dictionary of these)", _is_text),
    "question": _TEXTS,
    "answer_prefix": _TEXTS,
    # pandas writes integers with gaps as floats; a number that is not whole is a fault of its row
    "max_new_tokens": (
        "an integer, or a list of integers",
        _or_list(lambda kind: pa.types.is_integer(kind) or pa.types.is_floating(kind)),
    ),
    "answer": _TEXTS,
}


def column_problems(path: str, schema: pa.Schema, corpus: Corpus) -> list[str]:
    """What is wrong with the columns that the job names. One of type null holds only nulls, and passes."""
    problems = []
    for key, (allowed, accepts) in _ALLOWED.items():
        name = getattr(corpus, key)
        if name is None:
            continue
        found = schema.get_all_field_indices(name)
        if len(found) != 1:
            number = "no column" if not found else f"{len(found)} columns"
            problems.append(
                f"{path}: {number} {name!r} (corpus.{key}); columns: {', '.join(schema.names)}; allowed: {allowed}"
            )
        elif not (accepts(schema.field(name).type) or pa.types.is_null(schema.field(name).type)):
            kind = schema.field(name).type
            problems.append(f"{path}: column {name!r} (corpus.{key}) has type {kind}; allowed: {allowed}")
    return problems
