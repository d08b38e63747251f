"""How much of a document is kept, given how relevant its blocks are.

A budget does not know who scored, a scorer does not know the budget. Invariants: never more than the
budget's tokens are chosen; a chosen run lies inside what was offered; the result depends on the values
only, not on the order in which they were computed (ties fall to the earlier block).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from configs.schema import Keep

Interval = tuple[int, int]
"""Half-open range of document positions, in tokens."""


@dataclass(frozen=True)
class BlockTable:
    """The blocks of a document or of one chunk, in order: position ranges, chunk index and relevance of each.
    Arrays of equal length B; ``offered``: the only positions that can be kept (None: all)."""

    starts_B: NDArray[np.int64]
    stops_B: NDArray[np.int64]
    chunk_B: NDArray[np.int64]
    share_B: NDArray[np.float64]
    offered: tuple[Interval, ...] | None = None

    @classmethod
    def of_chunks(
        cls,
        extents: Sequence[Interval],
        shares: Sequence[NDArray[np.float64]],
        block_tokens: int,
        offered: tuple[Interval, ...] | None = None,
    ) -> BlockTable:
        """Blocks of consecutive chunks, each cut into runs of ``block_tokens`` (the last may be shorter)."""
        starts = [np.arange(start, stop, block_tokens) for start, stop in extents]
        stops = [np.minimum(s + block_tokens, stop) for s, (_, stop) in zip(starts, extents, strict=True)]
        chunks = [np.full(len(s), index) for index, s in enumerate(starts)]
        return cls(
            np.concatenate(starts),
            np.concatenate(stops),
            np.concatenate(chunks),
            np.concatenate(list(shares)),
            offered,
        )

    def relevance_of(self, interval: Interval) -> float:
        """Share of the attention inside an interval; a block cut by its border counts in proportion."""
        overlap = np.minimum(self.stops_B, interval[1]) - np.maximum(self.starts_B, interval[0])
        return float((self.share_B * np.clip(overlap, 0, None) / (self.stops_B - self.starts_B)).sum())


@dataclass(frozen=True)
class UniformBudget:
    """The best ``tokens`` tokens of a document by blocks, the same for all layers and heads. Each chosen block
    is widened by ``widen_tokens`` on both sides, inside the budget; see ``configs.schema.UniformBudget``."""

    tokens: int
    widen_tokens: int
    min_blocks_per_chunk: int = 0

    @classmethod
    def of(cls, keep: Keep) -> UniformBudget:
        """The budget that a job asks for."""
        return cls(keep.budget.tokens, keep.widen_tokens, keep.budget.min_blocks_per_chunk)

    def choose(self, table: BlockTable) -> list[Interval]:
        """The kept intervals, sorted and disjoint, at most ``tokens`` tokens in all."""
        first, last = int(table.starts_B[0]), int(table.stops_B[-1])
        free = np.ones(last - first, dtype=bool)
        if table.offered is not None:
            free[:] = False
            for start, stop in table.offered:
                free[start - first : stop - first] = True
        kept = np.zeros_like(free)
        left = self.tokens
        for block in self._order(table):
            for widen in (self.widen_tokens, 0):
                start = max(first, int(table.starts_B[block]) - widen) - first
                stop = min(last, int(table.stops_B[block]) + widen) - first
                new = free[start:stop] & ~kept[start:stop]
                if (count := int(new.sum())) <= left:
                    kept[start:stop] |= new
                    left -= count
                    break
            else:
                break
        return [(start + first, stop + first) for start, stop in _runs(kept)]

    def _order(self, table: BlockTable) -> NDArray[np.int64]:
        """Block indices, best first; the floor's blocks of every chunk before all others."""
        best_first = np.lexsort((table.starts_B, -table.share_B))
        if not self.min_blocks_per_chunk:
            return best_first
        rank_in_chunk = np.empty(len(best_first), dtype=np.int64)
        for chunk in np.unique(table.chunk_B):
            own = best_first[table.chunk_B[best_first] == chunk]
            rank_in_chunk[own] = np.arange(len(own))
        floor = rank_in_chunk[best_first] < self.min_blocks_per_chunk
        return np.concatenate([best_first[floor], best_first[~floor]])


def _runs(mask: NDArray[np.bool_]) -> list[Interval]:
    """Maximal runs of True, as half-open intervals."""
    edges = np.flatnonzero(np.diff(np.concatenate(([0], mask.view(np.int8), [0]))))
    return [(int(start), int(stop)) for start, stop in edges.reshape(-1, 2)]
