"""What stands out, however much that is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from workers.selection.budgets.base import BlockTable, Choice, best_of_each, fill_above, fill_each


@dataclass(frozen=True)
class ThresholdBudget:
    """Blocks whose share is at least ``times_mean`` times that of the mean block of their head, and always the best
    one: a document with little to say costs little. At most the granted tokens; blocks are widened as in ``uniform``.

    Thresholds on attention in place of a number of tokens are what Dynamic Context Pruning drops by (Anagnostidis et
    al. 2023) and what Twilight calls top-p (Lin et al. 2025); here the threshold is on the document-wide share.
    """

    times_mean: float
    widen_tokens: int

    @property
    def record(self) -> dict[str, object]:
        """As ``Budget.record``."""
        return {"kind": "threshold", **vars(self)}

    def most(self, tokens: int) -> int:
        """As ``Budget.most``."""
        return tokens

    def choose(self, table: BlockTable, tokens: int) -> Choice:
        """As ``Budget.choose``; its shape is that of the shares."""
        return fill_above(table, self.times_mean * table.share_LGB.mean(axis=2), tokens, self.widen_tokens)

    def offer(self, table: BlockTable, tokens: int) -> Choice:
        """As ``Budget.offer``: the mean is the document's, which a chunk does not know, so it leaves the threshold
        out and offers its best."""
        each = np.full(table.share_LGB.shape[:2], tokens)
        return fill_each(table, best_of_each(table), each, self.widen_tokens)
