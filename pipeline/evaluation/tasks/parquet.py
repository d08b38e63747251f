"""Items as Parquet, in the schema of long-context benchmarks: written for ``foveate run``, and read from anywhere.

Columns: ``context``, ``question``; ``answer`` (one, or a list) or ``answers``; and where they are there ``id``,
``answer_prefix``, ``max_new_tokens``, ``task``, ``length``, ``match``, ``gold``, ``instruction``. Invariant: what is
written reads back equal. A job that runs such a file takes all of ``answer`` for what a right answer holds, whatever
``match`` says, and its own prompt for ``instruction``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.evaluation.tasks.base import Item, Match
from pipeline.evaluation.tasks.sizer import Sizer, Wording

MAX_NEW_TOKENS = 48
"""Where a file does not say how long an answer may be."""
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("task", pa.string()),
        ("length", pa.int64()),
        ("context", pa.string()),
        ("question", pa.string()),
        ("answer_prefix", pa.string()),
        ("answer", pa.list_(pa.string())),
        ("match", pa.string()),
        ("gold", pa.list_(pa.struct([("start", pa.int64()), ("end", pa.int64())]))),
        ("max_new_tokens", pa.int64()),
        ("instruction", pa.string()),
    ]
)


@dataclass(frozen=True, kw_only=True)
class ParquetItems:
    """The rows of a file, in their order. ``label``: the task of rows that do not say theirs."""

    label: str
    path: str

    def items(self, sizer: Sizer, counts: Mapping[int, int], seed: int) -> Iterator[Item]:
        """As ``Task.items``; the seed chooses nothing. A row without a length is of the smallest length that holds
        it; rows of other lengths are left out, and so are those beyond ``counts``, which is per task."""
        taken: dict[tuple[str, int], int] = {}
        for item in read_items(self.path, self.label, sizer, tuple(counts)):
            key = (item.task, item.length)
            if taken.get(key, 0) < counts.get(item.length, 0):
                taken[key] = taken.get(key, 0) + 1
                yield item
        if missing := [length for length in counts if length not in {length for _, length in taken}]:
            raise ValueError(
                f"{self.path}: no row is of length {', '.join(map(str, missing))}; allowed: lengths it has"
            )


def write_items(path: Path, items: Iterable[Item]) -> None:
    """Write items as a corpus of one question per row."""
    rows = []
    for item in items:
        gold = [{"start": start, "end": end} for start, end in item.gold]
        rows.append({**asdict(item), "gold": gold, "answer": item.answers})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), path, row_group_size=1, compression="zstd")


def read_items(path: str | Path, label: str, sizer: Sizer, lengths: tuple[int, ...] = ()) -> Iterator[Item]:
    """The items of a file, one row at a time; those that no length holds are left out. Raises ``ValueError`` for a
    file that cannot be read or lacks a column, and for a row without words."""
    try:
        with pq.ParquetFile(path) as file:
            columns = set(file.schema_arrow.names)
            if missing := [name for name in ("context", "question") if name not in columns]:
                raise ValueError(f"{path}: no column {', '.join(missing)}; there are: {', '.join(sorted(columns))}")
            if not columns & {"answer", "answers"}:
                raise ValueError(f"{path}: no column answer or answers; there are: {', '.join(sorted(columns))}")
            number = 0
            for batch in file.iter_batches(batch_size=16, columns=sorted(columns & {*SCHEMA.names, "answers"})):
                for row in batch.to_pylist():
                    if item := _item(row, f"{Path(path).name}:{number}", label, sizer, lengths):
                        yield item
                    number += 1
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"{path}: cannot be read as Parquet: {error}") from error


def _item(row: Mapping[str, Any], name: str, label: str, sizer: Sizer, lengths: tuple[int, ...]) -> Item | None:
    references = row.get("answers") or row.get("answer")
    answers = tuple(references) if isinstance(references, list) else (references,) if references else ()
    if not answers or not row["context"] or not row["question"]:
        raise ValueError(f"{name}: context, question or answers is empty; allowed: text in each")
    if odd := [text for text in (row["context"], row["question"], *answers) if not isinstance(text, str)]:
        raise ValueError(f"{name}: {odd[0]!r} is no text; allowed: text in context, question and answers")
    wording = Wording(row["question"], row.get("answer_prefix") or "", row.get("max_new_tokens") or MAX_NEW_TOKENS)
    length = row.get("length") or _length(row["context"], wording, sizer, lengths)
    if length is None:
        return None
    match: Match = row.get("match") or "all"
    if match not in get_args(Match):
        raise ValueError(f"{name}: match: {match!r}; allowed: {', '.join(get_args(Match))}")
    return Item(
        id=str(row.get("id") or name),
        task=row.get("task") or label,
        length=length,
        context=row["context"],
        question=wording.question,
        answer_prefix=wording.answer_prefix,
        answers=answers,
        match=match,
        gold=tuple((span["start"], span["end"]) for span in row.get("gold") or ()),
        max_new_tokens=wording.max_new_tokens,
        instruction=row.get("instruction"),
    )


def _length(context: str, wording: Wording, sizer: Sizer, lengths: tuple[int, ...]) -> int | None:
    """The smallest of ``lengths`` that holds document, prompt and answer."""
    tokens = sizer.tokens(context)
    for length in sorted(lengths):
        try:
            if tokens <= sizer.room(length, wording):
                return length
        except ValueError:
            continue
    return None
