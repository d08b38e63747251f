"""What decoding adds: one pair per writing sequence, layer and step, packed anew for each step.

Shapes: N sequences, W of them still writing, G key-value heads, D head dimension, S pairs of all sequences.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import ClassVar

import torch
from torch import Tensor

from workers.attention.base import Backend, Partial
from workers.passes import Sight
from workers.windowed import OwnRows


class Tail:
    """The pairs of the steps so far: per layer [N sequences, steps, G, D]. ``length``: how many steps were begun, the
    present one among them; ``row_bounds``: its rows by sequence, one for each that writes and none for the others."""

    def __init__(self, num_sequences: int, max_steps: int, num_layers: int) -> None:
        """Buffers are made on first use, in the dtype and on the device of what arrives."""
        self._shape = (num_sequences, max_steps)
        self._layers: list[tuple[Tensor, Tensor] | None] = [None] * num_layers
        self._writing: Tensor | None = None
        self.length = 0
        self.row_bounds: tuple[int, ...] = ()

    def begin(self, writing: Sequence[int]) -> None:
        """Begin a step of these sequences, ascending; whoever is not among them never is again."""
        num_sequences, max_steps = self._shape
        assert self.length < max_steps
        rows = dict.fromkeys(writing, 1)
        self.length += 1
        self.row_bounds = (0, *accumulate(rows.get(n, 0) for n in range(num_sequences)))
        self._writing = torch.tensor(writing) if len(writing) < num_sequences else None

    def extend(self, layer: int, k_WGD: Tensor, v_WGD: Tensor) -> OwnRows:
        """Put this step's pairs behind the earlier ones; all of them, packed by sequence, and the bounds. What stands
        in this step's place of a sequence that has stopped is read by no row."""
        buffers = self._layers[layer]
        if buffers is None:
            shape = (*self._shape, *k_WGD.shape[1:])
            buffers = self._layers[layer] = (k_WGD.new_empty(shape), v_WGD.new_empty(shape))
        if self._writing is not None:
            self._writing = self._writing.to(k_WGD.device)  # once a step: all layers' pairs are on one device
        packed: list[Tensor] = []
        for buffer, new in zip(buffers, (k_WGD, v_WGD), strict=True):
            place = buffer[:, self.length - 1]
            if self._writing is None:
                place.copy_(new)
            else:
                place.index_copy_(0, self._writing, new)
            packed.append(buffer[:, : self.length].flatten(0, 1))
        bounds = tuple(range(0, self.length * self._shape[0] + 1, self.length))
        return OwnRows(packed[0], packed[1], bounds)


@dataclass(frozen=True)
class TailOwn:
    """Rows are a step of decoding: each reads itself and the steps of its sequence before it."""

    backend: Backend
    tail: Tail
    wants_hidden: ClassVar[bool] = False

    def attend(self, sight: Sight) -> Partial:
        """As ``Own.attend``."""
        k_SGD, v_SGD, bounds = self.rows(sight)
        rows = self.tail.row_bounds
        return self.backend.attend(sight.q_THD, k_SGD, v_SGD, rows, bounds, causal=False, scale=sight.scale)

    def rows(self, sight: Sight) -> OwnRows:
        """As ``Own.rows``: this step's pairs go behind the earlier ones."""
        return self.tail.extend(sight.layer, sight.k_TGD, sight.v_TGD)
