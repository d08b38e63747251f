"""Pairs that earlier passes left, for the rows of a later pass to read in full.

A segment says itself how it is read, so that a pass knows only ``Readable``: keys that all heads share in one
table (``Segment``), or a run of its own for every kv head (``HeadSegment``: what a budget that tells heads apart
leaves). Both are one ragged call per layer. Invariants: keys are rotated at the positions that their reader gave
them, so pairs may be read in any order; nothing is written to; a head or sequence without pairs is legal, and its
rows get out 0 and log-sum-exp -inf, which ``merge`` takes as nothing.

A segment takes as many positions of a sequence as the longest of its kv heads, in any layer, has pairs; a head with
fewer has them at the last of these positions. That is all that a layer with a window needs to know (``windowed``).

Shapes: N sequences, T rows, H query heads, G kv heads, R = H // G, D head dimension, S pairs of a layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Protocol

import torch
from torch import Tensor

from workers.attention.base import Backend, Partial

HeadPart = Sequence[Sequence[tuple[Tensor, Tensor]]]
"""One sequence's pairs by layer and kv head: rotated keys and values, each [S, D]."""


class Readable(Protocol):
    """Pairs that the rows of a pass can read."""

    def attend(self, backend: Backend, layer: int, q_THD: Tensor, row_bounds: Sequence[int], scale: float) -> Partial:
        """Every row over all the keys of its sequence (rows ``row_bounds[n]:row_bounds[n + 1]``), whatever their
        positions. ValueError where the pairs are of another number of sequences."""
        ...

    def last(self, layer: int, head: int, sequence: int, count: int) -> tuple[Tensor, Tensor]:
        """The last ``count`` pairs that a sequence has of a kv head, all of them where there are fewer: keys and
        values [<= count, D], in the order of their positions."""
        ...

    def num_positions(self, sequence: int) -> int:
        """How many positions the segment takes in a sequence."""
        ...

    def by_head(self) -> HeadSegment:
        """The same pairs kv head by kv head; copied unless they lie so already."""
        ...

    @property
    def num_bytes(self) -> int:
        """Bytes of the tensors that are held."""
        ...

    def __len__(self) -> int:
        """Rows of pairs over all layers; 0: nothing to read, which a pass leaves out."""
        ...


@dataclass(frozen=True)
class Segment:
    """Pairs that all kv heads have of the same tokens, per layer [S, G, D]. ``bounds``: sequence n reads the pairs
    ``bounds[n]:bounds[n + 1]``; None: all sequences read all of it."""

    keys: Sequence[Tensor]
    values: Sequence[Tensor]
    bounds: tuple[int, ...] | None = None

    def attend(self, backend: Backend, layer: int, q_THD: Tensor, row_bounds: Sequence[int], scale: float) -> Partial:
        """As ``Readable.attend``."""
        k_SGD, v_SGD = self.keys[layer], self.values[layer]
        rows, bounds = row_bounds, self.bounds
        if bounds is None:  # one run of keys for everybody: all rows are one sequence
            rows, bounds = (0, len(q_THD)), (0, len(k_SGD))
        return backend.attend(q_THD, k_SGD, v_SGD, rows, bounds, causal=False, scale=scale)

    def last(self, layer: int, head: int, sequence: int, count: int) -> tuple[Tensor, Tensor]:
        """As ``Readable.last``."""
        start, stop = self._run(layer, sequence)
        rows = slice(max(start, stop - count), stop)
        return self.keys[layer][rows, head], self.values[layer][rows, head]

    def num_positions(self, sequence: int) -> int:
        """As ``Readable.num_positions``."""
        start, stop = self._run(0, sequence)
        return stop - start

    def _run(self, layer: int, sequence: int) -> tuple[int, int]:
        """Where a sequence's pairs lie in a layer."""
        return (0, len(self.keys[layer])) if self.bounds is None else (self.bounds[sequence], self.bounds[sequence + 1])

    def by_head(self) -> HeadSegment:
        """As ``Readable.by_head``."""
        keys, values = ([x.transpose(0, 1).flatten(0, 1) for x in layers] for layers in (self.keys, self.values))
        bounds = [_repeated(self.bounds or (0, len(x)), x.shape[1]) for x in self.keys]
        return HeadSegment(keys, values, bounds, None if self.bounds is None else len(self.bounds) - 1)

    @property
    def num_bytes(self) -> int:
        """As ``Readable.num_bytes``."""
        return sum(tensor.nbytes for tensor in (*self.keys, *self.values))

    def __len__(self) -> int:
        return sum(map(len, self.keys))


