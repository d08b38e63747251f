"""As many tokens in every layer and head."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from workers.selection.budgets.base import BlockTable, Choice, best_of_each, fill_each


@dataclass(frozen=True)
class UniformBudget:
    """The best blocks of each scale, as SnapKV and most methods keep them; each block is widened by ``widen_tokens``
    on both sides, inside the budget. Where all heads share one scale they keep the same tokens. Every chunk keeps its
    best ``min_blocks_per_chunk`` blocks before any keeps more, while the budget lasts."""

    widen_tokens: int
    min_blocks_per_chunk: int = 0

    @property
    def record(self) -> dict[str, object]:
        """As ``Budget.record``."""
        return {"kind": "uniform", **vars(self)}

    def most(self, tokens: int) -> int:
        """As ``Budget.most``."""
        return tokens

    def choose(self, table: BlockTable, tokens: int) -> Choice:
        """As ``Budget.choose``; its shape is that of the shares."""
        orders = [self._floor_first(table, order) for order in best_of_each(table)]
        return fill_each(table, orders, np.full(table.share_LGB.shape[:2], tokens), self.widen_tokens)

    def offer(self, table: BlockTable, tokens: int) -> Choice:
        """As ``Budget.offer``: no document keeps more of a chunk than the chunk alone would."""
        return self.choose(table, tokens)

    def _floor_first(self, table: BlockTable, order: NDArray[np.int64]) -> NDArray[np.int64]:
        """The same blocks; the floor's blocks of every chunk before all others."""
        if not self.min_blocks_per_chunk:
            return order
        rank_in_chunk = np.empty(len(order), dtype=np.int64)
        for chunk in np.unique(table.chunk_B):
            own = order[table.chunk_B[order] == chunk]
            rank_in_chunk[own] = np.arange(len(own))
        floor = rank_in_chunk[order] < self.min_blocks_per_chunk
        return np.concatenate([order[floor], order[~floor]])
