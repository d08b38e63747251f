"""What the rows of a forward pass read: segments of key-value pairs, and themselves.

Every pass of the engine (a chunk after its anchor, probes after a chunk, a batch of prompts, one step of
decoding) is the same thing: T packed rows in sequences, each attending causally to its own rows and fully
to earlier *segments*, the partial results merged exactly. Segments are read where they lie; only the few
tokens that a batch has written are packed anew for each step. Invariants: positions live in the rotated
keys, so a segment may be read in any order; a segment is never written to while a pass reads it.

Shapes: T rows, H query heads, G key-value heads, D head dimension, S keys of a segment, L layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from workers.attention.base import Backend, Partial, merge
from workers.hf import Enough


@dataclass(frozen=True)
class Segment:
    """Rotated pairs that a pass reads in full, per layer [S, G, D]. ``bounds``: sequence i reads keys
    bounds[i]:bounds[i + 1]; None: all sequences read all of it."""

    keys: Sequence[Tensor]
    values: Sequence[Tensor]
    bounds: tuple[int, ...] | None = None


class Watcher(Protocol):
    """Looks at a layer's queries [T, H, D] before attention; used by scorers."""

    def see(self, layer: int, q_THD: Tensor, scale: float) -> None:
        """Called once per layer, in order."""
        ...


class SegmentPass:
    """An ``AttentionPass`` over segments. After the run, ``segment()`` is what its own rows left."""

    def __init__(
        self,
        backend: Backend,
        row_bounds: Sequence[int],
        segments: Sequence[Segment] = (),
        *,
        last_layer: int | None = None,
        watcher: Watcher | None = None,
        tail: Tail | None = None,
    ) -> None:
        """``row_bounds``: T rows in sequences, as bounds. ``last_layer``: end the pass there, once its pairs are
        known. ``tail``: rows are decoding steps, one per sequence, and their pairs go there."""
        self._backend = backend
        self._row_bounds = tuple(row_bounds)
        self._segments = tuple(segment for segment in segments if segment.keys[0].shape[0])
        self._last_layer = last_layer
        self._watcher = watcher
        self._tail = tail
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []

    def attend(self, layer: int, q_THD: Tensor, k_TGD: Tensor, v_TGD: Tensor, scale: float) -> Tensor:
        """Attention of all rows over segments and self, merged exactly. [T, H, D]."""
        if self._watcher is not None:
            self._watcher.see(layer, q_THD, scale)
        if self._tail is None:
            self._keys.append(k_TGD)
            self._values.append(v_TGD)
        if layer == self._last_layer:
            raise Enough
        partial = self._own(layer, q_THD, k_TGD, v_TGD, scale)
        for segment in self._segments:
            partial = merge(partial, self._read(segment, layer, q_THD, scale))
        return partial.out_THD

    def segment(self) -> Segment:
        """The pairs of this pass's own rows, split by its sequences, for later passes to read."""
        return Segment(self._keys, self._values, self._row_bounds)

    def shared_segment(self) -> Segment:
        """The same pairs, for every sequence of a later pass to read in full."""
        return Segment(self._keys, self._values)

    def _own(self, layer: int, q_THD: Tensor, k_TGD: Tensor, v_TGD: Tensor, scale: float) -> Partial:
        if self._tail is not None:
            k_SGD, v_SGD, bounds = self._tail.extend(layer, k_TGD, v_TGD)
            return self._backend.attend(q_THD, k_SGD, v_SGD, self._row_bounds, bounds, causal=False, scale=scale)
        bounds = self._row_bounds
        return self._backend.attend(q_THD, k_TGD, v_TGD, bounds, bounds, causal=True, scale=scale)

    def _read(self, segment: Segment, layer: int, q_THD: Tensor, scale: float) -> Partial:
        k_SGD, v_SGD = segment.keys[layer], segment.values[layer]
        rows, keys = self._row_bounds, segment.bounds
        if keys is None:  # one run of keys for everybody: all rows are one sequence
            rows, keys = (0, q_THD.shape[0]), (0, k_SGD.shape[0])
        return self._backend.attend(q_THD, k_SGD, v_SGD, rows, keys, causal=False, scale=scale)


class Tail:
    """The pairs that decoding adds, one token per sequence and step: per layer [N sequences, steps, G, D]."""

    def __init__(self, num_sequences: int, max_steps: int, num_layers: int) -> None:
        """Buffers are made on first use, in the dtype and on the device of what arrives."""
        self._shape = (num_sequences, max_steps)
        self._layers: list[tuple[Tensor, Tensor] | None] = [None] * num_layers
        self.step = 0

    def extend(self, layer: int, k_NGD: Tensor, v_NGD: Tensor) -> tuple[Tensor, Tensor, tuple[int, ...]]:
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
        return packed[0], packed[1], bounds


def concatenate(segments: Sequence[Segment], bounds: tuple[int, ...] | None = None) -> Segment:
    """Several segments one behind the other, as one."""
    layers = range(len(segments[0].keys))
    return Segment(
        [torch.cat([segment.keys[layer] for segment in segments]) for layer in layers],
        [torch.cat([segment.values[layer] for segment in segments]) for layer in layers],
        bounds,
    )
