"""The beginning and the most recent tokens, whatever they say (StreamingLLM)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from workers.selection.scorers.base import ChunkScores, LayerView, Observer
from workers.selection.settling import normalised, split


@dataclass(frozen=True)
class StreamingScorer:
    """Attention sinks and a recent window (Xiao et al. 2023, "Efficient Streaming Language Models with Attention
    Sinks"): blocks that hold one of the document's first ``sink_tokens`` rank first, then the latest block, and so on
    backwards. Looks at no layer; shares fall in a line with the rank, and all layers and heads share one scale.
    """

    sink_tokens: int = 4
    observer: ClassVar[Observer] = "nobody"
    layers: ClassVar[tuple[int, ...]] = ()
    reads_hidden: ClassVar[bool] = False
    reads_text: ClassVar[bool] = False

    @property
    def record(self) -> dict[str, object]:
        """As ``Scorer.record``."""
        return {"kind": "streaming", "sink_tokens": self.sink_tokens}

    def rows(self, scored: tuple[int, int], num_tokens: int) -> range:
        """None."""
        return range(0)

    def score(self, view: LayerView) -> Tensor:
        """Never called: there is no layer to see."""
        raise AssertionError("streaming looks at no layer")

    def settle(self, chunks: Sequence[ChunkScores]) -> list[NDArray[np.float64]]:
        """[1, 1, B]."""
        starts_B = np.concatenate([chunk.starts_B for chunk in chunks])
        sinks_B = starts_B < starts_B.min() + self.sink_tokens
        best_first = np.lexsort((np.where(sinks_B, starts_B, -starts_B), ~sinks_B))
        share_B = np.empty(len(starts_B))
        share_B[best_first] = np.arange(len(starts_B), 0, -1)
        return split(normalised(share_B[None, None]), chunks)
