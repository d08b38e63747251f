"""What the end of the prompt attends to, head by head (SnapKV)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import avg_pool1d, pad

from workers.hf import ModelShape
from workers.selection.scorers.base import ChunkScores, LayerView, Observer
from workers.selection.settling import by_layer, document_softmax, for_all_layers, group_mean, normalised, split


@dataclass(frozen=True)
class WindowScorer:
    """Attention of an observation window, averaged over its rows and pooled over neighbouring tokens (Li et al. 2024,
    "SnapKV: LLM Knows What You are Looking for Before Generation").

    The window is the end of the probe, or where the question is unknown the end of each chunk (at most half of it).
    Exact merging over chunks would need every row, so a chunk reports two things in one number [1, H, B]: SnapKV's
    mean over rows inside the chunk, and on top the mean over rows of the chunk's log-sum-exp, by which chunks weigh
    against each other. With one chunk the order is SnapKV's own. SnapKV always keeps its window; a chunk's window,
    which hardly anybody could observe, counts as its average token, and the document's last ``window_tokens`` rank
    first.
    """

    shape: ModelShape
    question_known: bool
    window_tokens: int = 64
    pool_tokens: int = 5
    reads_hidden: ClassVar[bool] = False
    reads_text: ClassVar[bool] = False

    @property
    def observer(self) -> Observer:
        """The question where it is known, otherwise the chunk itself."""
        return "probe" if self.question_known else "chunk"

    @property
    def layers(self) -> tuple[int, ...]:
        """All that look over a whole chunk."""
        return self.shape.full_layers

    @property
    def record(self) -> dict[str, object]:
        """As ``Scorer.record``."""
        sizes = {"window_tokens": self.window_tokens, "pool_tokens": self.pool_tokens}
        return {"kind": "window", "observer": self.observer, **sizes}

    def rows(self, scored: tuple[int, int], num_tokens: int) -> range:
        """The last ``window_tokens``; of a chunk at most half, so that there is something to observe."""
        most = num_tokens if self.question_known else num_tokens - num_tokens // 2
        return range(num_tokens - min(self.window_tokens, most), num_tokens)

    def score(self, view: LayerView) -> Tensor:
        """[1, H, B]; see the class."""
        logits_RHC = view.logits()
        observed = logits_RHC.shape[2]
        if not self.question_known:  # the last rows are keys of this chunk too, which they see causally and do not rate
            observed -= logits_RHC.shape[0]
            unseen_RC = view.places_C > view.row_places_R[:, None]
            logits_RHC.masked_fill_(unseen_RC[:, None], float("-inf"))
        lse_RH1 = logits_RHC.logsumexp(dim=-1, keepdim=True)
        mass_HC = (logits_RHC - lse_RH1).exp_().mean(dim=0)[:, :observed]
        log_HC = self._with_window(self._pooled(mass_HC), logits_RHC.shape[2]).log()
        return view.per_block(log_HC + lse_RH1.mean(dim=0))[None]

    def settle(self, chunks: Sequence[ChunkScores]) -> list[NDArray[np.float64]]:
        """[L, G, B]: each query head on one scale over the document, then the mean of its group."""
        [log_FHB] = by_layer(chunks, self.shape)
        share_FGB = group_mean(document_softmax(log_FHB), self.shape.num_kv_heads)
        if not self.question_known:
            first = max(chunk.extent[1] for chunk in chunks) - self.window_tokens
            last_B = np.concatenate([chunk.starts_B + chunk.block_tokens for chunk in chunks]) > first
            share_FGB[:, :, last_B] = share_FGB.max(axis=2, keepdims=True)
        return split(for_all_layers(normalised(share_FGB), self.shape), chunks)

    def _pooled(self, mass_HC: Tensor) -> Tensor:
        """Each token's mean with its neighbours; as in SnapKV there is nothing beyond the edges."""
        if not mass_HC.shape[1]:
            return mass_HC
        edges = ((self.pool_tokens - 1) // 2, self.pool_tokens // 2)
        return avg_pool1d(pad(mass_HC, edges)[None], self.pool_tokens, stride=1)[0]

    @staticmethod
    def _with_window(mass_HC: Tensor, num_tokens: int) -> Tensor:
        """The observed masses, and behind them the window's own tokens as average ones (a lone token: as 1)."""
        heads, observed = mass_HC.shape
        mean_H1 = mass_HC.mean(dim=1, keepdim=True) if observed else mass_HC.new_ones(heads, 1)
        return torch.cat((mass_HC, mean_H1.expand(-1, num_tokens - observed)), dim=1)
