"""The nearest tokens only."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from workers.attention.plan import BlockGrid, BlockPlan, full_plan


@dataclass(frozen=True)
class SlidingWindow:
    """A block of rows reads itself and the ``window_tokens`` keys before it, in whole blocks.

    The window of Longformer (Beltagy et al. 2020, "Longformer: The Long-Document Transformer") and Mistral, without
    globals. The window counts keys as they lie in front of the rows: where kept sets of earlier chunks are carried
    there, it is counted in the cache, as in StreamingLLM (Xiao et al. 2023, "Efficient Streaming Language Models with
    Attention Sinks").
    """

    block_tokens: int
    window_tokens: int

    def plan(self, grid: BlockGrid, q_THD: Tensor, k_SGD: Tensor, scale: float) -> BlockPlan:
        """As ``Pattern.plan``; the same for all heads, whatever the content."""
        return full_plan(grid, [grid.window(i, self.window_tokens) for i in range(grid.num_row_blocks)])
