"""From the committed tables to what the report shows: totals over all rows, and the first documents whole.

Invariants: everything comes from the output, so that a report can be made again at any time and says the
same; tables are taken one after another, totals are computed on columns, and only the documents that are
shown become Python objects.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.outcome import Answer, Failure, Span


@dataclass(frozen=True)
class Limits:
    """How much the page shows: documents and their answers, and failures of each class."""

    documents: int = 200
    answers: int = 600
    examples: int = 20


@dataclass(frozen=True)
class Totals:
    """Of all committed answers. ``read_tokens`` counts a document once, however many questions it had; shares
    are means over answers."""

    documents: int
    answers: int
    read_tokens: int
    kept_share: float
    relevance_kept: float


@dataclass(frozen=True)
class DocumentView:
    """A document with its answers, in the order of the corpus."""

    answers: tuple[Answer, ...]

    @property
    def num_characters(self) -> int:
        """Length of the text, which the output does not hold: its tokens times the characters of a kept token."""
        kept = sum(answer.kept_tokens for answer in self.answers)
        characters = sum(span.end - span.start for answer in self.answers for span in answer.spans)
        last = max((span.end for answer in self.answers for span in answer.spans), default=1)
        tokens = max(answer.document_tokens for answer in self.answers)
        return max(last, round(tokens * characters / kept) if kept else 0, 1)


@dataclass(frozen=True)
class FailureClass:
    """Failures of one class, with the first few of them."""

    stage: str
    error: str
    number: int
    retryable: int
    examples: tuple[Failure, ...]


def read_answers(tables: Iterable[pa.Table], limits: Limits) -> tuple[Totals, list[DocumentView]]:
    """Totals of all answers, and the first documents. Tables hold whole documents, in the corpus's order."""
    documents = answers = read_tokens = 0
    kept_shares = relevances = 0.0
    first_rows: list[dict[str, Any]] = []
    for table in tables:
        one_each = table.group_by(["source_file", "source_row"]).aggregate([("document_tokens", "max")])
        documents += one_each.num_rows
        answers += table.num_rows
        read_tokens += pc.sum(one_each["document_tokens_max"]).as_py() or 0
        lengths = pc.max_element_wise(pc.cast(table["document_tokens"], pa.float64()), 1.0)
        kept_shares += pc.sum(pc.divide(pc.cast(table["kept_tokens"], pa.float64()), lengths)).as_py() or 0.0
        relevances += pc.sum(table["relevance_kept"]).as_py() or 0.0
        first_rows += table.slice(0, limits.answers + 1 - len(first_rows)).to_pylist()
    mean = 1 / max(1, answers)
    totals = Totals(documents, answers, read_tokens, kept_shares * mean, relevances * mean)
    return totals, _whole_documents(first_rows, limits)


def _whole_documents(rows: list[dict[str, Any]], limits: Limits) -> list[DocumentView]:
    """Documents up to either limit; only the very first one's answers are cut."""
    views: list[DocumentView] = []
    shown = 0
    for _, own in groupby(rows, key=lambda row: (row["source_file"], row["source_row"])):
        view = DocumentView(tuple(_answer(row) for row in own)[: limits.answers])
        if len(views) == limits.documents or (views and shown + len(view.answers) > limits.answers):
            break
        views.append(view)
        shown += len(view.answers)
    return views


def _answer(row: dict[str, Any]) -> Answer:
    return Answer(**{**row, "spans": tuple(Span(**span) for span in row["spans"])})


def read_failures(tables: Iterable[pa.Table], limits: Limits) -> list[FailureClass]:
    """Failures by stage and class, the most frequent first."""
    numbers: Counter[tuple[str, str]] = Counter()
    retryable: Counter[tuple[str, str]] = Counter()
    examples: dict[tuple[str, str], list[Failure]] = {}
    for table in tables:
        keys = list(zip(table["stage"].to_pylist(), table["error"].to_pylist(), strict=True))
        numbers.update(keys)
        retryable.update(key for key, again in zip(keys, table["retryable"].to_pylist(), strict=True) if again)
        for place, key in enumerate(keys):
            if len(shown := examples.setdefault(key, [])) < limits.examples:
                shown.append(Failure(**table.slice(place, 1).to_pylist()[0]))
    return [FailureClass(*key, number, retryable[key], tuple(examples[key])) for key, number in numbers.most_common()]
