"""Pairs in pages, of which a step of decoding reads the few that its queries could attend to most (Quest).

Invariants: the bound of a page is never below the logit of any of its keys (before scale); every row and kv head
chooses for itself, from what was computed once; pages that are not chosen are not read; a run of pairs that is not
longer than what may be read is read whole.

Shapes: T rows, H query heads, G kv heads, R = H // G, D head dimension, S pairs of a layer; N runs of each kv head
(one per sequence, or one for all), P pages of the longest run, p tokens of a page, K pages read at most.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from configs import methods
from workers.attention.base import Backend, Partial
from workers.segments import HeadSegment, Readable, fold, unfold


@dataclass(frozen=True)
class TopPagesReader:
    """Each kv head reads the pages that its queries could attend to most, ``tokens`` in each step at most.

    Tang et al. 2024, "Quest: Query-Aware Sparsity for Efficient Long-Context LLM Inference"; there the first two
    layers read everything, here none does. Raises ValueError where ``tokens`` is less than a page.
    """

    page_tokens: int
    tokens: int

    def __post_init__(self) -> None:
        if self.tokens < self.page_tokens:
            raise ValueError(
                f"answer.reader.tokens: {self.tokens} is less than one page (answer.reader.page_tokens: "
                f"{self.page_tokens}); allowed: {self.page_tokens} or more"
            )

    @classmethod
    def of(cls, settings: methods.TopPagesReader) -> TopPagesReader:
        """As a job says it."""
        return cls(settings.page_tokens, settings.tokens)

    def over(self, segment: Readable) -> Readable:
        """The segment in pages; itself where no run is longer than ``tokens``."""
        by_head = segment.by_head()
        pages = tuple(
            Pages.of(keys, bounds, by_head.num_heads, self) if _longest(bounds) > self.tokens else None
            for keys, bounds in zip(by_head.keys, by_head.bounds, strict=True)
        )
        return PagedSegment(by_head, pages) if any(pages) else segment


@dataclass(frozen=True)
class Pages:
    """The runs of one layer in pages; the last page of a run may be shorter.

    ``extremes_GNEP``: for E = 2 D, the greatest of a page's keys in every dimension, then the least; float32.
    ``starts_GN``, ``stops_GN``: where a run lies among the layer's pairs. ``quota_GN``: how many of its pages are
    read. ``absent_GNP``: pages that it does not have.
    """

    extremes_GNEP: Tensor
    starts_GN: Tensor
    stops_GN: Tensor
    quota_GN: Tensor
    absent_GNP: Tensor
    most_pages: int
    page_tokens: int

    @classmethod
    def of(cls, keys_SD: Tensor, bounds: Sequence[int], num_heads: int, reader: TopPagesReader) -> Pages:
        """Cut a layer's runs, which lie as in ``HeadSegment``, into the reader's pages."""
        size, device = reader.page_tokens, keys_SD.device
        edges = torch.tensor(bounds, device=device)
        starts_GN, stops_GN = edges[:-1].view(num_heads, -1), edges[1:].view(num_heads, -1)
        lengths_GN = stops_GN - starts_GN
        pages_GN, num_pages = -(-lengths_GN // size), -(-_longest(bounds) // size)
        # Beyond its end a run repeats its last key, which changes no extreme; the pages of an empty one are absent.
        rows_GNS = starts_GN[..., None] + torch.arange(num_pages * size, device=device)
        rows_GNS = torch.minimum(rows_GNS, stops_GN[..., None] - 1)
        keys_GNPpD = keys_SD[rows_GNS].float().view(*starts_GN.shape, num_pages, size, keys_SD.shape[1])
        extremes_GNPE = torch.cat([keys_GNPpD.amax(3), keys_GNPpD.amin(3)], dim=-1)
        quota_GN = torch.where(lengths_GN <= reader.tokens, pages_GN, reader.tokens // size)
        return cls(
            extremes_GNPE.transpose(2, 3).contiguous(),
            starts_GN,
            stops_GN,
            quota_GN,
            torch.arange(num_pages, device=device) >= pages_GN[..., None],
            int(quota_GN.max()),
            size,
        )

    def of_rows(self, row_bounds: Sequence[int]) -> Pages:
        """One run of each kv head for each row, or the one that all rows read."""
        one_each = list(row_bounds) == list(range(len(row_bounds)))
        if one_each or self.starts_GN.shape[1] == 1:
            return self
        num_rows = torch.tensor([stop - start for start, stop in pairwise(row_bounds)])
        run_T = torch.arange(len(num_rows)).repeat_interleave(num_rows).to(self.starts_GN.device)
        by_run = ("extremes_GNEP", "starts_GN", "stops_GN", "quota_GN", "absent_GNP")
        return replace(self, **{name: getattr(self, name).index_select(1, run_T) for name in by_run})

    def bound(self, q_GTRD: Tensor) -> Tensor:
        """What no product of a row's R queries with a key of the page exceeds, [G, T, P] float32; -inf for absent
        pages."""
        (G, T, R, _), (_, N, _, P) = q_GTRD.shape, self.extremes_GNEP.shape
        # The sum over D of max(q * greatest, q * least) takes the greatest where q is positive, else the least.
        q_GTRE = torch.cat([q_GTRD.clamp(min=0), q_GTRD.clamp(max=0)], dim=-1).float()
        bound_GNXP = q_GTRE.reshape(G, N, T * R // N, -1) @ self.extremes_GNEP
        return bound_GNXP.view(G, T, R, P).amax(dim=2).masked_fill(self.absent_GNP, float("-inf"))

    def choose(self, q_GTRD: Tensor) -> tuple[Tensor, Tensor]:
        """Indices of the pairs that are read, kv head by kv head and in it row by row, and how many by each, [G, T]."""
        device = q_GTRD.device
        best_GTK = self.bound(q_GTRD).topk(self.most_pages).indices
        first_GTK = self.starts_GN[..., None] + best_GTK * self.page_tokens
        index_GTKp = first_GTK[..., None] + torch.arange(self.page_tokens, device=device)
        granted_GTK = torch.arange(self.most_pages, device=device) < self.quota_GN[..., None]
        read_GTKp = (index_GTKp < self.stops_GN[..., None, None]) & granted_GTK[..., None]
        return index_GTKp[read_GTKp], read_GTKp.sum(dim=(2, 3))


@dataclass(frozen=True)
class PagedSegment:
    """A segment that is read by its best pages. ``pages``: by layer; None: read whole."""

    whole: HeadSegment
    pages: tuple[Pages | None, ...]

    def attend(self, backend: Backend, layer: int, q_THD: Tensor, row_bounds: Sequence[int], scale: float) -> Partial:
        """Every row over the best pages of its sequence: a kv head of a row is a sequence of its own."""
        pages = self.pages[layer]
        if pages is None or not len(q_THD):
            return self.whole.attend(backend, layer, q_THD, row_bounds, scale)
        self.whole.check_sequences(row_bounds)
        heads = self.whole.num_heads
        folded = fold(q_THD, heads)
        index, counts_GT = pages.of_rows(row_bounds).choose(folded.view(heads, len(q_THD), *folded.shape[1:]))
        keys, values = (x[layer].index_select(0, index).unsqueeze(1) for x in (self.whole.keys, self.whole.values))
        cu_k = (0, *accumulate(counts_GT.flatten().tolist()))
        read = backend.attend(folded, keys, values, range(len(cu_k)), cu_k, causal=False, scale=scale)
        return unfold(read, heads)

    def last(self, layer: int, head: int, sequence: int, count: int) -> tuple[Tensor, Tensor]:
        """As ``Readable.last``; a window is shorter than what pages are worth choosing from, so all of it."""
        return self.whole.last(layer, head, sequence, count)

    def num_positions(self, sequence: int) -> int:
        """As ``Readable.num_positions``."""
        return self.whole.num_positions(sequence)

    def by_head(self) -> HeadSegment:
        """As ``Readable.by_head``: all of it."""
        return self.whole

    @property
    def num_bytes(self) -> int:
        """As ``Readable.num_bytes``, with the pages' extremes."""
        return self.whole.num_bytes + sum(pages.extremes_GNEP.nbytes for pages in self.pages if pages is not None)

    def __len__(self) -> int:
        return len(self.whole)


def _longest(bounds: Sequence[int]) -> int:
    return max(stop - start for start, stop in pairwise(bounds))
