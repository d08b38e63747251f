"""Which words of the document an answer rests on, and how much of the relevance they hold.

Shapes: B blocks, T tokens, L layers or 1, G key-value heads or 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.outcome import Span
from workers.messages import Interval
from workers.selection.budgets.base import BlockTable, Choice


def spans_of(kept: Sequence[Interval], table: BlockTable, offsets_T2: NDArray[np.int64], text: str) -> tuple[Span, ...]:
    """The kept runs, in document order. ``offsets_T2``: half-open character range of each token in ``text``.

    Neighbouring tokens of one character (emoji in byte-level tokenizers) share its range, so a span never
    cuts a character.
    """
    spans = []
    for start, stop in kept:
        first, last = int(offsets_T2[start, 0]), int(offsets_T2[stop - 1, 1])
        spans.append(Span(first, last, table.relevance_of((start, stop)), text[first:last]))
    return tuple(spans)


def relevance_kept(choice: Choice, table: BlockTable) -> float:
    """Share of the relevance that was kept, each layer and head judged on its own scale where it has one, on average
    over layers and heads. A block cut by a border counts in proportion."""
    (rows, columns), (own_rows, own_columns) = choice.shape, table.share_LGB.shape[:2]
    held = [
        float(
            table.share_LGB[min(layer, own_rows - 1), min(head, own_columns - 1)] @ _covered(choice, layer, head, table)
        )
        for layer in range(max(rows, own_rows))
        for head in range(max(columns, own_columns))
    ]
    return sum(held) / len(held)


def _covered(choice: Choice, layer: int, head: int, table: BlockTable) -> NDArray[np.float64]:
    """Which part of each block one layer and head keeps, [B] in 0 to 1."""
    covered_B = np.zeros(len(table.starts_B))
    for start, stop in choice.of(layer, head):
        covered_B += np.clip(np.minimum(table.stops_B, stop) - np.maximum(table.starts_B, start), 0, None)
    return covered_B / (table.stops_B - table.starts_B)
