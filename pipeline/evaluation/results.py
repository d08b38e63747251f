"""``results.parquet``: one row for each item, method and budget; what tables and plots are made of.

Invariants: what is written reads back equal; a row with an ``error`` scores 0 and has nothing measured, so that a
method that fails on an item cannot look better for it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.evaluation.tasks.base import Item


@dataclass(frozen=True)
class Result:
    """What one method at one budget made of one item.

    ``length``: tokens that the item was sized to. ``budget``: tokens granted; None for a method that reads
    everything. ``score``: of ``string_match``. ``recall``: of ``gold_recall``; None without gold or without a kept
    set. ``relevance_kept``: share of the relevance inside what was kept. ``kept_tokens``: per layer and head on
    average; None where what was answered from is no part of the document. ``kept_bytes``: of the kept pairs, over all
    layers and heads; None where text is kept. ``kl``: mean Kullback-Leibler divergence in nats from the dense model's
    next-token distributions over the dense answer's tokens, ``top1``: the share of these on which both agree; None
    where dense does not fit. ``error``: why there is no answer, such as a method that does not suit the model.
    ``settings``: digest of all that decided the row, by which a resumed evaluation knows it. ``machine``: what it was
    measured on."""

    task: str
    length: int
    item: str
    method: str
    budget: int | None
    answer: str
    score: float
    recall: float | None = None
    relevance_kept: float | None = None
    kept_tokens: float | None = None
    kept_bytes: int | None = None
    seconds_read: float | None = None
    seconds_answer: float | None = None
    kl: float | None = None
    top1: float | None = None
    error: str | None = None
    settings: str = ""
    machine: str = ""

    @classmethod
    def refused(cls, item: Item, method: str, budget: int | None, reason: str) -> Result:
        """The row of an item that a method could not answer."""
        return cls(item.task, item.length, item.id, method, budget, answer="", score=0.0, error=reason)


RESULT_SCHEMA = pa.schema(
    [
        ("task", pa.string()),
        ("length", pa.int64()),
        ("item", pa.string()),
        ("method", pa.string()),
        ("budget", pa.int64()),
        ("answer", pa.string()),
        ("score", pa.float64()),
        ("recall", pa.float64()),
        ("relevance_kept", pa.float64()),
        ("kept_tokens", pa.float64()),
        ("kept_bytes", pa.int64()),
        ("seconds_read", pa.float64()),
        ("seconds_answer", pa.float64()),
        ("kl", pa.float64()),
        ("top1", pa.float64()),
        ("error", pa.string()),
        ("settings", pa.string()),
        ("machine", pa.string()),
    ]
)


def write_results(path: Path, results: Iterable[Result]) -> None:
    """Write rows in their order, the whole file or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.unfinished")
    rows = [asdict(result) for result in results]
    pq.write_table(pa.Table.from_pylist(rows, RESULT_SCHEMA), unfinished, compression="zstd")
    unfinished.replace(path)


def read_results(path: Path) -> list[Result]:
    """The rows of a file that ``write_results`` made. Raises ``ValueError`` for any other."""
    try:
        return [Result(**row) for row in pq.read_table(path).to_pylist()]
    except (OSError, pa.ArrowException, TypeError) as error:
        raise ValueError(f"{path}: no results of an evaluation: {error}") from error
