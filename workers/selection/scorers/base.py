"""What a scorer sees, and what it says.

A scorer is asked once per layer it names and answers with log-masses: numbers that may be merged over
chunks as log-sum-exps (``selection.relevance``). Invariants: a scorer reads, it never changes a view; it
knows nothing of budgets, stores or other chunks.

Shapes: R scored probe rows, H query heads, h heads of one layer that are asked, G key-value heads,
D head dimension, C chunk tokens, B blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad


@dataclass(frozen=True)
class LayerView:
    """One layer as one probe meets one chunk: queries [R, H, D] and keys [C, G, D], both rotated."""

    layer: int
    queries_RHD: Tensor
    keys_CGD: Tensor
    scale: float
    block_tokens: int

    def probe_logits(self, heads: Sequence[int]) -> Tensor:
        """Attention logits of the probe's rows over the chunk, float32 [R, h, C]."""
        group = self.queries_RHD.shape[1] // self.keys_CGD.shape[1]
        queries_hRD = self.queries_RHD[:, list(heads)].transpose(0, 1).float()
        keys_hCD = self.keys_CGD[:, [head // group for head in heads]].transpose(0, 1).float()
        return (queries_hRD @ keys_hCD.mT * self.scale).transpose(0, 1)

    def per_block(self, logits_RhC: Tensor) -> Tensor:
        """Log-sum-exp over each block, [R, h, B]; the last block may be shorter."""
        missing = -logits_RhC.shape[-1] % self.block_tokens
        padded = pad(logits_RhC, (0, missing), value=float("-inf"))
        return torch.logsumexp(padded.view(*padded.shape[:2], -1, self.block_tokens), dim=-1)


class Scorer(Protocol):
    """How relevant is each block to the probe?"""

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers it wants to see, ascending; reading may stop after the last."""
        ...

    def score(self, view: LayerView) -> Tensor:
        """Log-mass per row, head and block, float32 [R, h, B]."""
        ...
