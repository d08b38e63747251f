"""The nearest tokens and a few global ones."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from workers.attention.plan import BlockGrid, BlockPlan, full_plan


@dataclass(frozen=True)
class Longformer:
    """A sliding window, and the first ``global_tokens`` keys, which every row reads.

    Beltagy et al. 2020, "Longformer: The Long-Document Transformer". Its other global tokens, the question's, read
    the whole chunk here too: they follow it as a probe, which no pattern cuts.
    """

    block_tokens: int
    window_tokens: int
    global_tokens: int

    def plan(self, grid: BlockGrid, q_THD: Tensor, k_SGD: Tensor, scale: float) -> BlockPlan:
        """As ``Pattern.plan``; the same for all heads, whatever the content."""
        front = grid.front(self.global_tokens)
        return full_plan(grid, [(*front, *grid.window(i, self.window_tokens)) for i in range(grid.num_row_blocks)])
