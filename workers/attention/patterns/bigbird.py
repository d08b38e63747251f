"""A narrow window, a few global blocks and a few random ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from workers.attention.plan import BlockGrid, BlockPlan, full_plan


@dataclass(frozen=True)
class BigBird:
    """A block reads itself, the ``window_blocks - 1`` before it, the first ``global_blocks``, and ``random_blocks``
    of the others before it.

    Zaheer et al. 2020, "Big Bird: Transformers for Longer Sequences", made causal: its window looks back only. What
    is drawn depends on ``seed`` and on a block's place among all keys, so it is the same however the rows are cut.
    """

    block_tokens: int
    window_blocks: int
    random_blocks: int
    global_blocks: int
    seed: int

    def plan(self, grid: BlockGrid, q_THD: Tensor, k_SGD: Tensor, scale: float) -> BlockPlan:
        """As ``Pattern.plan``; the same for all heads, whatever the content."""
        return full_plan(grid, [list(self._reads(grid.own(i))) for i in range(grid.num_row_blocks)])

    def _reads(self, own: int) -> Iterator[int]:
        front, window = min(self.global_blocks, own), max(0, own - self.window_blocks + 1)
        yield from range(front)
        yield from range(window, own)
        others = max(0, window - front)
        generator = np.random.default_rng([self.seed % 2**63, own])
        yield from (front + generator.choice(others, min(self.random_blocks, others), replace=False)).tolist()
