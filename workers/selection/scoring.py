"""Asking a scorer while a pass runs: the probes' queries as they go by, layer by layer.

Shapes: T rows of the pass, R rows that score, H query heads, D head dimension, B blocks.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from workers.passes import Segment
from workers.selection.scorers.base import LayerView, Scorer


class Scoring:
    """A ``passes.Watcher`` that asks a scorer about all probes at once, in every layer the scorer names."""

    def __init__(self, scorer: Scorer, pairs: Segment, rows: Sequence[range], block_tokens: int) -> None:
        """``rows``: per probe, which rows of the pass score."""
        self._scorer = scorer
        self._pairs = pairs
        self._lengths = [len(own) for own in rows]
        self._rows = torch.tensor([row for own in rows for row in own])
        self._block_tokens = block_tokens
        self._seen: list[Tensor] = []

    def see(self, layer: int, q_THD: Tensor, scale: float) -> None:
        """Score this layer for every probe."""
        if layer in self._scorer.layers:
            queries = q_THD[self._rows.to(q_THD.device)]
            view = LayerView(layer, queries, self._pairs.keys[layer], scale, self._block_tokens)
            self._seen.append(self._scorer.score(view).cpu())

    def scores(self) -> list[Tensor]:
        """Per probe, [R, H, B] over the heads of all layers seen."""
        return list(torch.split(torch.cat(self._seen, dim=1), self._lengths))
