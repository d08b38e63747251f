"""Sinks and a window, and a last stretch that reads everything."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from workers.attention.plan import BlockGrid, BlockPlan, full_plan


@dataclass(frozen=True)
class TriShape:
    """The first ``sink_tokens`` keys and a sliding window; rows of the last ``last_tokens`` read everything.

    Li et al. 2024, "SCBench: A KV Cache-Centric Analysis of Long-Context Methods": the A-shape of MInference (Jiang
    et al. 2024) with a dense triangle at the end, where a prompt's instruction usually stands. The only pattern
    that knows where a chunk ends: cut short, its last rows read more.
    """

    block_tokens: int
    sink_tokens: int
    window_tokens: int
    last_tokens: int

    def plan(self, grid: BlockGrid, q_THD: Tensor, k_SGD: Tensor, scale: float) -> BlockPlan:
        """As ``Pattern.plan``; the same for all heads, whatever the content."""
        front = grid.front(self.sink_tokens)
        last = grid.key_bounds[-1] - self.last_tokens
        return full_plan(
            grid,
            [
                range(grid.own(i)) if stop > last else (*front, *grid.window(i, self.window_tokens))
                for i, stop in enumerate(grid.row_bounds[1:])
            ],
        )
