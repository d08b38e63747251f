"""What a scorer sees, and what it says.

A scorer has two halves. ``score`` runs beside the model, once per chunk and layer, and reduces what it sees to a
log-mass per block; ``settle`` runs where all chunks of a document have come together, and puts their log-masses
on one scale. Invariants: a scorer reads, it never changes a view; ``score`` depends on the chunk's tokens and on
what was read before them, never on where in its document the chunk stands (equal chunks share a store entry);
whatever knows positions or other chunks is in ``settle``; it knows nothing of budgets or stores.

Shapes: R observing rows, H query heads, h columns that a scorer reports for one layer (retrieval heads, or kv
heads), G key-value heads, D head dimension, E width of the model, C chunk tokens, B blocks, L layers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from workers.hf import LanguageModel
from workers.messages import Interval

Observer = Literal["probe", "chunk", "repeat", "nobody", "index"]
"""Whose queries a scorer looks at: the question's behind the chunk, the chunk's own, those of a repetition of the
chunk behind it, none (keys, values and hidden states alone), or those of a question that comes later and meets what
was kept."""


@dataclass(frozen=True)
class LayerView:
    """One layer as the observing rows meet one chunk: keys and queries rotated, all in the model's dtype.

    ``alive_S``: which of the chunk's C tokens the S keys belong to, where some were dropped in lower
    layers; None: S = C, all of them.

    ``lse_RH``: log-sum-exp of everything that each row attended to (anchor, carried, chunk), float32; None where
    the observer is ``probe`` or ``nobody``. ``hidden_CE``: what the attention of this layer got for the chunk's
    rows, after its norm; None unless the scorer ``reads_hidden``. ``places_C`` and ``row_places_R``: the positions
    at which keys and queries were rotated.
    """

    layer: int
    queries_RHD: Tensor
    keys_CGD: Tensor
    values_CGD: Tensor
    places_C: Tensor
    row_places_R: Tensor
    scale: float
    block_tokens: int
    model: LanguageModel
    lse_RH: Tensor | None = None
    hidden_CE: Tensor | None = None
    alive_S: Tensor | None = None

    @property
    def group(self) -> int:
        """Query heads per kv head; head h reads kv head ``h // group``."""
        return self.queries_RHD.shape[1] // self.keys_CGD.shape[1]

    @property
    def reach(self) -> int:
        """How many positions that end with a row it can read: the layer's window, or all there are."""
        return self.model.shape.windows[self.layer] or int(self.row_places_R[-1]) + 1

    def logits(self, heads: Sequence[int] | None = None) -> Tensor:
        """Attention logits of the rows over the chunk, float32 [R, h, C]; all heads by default. No causal mask; -inf
        for tokens that were dropped."""
        heads = range(self.queries_RHD.shape[1]) if heads is None else heads
        queries_hRD = self.queries_RHD[:, list(heads)].transpose(0, 1).float()
        keys_hCD = self.keys_CGD[:, [head // self.group for head in heads]].transpose(0, 1).float()
        logits_RhS = (queries_hRD @ keys_hCD.mT * self.scale).transpose(0, 1)
        if self.alive_S is None:
            return logits_RhS
        logits_RhC = logits_RhS.new_full((*logits_RhS.shape[:2], len(self.places_C)), float("-inf"))
        logits_RhC[..., self.alive_S] = logits_RhS
        return logits_RhC

    def per_block(self, log_RhC: Tensor) -> Tensor:
        """Log-sum-exp over each block, [R, h, B]; the last block may be shorter."""
        missing = -log_RhC.shape[-1] % self.block_tokens
        padded = pad(log_RhC, (0, missing), value=float("-inf"))
        return torch.logsumexp(padded.reshape(*padded.shape[:-1], -1, self.block_tokens), dim=-1)

    def density_per_block(self, log_RhC: Tensor) -> Tensor:
        """``per_block`` with a shorter last block scaled to a whole one: for scores that are worth, not mass."""
        log_RhB = self.per_block(log_RhC)
        rest = log_RhC.shape[-1] % self.block_tokens or self.block_tokens
        log_RhB[..., -1] += math.log(self.block_tokens / rest)
        return log_RhB

    def log_probabilities(self, rows: slice, keys: slice) -> Tensor:
        """Log of the attention that these r rows pay to these c keys, float32 [G, group * r, c] with the rows of a kv
        head's query heads one behind the other; -inf for keys behind a row or before its window. Needs ``lse_RH``."""
        assert self.lse_RH is not None, "its observer has no log-sum-exp"
        num_kv_heads, head_dim = self.keys_CGD.shape[1:]
        queries_GrD = self.queries_RHD[rows].transpose(0, 1).reshape(num_kv_heads, -1, head_dim).float()
        lse_Gr = self.lse_RH[rows].T.reshape(num_kv_heads, -1)
        keys_GDc = self.keys_CGD[keys].permute(1, 2, 0).float()
        log_Grc = torch.baddbmm(lse_Gr.unsqueeze(-1), queries_GrD, keys_GDc, beta=-1.0, alpha=self.scale)
        distance_rc = self.row_places_R[rows, None] - self.places_C[keys]
        unread_rc = (distance_rc < 0) | (distance_rc >= self.reach)
        return log_Grc.masked_fill_(unread_rc.repeat(self.group, 1), -math.inf) if unread_rc.any() else log_Grc


@dataclass(frozen=True)
class ChunkScores:
    """What a scorer said of one chunk. ``log_RHB``: float32, over all layers it looked at, or [1, 1, B] zeros where it
    looks at none; ``extent``: the chunk's document positions; ``texts_B``: each block as text, and ``question`` as
    text, for scorers that ``reads_text``."""

    log_RHB: NDArray[np.float32]
    extent: Interval
    block_tokens: int
    texts_B: tuple[str, ...] = ()
    question: str = ""

    @property
    def starts_B(self) -> NDArray[np.int64]:
        """Document position of each block's first token."""
        return np.arange(self.extent[0], self.extent[1], self.block_tokens)


class Scorer(Protocol):
    """How relevant is each block?"""

    @property
    def observer(self) -> Observer:
        """Whose queries it looks at. ``probe``: its scores belong to one question and never serve another."""
        ...

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers it wants to see, ascending; reading may stop after the last. Empty: none, ``score`` is never
        called. Never a layer with a window, which cannot look over a whole chunk."""
        ...

    @property
    def reads_hidden(self) -> bool:
        """Whether its views carry hidden states."""
        ...

    @property
    def reads_text(self) -> bool:
        """Whether ``settle`` needs the texts of blocks and question."""
        ...

    @property
    def record(self) -> dict[str, object]:
        """Everything that decides its scores, as plain JSON values, its ``kind`` included: part of every store key."""
        ...

    def rows(self, scored: tuple[int, int], num_tokens: int) -> range:
        """Which of the observer's ``num_tokens`` rows it looks at. ``scored``: the question's own words in a probe,
        all rows of a chunk or a repetition."""
        ...

    def score(self, view: LayerView) -> Tensor:
        """Log-mass per row, column and block, float32 [R', h, B]: R' and h as the scorer likes, the same for every
        chunk; h may differ between layers. Finite or -inf."""
        ...

    def settle(self, chunks: Sequence[ChunkScores]) -> list[NDArray[np.float64]]:
        """Per chunk of one document, in order, shares [L', G', B_c]: non-negative, on one scale for all layers and kv
        heads, which sum to 1 over the document on average: where heads compete, louder ones keep more. L' is the
        model's layers, or 1 where nobody tells them apart; G' likewise."""
        ...
