"""The heads of a layer share one budget."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from workers.messages import Interval
from workers.selection.budgets.base import BlockTable, Choice, Filling, best_of_each, fill_each, offered_to


@dataclass(frozen=True)
class AdaptiveBudget:
    """AdaKV (Feng et al. 2024, "Ada-KV: Optimizing KV Cache Eviction by Adaptive Budget Allocation for Efficient LLM
    Inference").

    Heads differ in how widely they attend, so the blocks of all kv heads of a layer compete for what the heads were
    granted together, by their share of their head's relevance. Each head is sure of ``safeguard`` of an equal part,
    whatever the others have to say. With one scale for all heads nothing is left to share out: it is ``uniform``.
    """

    num_kv_heads: int
    safeguard: float
    widen_tokens: int

    @property
    def record(self) -> dict[str, object]:
        """As ``Budget.record``."""
        return {"kind": "adaptive", **vars(self)}

    def most(self, tokens: int) -> int:
        """As ``Budget.most``: all but what the other heads of the layer are sure of."""
        return self._most(tokens, self.num_kv_heads)

    def choose(self, table: BlockTable, tokens: int) -> Choice:
        """As ``Budget.choose``; its shape is that of the shares."""
        layers, heads, _ = table.share_LGB.shape
        kept = [head for layer in range(layers) for head in self._share_out(table, layer, tokens)]
        return Choice((layers, heads), tuple(kept))

    def offer(self, table: BlockTable, tokens: int) -> Choice:
        """As ``Budget.offer``: how a head compares with the others only the whole document tells (its shares sum to 1
        there), so each offers the most that it could be given."""
        layers, heads, _ = table.share_LGB.shape
        each = np.full((layers, heads), self._most(tokens, heads))
        return fill_each(table, best_of_each(table), each, self.widen_tokens)

    def _most(self, tokens: int, heads: int) -> int:
        return heads * tokens - (heads - 1) * self._sure(tokens)

    def _sure(self, tokens: int) -> int:
        return int(self.safeguard * tokens)

    def _share_out(self, table: BlockTable, layer: int, tokens: int) -> list[tuple[Interval, ...]]:
        """What each head of a layer keeps: first what it is sure of, then the best of all until one does not fit."""
        layers, heads, blocks = table.share_LGB.shape
        share_GB = table.share_LGB[layer]
        fillings = [
            Filling(table, self.widen_tokens, offered_to(table, layer * heads + head, layers * heads))
            for head in range(heads)
        ]
        sure = self._sure(tokens)
        for head, filling in enumerate(fillings):
            for block in np.lexsort((table.starts_B, -share_GB[head])):
                if not filling.add(block, sure - filling.spent):
                    break
        # What a head is sure of stays reserved for it, spent or not: a chunk alone could not know how much will be.
        common = heads * (tokens - sure)
        for index in np.lexsort((np.tile(table.starts_B, heads), -share_GB.ravel())):
            filling, reserved = fillings[index // blocks], max(sure, fillings[index // blocks].spent)
            whole = filling.add(int(index % blocks), reserved + common - filling.spent)
            common -= max(sure, filling.spent) - reserved
            if not whole:
                break
        return [filling.intervals() for filling in fillings]
