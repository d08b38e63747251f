"""Blocks in a random order: what every other method must beat."""

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
class RandomScorer:
    """The control: shares drawn by ``seed`` and where a chunk starts, so that equal chunks of a document differ and it
    does not matter who draws, or in which order. Looks at no layer; all layers and heads share one scale.
    """

    seed: int = 0
    observer: ClassVar[Observer] = "nobody"
    layers: ClassVar[tuple[int, ...]] = ()
    reads_hidden: ClassVar[bool] = False
    reads_text: ClassVar[bool] = False

    @property
    def record(self) -> dict[str, object]:
        """As ``Scorer.record``."""
        return {"kind": "random", "seed": self.seed}

    def rows(self, scored: tuple[int, int], num_tokens: int) -> range:
        """None."""
        return range(0)

    def score(self, view: LayerView) -> Tensor:
        """Never called: there is no layer to see."""
        raise AssertionError("random looks at no layer")

    def settle(self, chunks: Sequence[ChunkScores]) -> list[NDArray[np.float64]]:
        """[1, 1, B]; uniform draws."""
        drawn = [self._drawn(chunk) for chunk in chunks]
        return split(normalised(np.concatenate(drawn)[None, None]), chunks)

    def _drawn(self, chunk: ChunkScores) -> NDArray[np.float64]:
        """One number above 0 and at most 1 for each block; numpy takes no negative seeds."""
        generator = np.random.default_rng([self.seed % 2**64, chunk.extent[0]])
        return 1.0 - generator.random(len(chunk.starts_B))
