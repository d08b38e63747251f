"""How much of a document is kept, and where, given how relevant its blocks are.

A budget does not know who scored, a scorer does not know the budget. Invariants: a chosen run lies inside what was
offered; the mean over layers and kv heads of what is kept never exceeds the tokens that were granted; the result
depends on the values only, not on the order in which they were computed (ties fall to the earlier block).

The law of offers: chunks are read apart, and each holds only what ``offer`` chose of it alone, and its edges (as many
tokens as a block is widened by). Choosing over the whole document then keeps exactly what it would keep if everything
were held, however the shares of each chunk, layer and head were scaled when it offered. That is why filling ends at the
first block that does not fit whole: what ends it in a chunk, with the whole budget for itself, ends it in the document.

Shapes: B blocks, L layers or 1, G key-value heads or 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from workers.messages import Interval


@dataclass(frozen=True)
class BlockTable:
    """The blocks of a document or of one chunk, in order: position ranges, chunk index, and their shares of relevance.

    ``share_LGB``: per layer and kv head, on average over which they sum to 1, or [1, 1, B] where nobody tells them
    apart. ``offered``: the only positions that can be kept, per layer and kv head of the model (row by row, or one
    entry for all); None: everything.
    ``extent``: how far a block may be widened, where the blocks are only some of a document's; None: from the first
    to the last of them.
    """

    starts_B: NDArray[np.int64]
    stops_B: NDArray[np.int64]
    chunk_B: NDArray[np.int64]
    share_LGB: NDArray[np.float64]
    offered: tuple[tuple[Interval, ...], ...] | None = None
    extent: Interval | None = None

    @classmethod
    def of_chunks(
        cls,
        extents: Sequence[Interval],
        shares: Sequence[NDArray[np.float64]],
        block_tokens: int,
        offered: tuple[tuple[Interval, ...], ...] | None = None,
    ) -> BlockTable:
        """Blocks of chunks in order, each cut into runs of ``block_tokens`` (the last may be shorter). ``shares``: per
        chunk [L, G, B_c]."""
        starts = [np.arange(start, stop, block_tokens) for start, stop in extents]
        stops = [np.minimum(s + block_tokens, stop) for s, (_, stop) in zip(starts, extents, strict=True)]
        chunks = [np.full(len(s), index) for index, s in enumerate(starts)]
        return cls(
            np.concatenate(starts),
            np.concatenate(stops),
            np.concatenate(chunks),
            np.concatenate(list(shares), axis=2),
            offered,
        )

    @property
    def joint_B(self) -> NDArray[np.float64]:
        """How relevant a block's text is: the mean over layers and kv heads of its part of what each has to say, so
        that each has one vote. Sums to 1 over the document."""
        total_LG1 = self.share_LGB.sum(axis=2, keepdims=True)
        vote_LGB = np.full_like(self.share_LGB, 1.0 / self.share_LGB.shape[2])
        np.divide(self.share_LGB, total_LG1, out=vote_LGB, where=total_LG1 > 0.0)
        joint_B: NDArray[np.float64] = vote_LGB.mean(axis=(0, 1))
        return joint_B

    def joint(self) -> BlockTable:
        """The same blocks on one scale for all layers and heads, for choosing text."""
        return replace(self, share_LGB=self.joint_B[None, None], offered=None)

    def relevance_of(self, interval: Interval) -> float:
        """Share of the relevance inside an interval; a block cut by its border counts in proportion."""
        overlap = np.minimum(self.stops_B, interval[1]) - np.maximum(self.starts_B, interval[0])
        return float((self.joint_B * np.clip(overlap, 0, None) / (self.stops_B - self.starts_B)).sum())


@dataclass(frozen=True)
class Choice:
    """What is kept: sorted, disjoint intervals per layer and kv head (row by row, ``shape`` = (L, G)); ``shape`` is
    (1, 1) where every layer and head keeps the same tokens, (L, 1) where the heads of a layer do."""

    shape: tuple[int, int]
    kept: tuple[tuple[Interval, ...], ...]

    def of(self, layer: int, head: int) -> tuple[Interval, ...]:
        """The intervals of one layer and kv head of the model."""
        rows, columns = self.shape
        return self.kept[(layer if rows > 1 else 0) * columns + (head if columns > 1 else 0)]

    @property
    def tokens(self) -> float:
        """Tokens kept, on average over layers and heads."""
        return sum(stop - start for run in self.kept for start, stop in run) / len(self.kept)


class Budget(Protocol):
    """How much, and where? One frozen dataclass per method of the literature."""

    @property
    def record(self) -> dict[str, object]:
        """Everything that decides its choice, as plain JSON values, its ``kind`` included."""
        ...

    def choose(self, table: BlockTable, tokens: int) -> Choice:
        """What is kept when ``tokens`` are granted per layer and kv head, on average."""
        ...

    def offer(self, table: BlockTable, tokens: int) -> Choice:
        """What a chunk read apart must hold: everything of it that ``choose`` could keep for a whole document."""
        ...

    def most(self, tokens: int) -> int:
        """The most tokens that any one layer and head may keep then: what must fit into the window."""
        ...


class Filling:
    """What one layer and head keeps so far of a table's tokens. ``spent``: how many."""

    def __init__(self, table: BlockTable, widen_tokens: int, offered: Sequence[Interval] | None) -> None:
        """Nothing is kept yet. ``offered``: the only positions that can be; None: all."""
        self._first, self._last = table.extent or (int(table.starts_B[0]), int(table.stops_B[-1]))
        self._table = table
        self._widen_tokens = widen_tokens
        self._kept = np.zeros(self._last - self._first, dtype=bool)
        self._free: NDArray[np.bool_] | None = None
        if offered is not None:
            self._free = np.zeros_like(self._kept)
            for start, stop in offered:
                self._free[max(0, start - self._first) : max(0, stop - self._first)] = True
        self.spent = 0

    def add(self, block: int, left: int) -> bool:
        """Keep a block, widened on both sides by as much as ``left`` tokens allow; whether that was all of it.

        What must fit is the whole block, offered or not; what is spent is what was offered of it.
        """
        start, stop = int(self._table.starts_B[block]), int(self._table.stops_B[block])
        for widen in range(self._widen_tokens, -1, -1):
            first, last = max(self._first, start - widen), min(self._last, stop + widen)
            inside = self._kept[first - self._first : last - self._first]
            if last - first - np.count_nonzero(inside) <= left:
                self.keep((first, last))
                return widen == self._widen_tokens
        return False

    def keep(self, interval: Interval) -> None:
        """Keep what was offered of an interval, whatever it costs."""
        window = slice(max(0, interval[0] - self._first), max(0, interval[1] - self._first))
        inside = self._kept[window]
        before = np.count_nonzero(inside)
        inside |= True if self._free is None else self._free[window]
        self.spent += int(np.count_nonzero(inside) - before)

    def intervals(self) -> tuple[Interval, ...]:
        """What is kept: sorted, disjoint, none touching the next."""
        return tuple((start + self._first, stop + self._first) for start, stop in runs(self._kept))


