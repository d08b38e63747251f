"""Work that is done together, cut into runs that fit."""

from __future__ import annotations

from collections.abc import Sequence


def packs(sizes: Sequence[int], most: int) -> list[int]:
    """Bounds of runs of neighbours whose sizes sum to at most ``most``, at least one neighbour each: 0 first, their
    number last (just 0 and 0 where there are none)."""
    bounds, total = [0], 0
    for index, size in enumerate(sizes):
        if total + size > most and index > bounds[-1]:
            bounds.append(index)
            total = 0
        total += size
    return [*bounds, len(sizes)]
