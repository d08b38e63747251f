"""What queries like the chunk's would attend to soon, head by head (Expected Attention)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from workers.hf import LanguageModel, ModelShape
from workers.selection.scorers.base import ChunkScores, LayerView, Observer
from workers.selection.settling import by_layer, for_all_layers, group_mean, normalised, split

_SINKS = 4
"""Positions whose queries are unlike all others; a chunk behind an anchor has none of them."""


@dataclass(frozen=True)
class ExpectedScorer:
    """The attention that a key can expect from the next ``future_tokens`` queries, were they normally distributed as
    the chunk's own, times the size of its value (Devoto et al. 2025, "Expected Attention: KV Cache Compression by
    Estimating Attention from Future Queries Distribution").

    Mean and covariance are those of un-rotated queries, turned by the average rotation of the positions behind the
    chunk; E[exp(q.k)] of a normal q is exp(mean.k + k.covariance.k / 2). The paper's softmax runs over the whole
    cache, so a chunk reports three numbers per query head, [3, H, B]: log of expected mass times value size, of
    expected mass alone (whose sum over the document is the softmax's), of value size alone (which ``epsilon`` weighs).
    A block is worth the mean of its tokens: a short last block must not lose by having fewer value sizes to add.
    """

    shape: ModelShape
    future_tokens: int = 512
    use_covariance: bool = True
    epsilon: float = 0.02
    observer: ClassVar[Observer] = "chunk"
    reads_hidden: ClassVar[bool] = False
    reads_text: ClassVar[bool] = False

    @property
    def layers(self) -> tuple[int, ...]:
        """All that look over a whole chunk."""
        return self.shape.full_layers

    @property
    def record(self) -> dict[str, object]:
        """As ``Scorer.record``."""
        settings = {"use_covariance": self.use_covariance, "epsilon": self.epsilon}
        return {"kind": "expected", "future_tokens": self.future_tokens, **settings}

    def rows(self, scored: tuple[int, int], num_tokens: int) -> range:
        """Every token of the chunk."""
        return range(num_tokens)

    def score(self, view: LayerView) -> Tensor:
        """[3, H, B]; see the class."""
        queries_RHD = self._future(view)
        mean_HD = queries_RHD.mean(dim=0)
        keys_HCD = view.keys_CGD.transpose(0, 1).float().repeat_interleave(view.group, dim=0)
        log_HC = view.scale * (keys_HCD @ mean_HD.unsqueeze(-1)).squeeze(-1)
        if self.use_covariance:
            apart_HRD = (queries_RHD - mean_HD).transpose(0, 1)
            covariance_HDD = apart_HRD.mT @ apart_HRD / apart_HRD.shape[1]
            log_HC += view.scale**2 / 2.0 * (keys_HCD @ covariance_HDD).mul_(keys_HCD).sum(dim=-1)
        sizes_HC = view.values_CGD.float().norm(dim=-1).T.log().repeat_interleave(view.group, dim=0)
        worth_2HB = view.density_per_block(torch.stack((log_HC + sizes_HC, sizes_HC)))
        return torch.stack((worth_2HB[0], view.per_block(log_HC), worth_2HB[1]))

    def settle(self, chunks: Sequence[ChunkScores]) -> list[NDArray[np.float64]]:
        """[L, G, B]: one softmax over the document per query head, plus ``epsilon``, times value sizes."""
        worth_FHB, mass_FHB, sizes_FHB = by_layer(chunks, self.shape)
        total_FH1 = np.logaddexp.reduce(mass_FHB, axis=2, keepdims=True)
        expected_FHB = np.exp(worth_FHB - np.where(np.isneginf(total_FH1), 0.0, total_FH1))
        scores_FHB = expected_FHB + self.epsilon * np.exp(sizes_FHB)
        share_FGB = normalised(group_mean(scores_FHB, self.shape.num_kv_heads))
        return split(for_all_layers(share_FGB, self.shape), chunks)

    def _future(self, view: LayerView) -> Tensor:
        """The chunk's queries [R, H, D] turned by the average rotation of the positions behind it, in float32."""
        queries_RHD, places_R = view.queries_RHD.float(), view.row_places_R
        if (usual_R := places_R >= _SINKS).any():
            queries_RHD, places_R = queries_RHD[usual_R], places_R[usual_R]
        still_RHD = view.model.unrotate(queries_RHD, places_R, view.layer)
        start = int(places_R[-1]) + 1
        cos, sin = _average_rotation(view.model, view.layer, torch.arange(start, start + self.future_tokens))
        first, second = still_RHD.chunk(2, dim=-1)
        return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def _average_rotation(model: LanguageModel, layer: int, places_F: Tensor) -> tuple[Tensor, Tensor]:
    """Mean cosines and sines [D / 2] of the angles at these places: where they turn (1, 0) to in every plane."""
    half = model.shape.head_dim // 2
    pairs_F1D = torch.cat((torch.ones(len(places_F), 1, half), torch.zeros(len(places_F), 1, half)), dim=-1)
    cos, sin = model.rotate(pairs_F1D, places_F, layer).float().mean(dim=(0, 1)).chunk(2)
    return cos, sin
