"""More in low layers, less in high ones."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from workers.selection.budgets.base import BlockTable, Choice, best_of_each, fill_each


@dataclass(frozen=True)
class PyramidBudget:
    """PyramidKV (Cai et al. 2024, "PyramidKV: Dynamic KV Cache Compression based on Pyramidal Information Funneling").

    Attention is spread wide in low layers and gathers on a few tokens in high ones, so what the layers keep falls in a
    line: the first layer keeps ``slope`` times what the last keeps, and all together as much as ``uniform`` does. The
    paper's beta gives a slope of 2 * beta - 1. Heads of a layer keep as many each.
    """

    num_layers: int
    slope: float
    widen_tokens: int

    @property
    def record(self) -> dict[str, object]:
        """As ``Budget.record``."""
        return {"kind": "pyramid", **vars(self)}

    def most(self, tokens: int) -> int:
        """As ``Budget.most``: what the first layer keeps."""
        return int(self.tokens_of_layers(tokens)[0])

    def choose(self, table: BlockTable, tokens: int) -> Choice:
        """As ``Budget.choose``; shape (L, 1) where heads share one scale, else (L, G)."""
        tokens_L1 = self.tokens_of_layers(tokens)[:, None]
        heads = table.share_LGB.shape[1]
        return fill_each(table, best_of_each(table), np.repeat(tokens_L1, heads, axis=1), self.widen_tokens)

    def offer(self, table: BlockTable, tokens: int) -> Choice:
        """As ``Budget.offer``: no document keeps more of a chunk than the chunk alone would."""
        return self.choose(table, tokens)

    def tokens_of_layers(self, tokens: int) -> NDArray[np.int64]:
        """What each layer keeps, [L]: never rising, in sum L * ``tokens``; what rounding leaves goes to the lowest."""
        last = 2 * tokens / (self.slope + 1)
        line_L = np.linspace(self.slope * last, last, self.num_layers) if self.num_layers > 1 else np.array([tokens])
        # A line that ends in whole tokens may come out a hair below them.
        tokens_L: NDArray[np.int64] = np.floor(line_L + 1e-6).astype(np.int64)
        tokens_L[: self.num_layers * tokens - int(tokens_L.sum())] += 1
        return tokens_L