@dataclass(frozen=True)
class HeadSegment:
    """Pairs of which every kv head has its own, per layer [S, D]. The runs of a layer lie kv head by kv head and in it
    sequence by sequence; ``bounds[layer]``: where each begins, and where the last ends. ``num_sequences``: None
    where all sequences read all of it."""

    keys: Sequence[Tensor]
    values: Sequence[Tensor]
    bounds: Sequence[tuple[int, ...]]
    num_sequences: int | None

    @classmethod
    def pack(cls, parts: Sequence[HeadPart]) -> HeadSegment:
        """Sequence n reads ``parts[n]``. All parts have the same layers, heads, dtype and device."""
        layers = [[pairs for runs in zip(*layer, strict=True) for pairs in runs] for layer in zip(*parts, strict=True)]
        return cls(
            [torch.cat([keys for keys, _ in runs]) for runs in layers],
            [torch.cat([values for _, values in runs]) for runs in layers],
            [(0, *accumulate(len(keys) for keys, _ in runs)) for runs in layers],
            len(parts),
        )

    @classmethod
    def shared(cls, part: HeadPart) -> HeadSegment:
        """Every sequence reads ``part``."""
        alone = cls.pack([part])
        return cls(alone.keys, alone.values, alone.bounds, None)

    @property
    def num_heads(self) -> int:
        """kv heads of a layer."""
        return (len(self.bounds[0]) - 1) // (self.num_sequences or 1)

    def attend(self, backend: Backend, layer: int, q_THD: Tensor, row_bounds: Sequence[int], scale: float) -> Partial:
        """As ``Readable.attend``: a kv head of a sequence is a sequence of R query heads over one kv head."""
        rows = (0, len(q_THD)) if self.num_sequences is None else row_bounds
        keys, values = self.keys[layer].unsqueeze(1), self.values[layer].unsqueeze(1)
        cu_q = _repeated(rows, self.num_heads)
        folded = backend.attend(
            fold(q_THD, self.num_heads), keys, values, cu_q, self.bounds[layer], causal=False, scale=scale
        )
        return unfold(folded, self.num_heads)

    def last(self, layer: int, head: int, sequence: int, count: int) -> tuple[Tensor, Tensor]:
        """As ``Readable.last``."""
        run = head * (self.num_sequences or 1) + self._own(sequence)
        start, stop = self.bounds[layer][run : run + 2]
        rows = slice(max(start, stop - count), stop)
        return self.keys[layer][rows], self.values[layer][rows]

    def num_positions(self, sequence: int) -> int:
        """As ``Readable.num_positions``."""
        return self._longest[self._own(sequence)]

    @cached_property
    def _longest(self) -> tuple[int, ...]:
        """The longest run of each sequence, or of the one that all share."""
        count = self.num_sequences or 1
        lengths = [[stop - start for start, stop in pairwise(bounds)] for bounds in self.bounds]
        return tuple(max(max(runs[n::count]) for runs in lengths) for n in range(count))

    def _own(self, sequence: int) -> int:
        return 0 if self.num_sequences is None else sequence

    def check_sequences(self, row_bounds: Sequence[int]) -> None:
        """Raise ValueError unless the rows are of as many sequences as the pairs, or all sequences read all."""
        if self.num_sequences not in (None, len(row_bounds) - 1):
            raise ValueError(f"pairs of {self.num_sequences} sequences, rows of {len(row_bounds) - 1}: want as many")

    def by_head(self) -> HeadSegment:
        """As ``Readable.by_head``: itself."""
        return self

    @property
    def num_bytes(self) -> int:
        """As ``Readable.num_bytes``."""
        return sum(tensor.nbytes for tensor in (*self.keys, *self.values))

    def __len__(self) -> int:
        return sum(map(len, self.keys))


def fold(q_THD: Tensor, num_kv_heads: int) -> Tensor:
    """Queries as rows [G * T, R, D], kv head by kv head."""
    T, H, D = q_THD.shape
    return q_THD.reshape(T, num_kv_heads, H // num_kv_heads, D).transpose(0, 1).flatten(0, 1)


def unfold(folded: Partial, num_kv_heads: int) -> Partial:
    """What rows in the order of ``fold`` got, as [T, H] again."""
    T = len(folded.out_THD) // num_kv_heads
    out_THD, lse_TH = (x.reshape(num_kv_heads, T, *x.shape[1:]).transpose(0, 1).flatten(1, 2) for x in folded)
    return Partial(out_THD, lse_TH)


def concatenate(segments: Sequence[Segment], bounds: tuple[int, ...] | None = None) -> Segment:
    """Several segments one behind the other, as one."""
    layers = range(len(segments[0].keys))
    return Segment(
        [torch.cat([segment.keys[layer] for segment in segments]) for layer in layers],
        [torch.cat([segment.values[layer] for segment in segments]) for layer in layers],
        bounds,
    )


def _repeated(bounds: Sequence[int], times: int) -> tuple[int, ...]:
    """The bounds of runs that are repeated, one row of them behind the other."""
    return (*(turn * bounds[-1] + start for turn in range(times) for start in bounds[:-1]), times * bounds[-1])
