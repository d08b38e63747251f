"""What comes near the best, however much that is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from workers.selection.budgets.base import BlockTable, Choice, best_of_each, fill_each

_ROUNDING = 1e-6
"""A chunk's shares may have been scaled when it offers, and round to other numbers then."""


@dataclass(frozen=True)
class MinPBudget:
    """Blocks whose share is at least ``p`` times that of the best block of their head, at most the granted tokens;
    widened as in ``uniform``. A question that one passage answers costs little, however long the document, and one that
    many passages touch gets them.

    The rule by which min-p sampling cuts off a distribution's tail (Nguyen et al. 2024), here over blocks. Unlike the
    mean, the best does not fall as a document grows, and a chunk knows it well enough: what is far below the best of
    its chunk is far below the document's.
    """

    p: float
    widen_tokens: int

    @property
    def record(self) -> dict[str, object]:
        """As ``Budget.record``."""
        return {"kind": "min_p", **vars(self)}

    def most(self, tokens: int) -> int:
        """As ``Budget.most``."""
        return tokens

    def choose(self, table: BlockTable, tokens: int) -> Choice:
        """As ``Budget.choose``; its shape is that of the shares."""
        return self._near_best(table, tokens, self.p)

    def offer(self, table: BlockTable, tokens: int) -> Choice:
        """As ``Budget.offer``."""
        return self._near_best(table, tokens, self.p * (1.0 - _ROUNDING))

    def _near_best(self, table: BlockTable, tokens: int, p: float) -> Choice:
        enough_LG1 = p * table.share_LGB.max(axis=2, keepdims=True)
        passing_LG = (table.share_LGB >= enough_LG1).sum(axis=2)
        orders = [order[:passing] for order, passing in zip(best_of_each(table), passing_LG.ravel(), strict=True)]
        return fill_each(table, orders, np.full(passing_LG.shape, tokens), self.widen_tokens)
