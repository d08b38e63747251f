"""What the later tokens of a chunk attended to, head by head (H2O)."""

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
"""Rows looked at together: their probabilities stay near the cache, and keys that none of them reads are skipped."""


@dataclass(frozen=True)
class AccumulatedScorer:
    """The attention that a token received from itself and all tokens of the chunk after it (Zhang et al. 2023, "H2O:
    Heavy-Hitter Oracle for Efficient Generative Inference of Large Language Models").

    Each key's sum is divided by the number of rows that could see it: early tokens would otherwise win by seniority,
    the more so the longer the chunk. Reported in multiples of uniform attention, so that a short chunk, whose rows
    share their attention among fewer keys, does not outbid a long one. [1, G, B], the mean of each group.
    """

    shape: ModelShape
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
        return {"kind": "accumulated"}

    def rows(self, scored: tuple[int, int], num_tokens: int) -> range:
        """Every token of the chunk."""
        return range(num_tokens)

    def score(self, view: LayerView) -> Tensor:
        """[1, G, B]; see the class. Rows and keys must be in the order of their places."""
        rows_R, keys_C = view.row_places_R, view.places_C
        first_R = torch.searchsorted(keys_C, rows_R - view.reach, right=True)
        last_R = torch.searchsorted(keys_C, rows_R, right=True)
        sums_GC = torch.zeros(view.keys_CGD.shape[1], len(keys_C), device=keys_C.device)
        for start in range(0, len(rows_R), _SLICE_ROWS):
            rows = slice(start, start + _SLICE_ROWS)
            keys = slice(int(first_R[rows][0]), int(last_R[rows][-1]))
            sums_GC[:, keys] += view.log_probabilities(rows, keys).exp_().sum(dim=1)
        observers_C = torch.searchsorted(rows_R, keys_C + view.reach) - torch.searchsorted(rows_R, keys_C)
        readable = (rows_R + 1).clamp(max=view.reach).float().mean()  # keys that a row could read, on average
        return view.per_block((sums_GC * readable / (view.group * observers_C)).log())[None]

    def settle(self, chunks: Sequence[ChunkScores]) -> list[NDArray[np.float64]]:
        """[L, G, B]."""
        return settle_masses(chunks, self.shape)