def fill(
    table: BlockTable,
    order: NDArray[np.int64],
    tokens: int,
    widen_tokens: int,
    offered: Sequence[Interval] | None = None,
) -> tuple[Interval, ...]:
    """Blocks in this order, each widened by ``widen_tokens`` on both sides, until one does not fit into ``tokens``;
    that one is widened by as much as fits. Sorted, disjoint intervals inside ``offered`` (None: everything)."""
    filling = Filling(table, widen_tokens, offered)
    for block in order:
        if not filling.add(block, tokens - filling.spent):
            break
    return filling.intervals()


def fill_each(
    table: BlockTable, orders: Sequence[NDArray[np.int64]], tokens_LG: NDArray[np.int64], widen_tokens: int
) -> Choice:
    """Every layer and head keeps ``tokens_LG`` of its own best blocks; ``orders`` are those of the shares' layers and
    heads, row by row, as ``best_of_each`` makes them. Work that layers and heads share is done once."""
    layers, heads = tokens_LG.shape
    share_layers, share_heads, _ = table.share_LGB.shape
    assert share_layers in (1, layers) and share_heads in (1, heads), "shares of another model"
    done: dict[tuple[int, int, tuple[Interval, ...] | None], tuple[Interval, ...]] = {}
    kept = []
    for layer, head in np.ndindex(layers, heads):
        row = (layer if share_layers > 1 else 0) * share_heads + (head if share_heads > 1 else 0)
        tokens, offered = int(tokens_LG[layer, head]), offered_to(table, layer * heads + head, layers * heads)
        case = (row, tokens, offered)
        if case not in done:
            done[case] = fill(table, orders[row], tokens, widen_tokens, offered)
        kept.append(done[case])
    return Choice((layers, heads), tuple(kept))


def fill_above(table: BlockTable, enough_LG: NDArray[np.float64], tokens: int, widen_tokens: int) -> Choice:
    """Every layer and head of the shares keeps its blocks with at least that share, and always its best one, up to
    ``tokens``."""
    passing_LG = (table.share_LGB >= enough_LG[..., None]).sum(axis=2)
    orders = [order[: max(1, passing)] for order, passing in zip(best_of_each(table), passing_LG.ravel(), strict=True)]
    return fill_each(table, orders, np.full(passing_LG.shape, tokens), widen_tokens)


def best_first(table: BlockTable, share_B: NDArray[np.float64]) -> NDArray[np.int64]:
    """Block indices by falling share; ties fall to the earlier block."""
    return np.lexsort((table.starts_B, -share_B))


def best_of_each(table: BlockTable) -> list[NDArray[np.int64]]:
    """``best_first`` for each layer and head of the shares, row by row."""
    return [best_first(table, share_B) for share_B in table.share_LGB.reshape(-1, len(table.starts_B))]


def offered_to(table: BlockTable, index: int, count: int) -> tuple[Interval, ...] | None:
    """What is offered to entry ``index`` of a choice with ``count`` entries. Where an entry of the choice stands for
    several heads of the model, what the first of them offers: they were chosen together, so they hold the same."""
    if table.offered is None:
        return None
    each, rest = divmod(len(table.offered), count)
    assert len(table.offered) == 1 or rest == 0, "offers of another model"
    return table.offered[index * each if len(table.offered) > 1 else 0]


def runs(mask: NDArray[np.bool_]) -> list[Interval]:
    """Maximal runs of True, as half-open intervals."""
    edges = np.flatnonzero(np.diff(np.concatenate(([0], mask.view(np.int8), [0]))))
    return [(int(start), int(stop)) for start, stop in edges.reshape(-1, 2)]
