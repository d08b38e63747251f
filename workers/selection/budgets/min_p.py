"""What comes near the best, however much that is."""

from __future__ import annotations

from dataclasses import dataclass

from workers.selection.budgets.base import BlockTable, Choice, fill_above

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
        return fill_above(table, self.p * table.share_LGB.max(axis=2), tokens, self.widen_tokens)

    def offer(self, table: BlockTable, tokens: int) -> Choice:
        """As ``Budget.offer``: the best of a chunk is not above the document's."""
        near_LG = self.p * (1.0 - _ROUNDING) * table.share_LGB.max(axis=2)
        return fill_above(table, near_LG, tokens, self.widen_tokens)
