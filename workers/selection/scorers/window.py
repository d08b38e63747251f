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

    The window is the end of the probe, or where the question is unknown the end of each chunk (at most half of it). Of
    a chunk's own window every row's attention to all that it read is known, so the chunk reports its mean over rows
    [1, H, B], with one chunk SnapKV's own. Probes are put on one scale over chunks instead: exact merging would need
    every row, so the number holds the mean over rows inside the chunk and on top the mean of the chunk's log-sum-exp,
    by which chunks weigh against each other. SnapKV always keeps its window; a chunk's window, which hardly anybody
    could observe, counts as its average token, and the document's last ``window_tokens`` rank first everywhere.
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
        if self.question_known:
            lse_RH1 = logits_RHC.logsumexp(dim=-1, keepdim=True)
            mass_HC = (logits_RHC - lse_RH1).exp_().mean(dim=0)
            return view.per_block(self._pooled(mass_HC).log() + lse_RH1.mean(dim=0))[None]
        assert view.lse_RH is not None, "its observer has no log-sum-exp"
        # the last rows are keys of this chunk too, which they see causally and do not rate
        unseen_RC = view.places_C > view.row_places_R[:, None]
        mass_RHC = (logits_RHC - view.lse_RH[..., None]).exp_().masked_fill_(unseen_RC[:, None], 0.0)
        mass_HC = mass_RHC.mean(dim=0)[:, : len(view.places_C) - len(logits_RHC)]
        return view.per_block(self._with_window(self._pooled(mass_HC), len(view.places_C)).log())[None]

    def settle(self, chunks: Sequence[ChunkScores]) -> list[NDArray[np.float64]]:
        """[L, G, B]: the mean of each group; of a probe each query head first on its own scale over the document."""
        [log_FHB] = by_layer(chunks, self.shape)
        if self.question_known:
            share_FGB = group_mean(document_softmax(log_FHB), self.shape.num_kv_heads)
            return split(for_all_layers(share_FGB, self.shape), chunks)
        share_FGB = group_mean(np.exp(log_FHB), self.shape.num_kv_heads)
        first = max(chunk.extent[1] for chunk in chunks) - self.window_tokens
        stops = [np.minimum(chunk.starts_B + chunk.block_tokens, chunk.extent[1]) for chunk in chunks]
        last_B = np.concatenate(stops) > first
        share_FGB[:, :, last_B] = share_FGB.max()
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
