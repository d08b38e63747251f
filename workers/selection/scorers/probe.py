"""The question's own attention, as its retrieval heads pay it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from workers.selection.scorers.base import LayerView


@dataclass(frozen=True)
class ProbeScorer:
    """Attention of the question's tokens over the chunk, in the calibrated retrieval heads only.

    Most heads attend to position or syntax; a few retrieve (Wu et al. 2024, "Retrieval Head Mechanistically
    Explains Long-Context Factuality"). ``heads``: (layer, head) pairs, ascending.
    """

    heads: tuple[tuple[int, int], ...]

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers that hold a retrieval head."""
        return tuple(sorted({layer for layer, _ in self.heads}))

    def score(self, view: LayerView) -> Tensor:
        """Log-sum-exp of the logits per block, [R, h, B] for the h retrieval heads of this layer."""
        heads = [head for layer, head in self.heads if layer == view.layer]
        return view.per_block(view.probe_logits(heads))
