"""Random kept sets, every kind of ``Readable`` over them, and the textbook's answer to hold them against."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from tests.workers.attention.conftest import Sitting
from tests.workers.attention.ragged import Ragged, softmax64
from workers.attention.base import Backend, Partial
from workers.pages import PagedSegment, Pages, TopPagesReader
from workers.segments import HeadPart, HeadSegment, Readable, Segment

SCALE = 0.3


@dataclass(frozen=True)
class Kept:
    """``lengths[n][layer][head]``: pairs of a sequence; equal in all heads and layers where a ``Segment`` is made."""

    lengths: tuple[tuple[tuple[int, ...], ...], ...]
    head_dim: int = 8

    @classmethod
    def even(cls, *tokens: int, layers: int = 2, heads: int = 2) -> Kept:
        """Sequences of so many tokens, the same in every layer and head."""
        return cls(tuple(((count,) * heads,) * layers for count in tokens))

    @property
    def num_heads(self) -> int:
        return len(self.lengths[0][0])

    def parts(self, sitting: Sitting, seed: int = 0) -> list[HeadPart]:
        generator = torch.Generator().manual_seed(seed)

        def draw(count: int) -> Tensor:
            rows = torch.randn(count, self.head_dim, generator=generator)
            return rows.to(sitting.device, sitting.dtype)

        return [[[(draw(count), draw(count)) for count in layer] for layer in part] for part in self.lengths]

    def queries(self, sitting: Sitting, rows: int, group: int = 3, seed: int = 1) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(rows, self.num_heads * group, self.head_dim, generator=generator).to(
            sitting.device, sitting.dtype
        )


@dataclass
class Counting:
    """A backend that remembers what it was called with."""

    backend: Backend
    calls: list[tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.backend.name

    def attend(
        self,
        q_THD: Tensor,
        k_SGD: Tensor,
        v_SGD: Tensor,
        cu_q: Sequence[int],
        cu_k: Sequence[int],
        *,
        causal: bool,
        scale: float,
        window: int | None = None,
    ) -> Partial:
        self.calls.append((tuple(cu_q), tuple(cu_k)))
        return self.backend.attend(q_THD, k_SGD, v_SGD, cu_q, cu_k, causal=causal, scale=scale, window=window)

    @property
    def read(self) -> list[int]:
        """Keys of each sequence of the last call."""
        return [stop - start for start, stop in pairwise(self.calls[-1][1])]


def _segment(parts: Sequence[HeadPart], shared: bool) -> Segment:
    layers = range(len(parts[0]))
    keys, values = (
        [torch.cat([torch.stack([pairs[x] for pairs in part[layer]], 1) for part in parts]) for layer in layers]
        for x in (0, 1)
    )
    return Segment(keys, values, None if shared else (0, *accumulate(len(part[0][0][0]) for part in parts)))


def _head_segment(parts: Sequence[HeadPart], shared: bool) -> HeadSegment:
    return HeadSegment.shared(parts[0]) if shared else HeadSegment.pack(parts)


def _paged(parts: Sequence[HeadPart], shared: bool) -> PagedSegment:
    """In pages that are all read."""
    whole = _head_segment(parts, shared)
    layers = zip(whole.keys, whole.bounds, strict=True)
    reader = TopPagesReader(page_tokens=3, tokens=10**6)
    return PagedSegment(whole, tuple(Pages.of(keys, bounds, whole.num_heads, reader) for keys, bounds in layers))


RAGGED: Mapping[str, Callable[[Sequence[HeadPart], bool], Readable]] = {"head": _head_segment, "paged": _paged}
READABLES: Mapping[str, Callable[[Sequence[HeadPart], bool], Readable]] = {"even": _segment, **RAGGED}
"""Makers of segments from parts, one per sequence, or from a single one that all sequences share."""


def attention64(part_of_row: Sequence[HeadPart], layer: int, q_THD: Tensor) -> Partial:
    """Row t over ``part_of_row[t]``, in float64, a row and a head at a time."""
    rows = []
    for part, q_HD in zip(part_of_row, q_THD, strict=True):
        heads = []
        for (k_SD, v_SD), q_RD in zip(part[layer], q_HD.chunk(len(part[layer])), strict=True):
            ragged = Ragged(q_RD[None], k_SD[:, None], v_SD[:, None], (0, 1), (0, len(k_SD)), SCALE)
            heads.append(softmax64(ragged, causal=False))
        rows.append(Partial(*(torch.cat(x, dim=1) for x in zip(*heads, strict=True))))
    return Partial(*(torch.cat(x) for x in zip(*rows, strict=True)))


def parts_of_rows(parts: Sequence[HeadPart], row_bounds: Sequence[int]) -> list[HeadPart]:
    """The part that each row reads; a single one is everybody's."""
    sequences = [n for n, (start, stop) in enumerate(pairwise(row_bounds)) for _ in range(start, stop)]
    return [parts[n if len(parts) > 1 else 0] for n in sequences]
