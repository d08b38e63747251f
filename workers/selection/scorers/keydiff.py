"""Keys that differ from the others, head by head (KeyDiff)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from workers.hf import ModelShape
from workers.selection.scorers.base import ChunkScores, LayerView, Observer
from workers.selection.settling import settle_masses


@dataclass(frozen=True)
class KeyDiffScorer:
    """Negative cosine similarity of a key to the mean direction of its head's keys in the chunk (Park et al. 2025,
    "KeyDiff: Key Similarity-Based KV Cache Eviction for Long-Context LLM Inference in Resource-Constrained
    Environments"). Needs nobody's queries; on rotated keys, as in the paper.

    Its mass is the cosine distance, 1 - cosine, which keeps the order and is never negative. A block is worth the mean
    of its tokens: distances are no mass, and a short last block must not lose by having fewer. [1, G, B].
    """

    shape: ModelShape
    observer: ClassVar[Observer] = "nobody"
    reads_hidden: ClassVar[bool] = False
    reads_text: ClassVar[bool] = False

    @property
    def layers(self) -> tuple[int, ...]:
        """All that look over a whole chunk."""
        return self.shape.full_layers

    @property
    def record(self) -> dict[str, object]:
        """As ``Scorer.record``."""
        return {"kind": "keydiff"}

    def rows(self, scored: tuple[int, int], num_tokens: int) -> range:
        """None."""
        return range(0)

    def score(self, view: LayerView) -> Tensor:
        """[1, G, B]; see the class."""
        keys_GCD = view.keys_CGD.transpose(0, 1).float()
        mean_G1D = normalize(keys_GCD, dim=-1).mean(dim=1, keepdim=True)
        distance_GC = (1.0 - cosine_similarity(keys_GCD, mean_G1D, dim=-1)).clamp_(min=0.0)
        return view.density_per_block(distance_GC.log())[None]

    def settle(self, chunks: Sequence[ChunkScores]) -> list[NDArray[np.float64]]:
        """[L, G, B]."""
        return settle_masses(chunks, self.shape)
