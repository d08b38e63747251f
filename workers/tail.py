"""What decoding adds: one pair per sequence, layer and step, packed anew for each step.

Shapes: N sequences, G key-value heads, D head dimension.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from workers.attention.base import Backend, Partial
from workers.passes import Sight
from workers.windowed import OwnRows


class Tail:
    """The pairs of the steps so far: per layer [N sequences, steps, G, D]. ``step``: how many are complete."""

    def __init__(self, num_sequences: int, max_steps: int, num_layers: int) -> None:
        """Buffers are made on first use, in the dtype and on the device of what arrives."""
        self._shape = (num_sequences, max_steps)
        self._layers: list[tuple[Tensor, Tensor] | None] = [None] * num_layers
        self.step = 0

    def extend(self, layer: int, k_NGD: Tensor, v_NGD: Tensor) -> OwnRows:
        """Put this step's pairs behind the earlier ones; all of them, packed by sequence, and the bounds."""
        buffers = self._layers[layer]
        if buffers is None:
            shape = (*self._shape, *k_NGD.shape[1:])
            buffers = self._layers[layer] = (k_NGD.new_empty(shape), v_NGD.new_empty(shape))
        length = self.step + 1
        packed: list[Tensor] = []
        for buffer, new in zip(buffers, (k_NGD, v_NGD), strict=True):
            buffer[:, self.step] = new
            packed.append(buffer[:, :length].flatten(0, 1))
        bounds = tuple(range(0, length * self._shape[0] + 1, length))
        return OwnRows(packed[0], packed[1], bounds)


@dataclass(frozen=True)
class TailOwn:
    """Rows are a step of decoding, one per sequence: each reads itself and the steps before it."""

    backend: Backend
    row_bounds: tuple[int, ...]
    tail: Tail
    wants_hidden: ClassVar[bool] = False

    def attend(self, sight: Sight) -> Partial:
        """As ``Own.attend``."""
        k_SGD, v_SGD, bounds = self.rows(sight)
        return self.backend.attend(sight.q_THD, k_SGD, v_SGD, self.row_bounds, bounds, causal=False, scale=sight.scale)

    def rows(self, sight: Sight) -> OwnRows:
        """As ``Own.rows``: this step's pairs go behind the earlier ones."""
        return self.tail.extend(sight.layer, sight.k_TGD, sight.v_TGD)
