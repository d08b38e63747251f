"""What a trained gate expects of each token, without any query having looked at it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from configs import methods
from workers.errors import ModelError
from workers.hf import ModelShape
from workers.selection.gate import Gate, find_gate
from workers.selection.scorers.base import ChunkScores, LayerView, Observer
from workers.selection.settling import settle_masses


@dataclass(frozen=True)
class GateScorer:
    """What tokens are predicted to be worth, per layer and kv head.

    The pruning criterion of Anagnostidis et al. 2023 ("Dynamic Context Pruning for Efficient and Interpretable
    Autoregressive Transformers") for a frozen model, trained on what repeating the text attends to (Kim et al. 2025,
    "KVzip: Query-Agnostic KV Cache Compression with Context Reconstruction"). A block is worth the mean of its
    tokens, as in ``reconstruct``. [1, G, B].
    """

    shape: ModelShape
    gate: Gate
    observer: ClassVar[Observer] = "nobody"
    reads_hidden: ClassVar[bool] = True
    reads_text: ClassVar[bool] = False

    @property
    def layers(self) -> tuple[int, ...]:
        """All that look over a whole chunk."""
        return self.shape.full_layers

    @property
    def record(self) -> dict[str, object]:
        """As ``Scorer.record``."""
        return {"kind": "gate", "gate": self.gate.digest}

    def rows(self, scored: tuple[int, int], num_tokens: int) -> range:
        """None: it looks at no queries."""
        return range(0)

    def score(self, view: LayerView) -> Tensor:
        """[1, G, B]; see the class."""
        assert view.hidden_CE is not None
        return view.density_per_block(self.gate.predict(view.layer, view.hidden_CE).T)[None]

    def settle(self, chunks: Sequence[ChunkScores]) -> list[NDArray[np.float64]]:
        """[L, G, B]."""
        return settle_masses(chunks, self.shape)


def open_gate(settings: methods.GateScorer, shape: ModelShape, weights: str) -> GateScorer:
    """The scorer over the gate that ``settings.file`` names. Raises ``ModelError`` where there is none for these
    weights."""
    gate = find_gate(settings.file, weights)
    if gate.shape != (shape.num_layers, shape.num_kv_heads):
        raise ModelError(
            f"keep.scorer.file: {settings.file}: a gate for {gate.shape[0]} layers of {gate.shape[1]} kv heads, but "
            f"model.source has {shape.num_layers} of {shape.num_kv_heads}"
        )
    return GateScorer(shape, gate)
