"""Which words of the document an answer rests on: kept token runs as character spans."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.outcome import Span
from workers.selection.budgets import BlockTable, Interval


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
