"""What the model looks up when it repeats the chunk, head by head (KVzip)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from workers.hf import ModelShape
from workers.selection.scorers.base import ChunkScores, LayerView, Observer
from workers.selection.settling import settle_masses

_SLICE_ROWS = 128
"""Rows looked at together, so that their probabilities stay near the cache."""


@dataclass(frozen=True)
class ReconstructScorer:
    """The highest attention that a token gets while the model repeats the chunk, over all rows of that and the
    query heads of its group (Kim et al. 2025, "KVzip: Query-Agnostic KV Cache Compression with Context
    Reconstruction").

    A token that no repetition needs can go whatever is asked later. Probabilities are over all that a row read, so
    chunks compare as they are, as in the paper. A block is worth the mean of its tokens: a maximum is no mass, and a
    short last block must not lose by having fewer of them. [1, G, B].
    """

    shape: ModelShape
    observer: ClassVar[Observer] = "repeat"
    reads_hidden: ClassVar[bool] = False
    reads_text: ClassVar[bool] = False

    @property
    def layers(self) -> tuple[int, ...]:
        """All that look over a whole chunk."""
        return self.shape.full_layers

    @property
    def record(self) -> dict[str, object]:
        """As ``Scorer.record``."""
        return {"kind": "reconstruct"}

    def rows(self, scored: tuple[int, int], num_tokens: int) -> range:
        """Every repeating row."""
        return range(*scored)

    def score(self, view: LayerView) -> Tensor:
        """[1, G, B]; see the class."""
        slices = range(0, len(view.queries_RHD), _SLICE_ROWS)
        everything = slice(None)
        best_SGC = [view.log_probabilities(slice(i, i + _SLICE_ROWS), everything).amax(dim=1) for i in slices]
        return view.density_per_block(torch.stack(best_SGC).amax(dim=0))[None]

    def settle(self, chunks: Sequence[ChunkScores]) -> list[NDArray[np.float64]]:
        """[L, G, B]."""
        return settle_masses(chunks, self.shape)
