"""From a chunk's pairs to what the store keeps of them, and from kept sets back to what an answer reads.

A chunk cannot know what its document will keep, so it *offers*: per layer and kv head its own best tokens, as many
as the whole document may keep, and its edges, into which a neighbour's best may be widened. Once the document is
read, the kept sets of its chunks are cut down to the document's choice and put side by side. Invariants: what is
kept is un-rotated, at positions relative to its chunk; what is read stands where it stood in its document, or at
compact positions, the last of every head directly before the question.

Shapes: T kept tokens of one layer, N of a chunk's entry, K of them that a query keeps, S pairs of one layer and all
queries, L layers, G kv heads, D head dimension, B blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cache_store.block import Entry, HeadPairs, KVBlock
from workers.context import positions_of
from workers.hf import LanguageModel
from workers.messages import Chunk, Interval, Query
from workers.segments import HeadSegment, Readable, Segment
from workers.selection.budgets.base import BlockTable, Budget, Choice


@dataclass(frozen=True)
class Keeping:
    """How much a chunk may offer: the budget, the document's ``tokens`` per layer and head, blocks and edges.

    With ``chunk_fraction`` a chunk offers at most this share of its own tokens, on average over layers and heads, and
    no edges: what it leaves is small, and the same whatever else stands in its document. Otherwise it offers all that
    the document could choose.
    """

    budget: Budget
    tokens: int
    block_tokens: int
    widen_tokens: int
    chunk_fraction: float | None = None

    def most(self, num_tokens: int) -> int | None:
        """The tokens that a chunk of ``num_tokens`` may offer per layer and head, where that is less than the whole
        budget: one block at least."""
        if self.chunk_fraction is None:
            return None
        own = max(self.block_tokens, int(self.chunk_fraction * num_tokens))
        return own if own < self.tokens else None

    def bound(self, num_tokens: int) -> int:
        """The most tokens that a chunk of ``num_tokens`` offers per layer and head, on average."""
        most = self.most(num_tokens)
        offered = self.budget.most(self.tokens) + 2 * self.widen_tokens if most is None else most
        return min(num_tokens, offered)

    def offer(self, num_tokens: int, shares_LGB: NDArray[np.float64]) -> Choice:
        """Which of a chunk's ``num_tokens`` tokens are offered, given its own shares."""
        table = BlockTable.of_chunks([(0, num_tokens)], [shares_LGB], self.block_tokens)
        most = self.most(num_tokens)
        if most is not None:
            return self.budget.choose(table, most)
        edge = min(self.widen_tokens, num_tokens)
        edges = ((0, edge), (num_tokens - edge, num_tokens)) if edge else ()
        chosen = self.budget.offer(table, self.tokens)
        return Choice(chosen.shape, tuple(joined((*runs, *edges)) for runs in chosen.kept))

    def record(self, num_tokens: int) -> dict[str, object]:
        """What decides what a chunk of ``num_tokens`` offers, besides its shares, as plain JSON values."""
        most = self.most(num_tokens)
        amount = {"tokens": self.tokens} if most is None else {"most": most}
        return {"widen_tokens": self.widen_tokens, **amount, **self.budget.record}


def joined(intervals: Sequence[Interval]) -> tuple[Interval, ...]:
    """The union of intervals, sorted and disjoint."""
    union: list[Interval] = []
    for start, stop in sorted(intervals):
        if union and start <= union[-1][1]:
            union[-1] = (union[-1][0], max(stop, union[-1][1]))
        elif start < stop:
            union.append((start, stop))
    return tuple(union)


def scores_only(entry: Entry) -> KVBlock:
    """The entry of a chunk of which text is kept, and no pairs."""
    return KVBlock.of_heads(entry, [])


def kept_block(entry: Entry, model: LanguageModel, pairs: Segment, places: range, choice: Choice) -> KVBlock:
    """The entry of a chunk: the chosen pairs of a reading at ``places``, un-rotated, as the identity's codec holds
    them."""
    shape = model.shape
    positions = {kept: positions_of(kept) for kept in set(choice.kept)}
    counts, rows, keys, values = [], [], [], []
    for layer in range(shape.num_layers):
        own = [positions[choice.of(layer, head)] for head in range(shape.num_kv_heads)]
        counts.append([len(rows_T) for rows_T in own])
        rows.append(torch.cat(own))
        heads_T = torch.arange(shape.num_kv_heads).repeat_interleave(torch.tensor(counts[-1]))
        # Only what is kept is un-rotated, and leaves the device.
        keys_TD = pairs.keys[layer][rows[-1], heads_T]
        keys.append(model.unrotate(keys_TD[:, None], rows[-1] + places.start, layer=layer)[:, 0].cpu())
        values.append(pairs.values[layer][rows[-1], heads_T].cpu())
    counts_LG = torch.tensor(counts, dtype=torch.int32)
    kept = HeadPairs(torch.cat(rows), torch.cat(keys), torch.cat(values))
    return KVBlock.of_rows(entry, counts_LG, kept)


def offered_by(block: KVBlock) -> tuple[tuple[Interval, ...], ...]:
    """Where in its chunk a block holds pairs, per layer and kv head; one entry where they all agree."""
    counts, positions_N = block.counts_LG.flatten().numpy(), block.positions_N.numpy()
    if (counts == counts[0]).all() and (positions_N.reshape(len(counts), -1) == positions_N[: counts[0]]).all():
        return (runs_of(positions_N[: counts[0]]),)
    return tuple(runs_of(own) for own in np.split(positions_N, counts.cumsum()[:-1]))


def runs_of(positions_T: NDArray[np.int32]) -> tuple[Interval, ...]:
    """Ascending positions as intervals, none touching the next."""
    if not len(positions_T):
        return ()
    last = np.flatnonzero(np.diff(positions_T) != 1)
    starts, stops = positions_T[[0, *(last + 1)]], positions_T[[*last, -1]] + 1
    return tuple(zip(starts.tolist(), stops.tolist(), strict=True))


class KeptRows(NamedTuple):
    """What a query keeps of one block: the rows ``index_K`` of its pairs, of kv heads ``heads_K``, from ``places_K`` of
    the document; those of layer l are ``bounds[l]:bounds[l + 1]`` of the K."""

    block: KVBlock
    index_K: Tensor
    places_K: NDArray[np.int64]
    heads_K: NDArray[np.int64]
    bounds: tuple[int, ...]


@dataclass(frozen=True)
class KeptDocument:
    """One query and what the chunks of its document left, in order."""

    query: Query
    parts: tuple[tuple[Chunk, KVBlock], ...]

    @property
    def num_positions(self) -> int:
        """Positions that it takes: the document's, or where pairs are moved together those of its longest head."""
        if self.query.spread is not None:
            return self.query.spread
        return max(sum(stop - start for start, stop in kept) for kept in self.query.kept)

    def rows(self) -> list[KeptRows]:
        """Per chunk what the query keeps of it, layer by layer, in it head by head, in document order."""
        if not self.parts:
            return []
        layers, heads = self.parts[0][1].counts_LG.shape
        choice = Choice(self.query.shape, self.query.kept)
        # One search for all layers and heads: each has a stretch of the number line to itself.
        stretch = max(chunk.start + len(chunk.token_ids) for chunk, _ in self.parts)
        lines = [
            np.array(choice.of(layer, head), dtype=np.int64).reshape(-1, 2) + (layer * heads + head) * stretch
            for layer in range(layers)
            for head in range(heads)
        ]
        starts, stops = np.concatenate(lines).T
        rows = []
        for chunk, block in self.parts:
            entry_N = np.repeat(np.arange(layers * heads), block.counts_LG.flatten().numpy())
            line_N = block.positions_N.numpy() + chunk.start + entry_N * stretch
            # Inside an interval more starts than stops have been passed.
            inside_N = np.searchsorted(starts, line_N, side="right") > np.searchsorted(stops, line_N, side="right")
            index_K = np.flatnonzero(inside_N)
            bounds = np.searchsorted(entry_N[index_K], np.arange(layers + 1) * heads)
            places_K = block.positions_N.numpy()[index_K] + chunk.start
            heads_K = entry_N[index_K] % heads
            rows.append(KeptRows(block, torch.from_numpy(index_K), places_K, heads_K, tuple(bounds.tolist())))
        return rows


def assemble(
    model: LanguageModel, documents: Sequence[KeptDocument], first_position: int
) -> tuple[Readable, list[int]]:
    """What a batch of queries reads, one sequence each, at positions from ``first_position``; and how many positions
    each takes."""
    kept = [(document, document.rows()) for document in documents]
    layers = range(model.shape.num_layers)
    keys, values, bounds = zip(*(_packed(model, kept, first_position, layer) for layer in layers), strict=True)
    lengths = [document.num_positions for document in documents]
    if any(document.query.shape != (1, 1) for document in documents):
        return HeadSegment(keys, values, bounds, len(documents)), lengths
    own = bounds[0][: len(documents) + 1]
    return Segment([_even(x, model) for x in keys], [_even(x, model) for x in values], own), lengths


def _packed(
    model: LanguageModel, kept: Sequence[tuple[KeptDocument, Sequence[KeptRows]]], first_position: int, layer: int
) -> tuple[Tensor, Tensor, tuple[int, ...]]:
    """One layer's pairs as ``HeadSegment`` has them: keys and values [S, D], kv head by kv head and in it query by
    query, and the bounds of these runs."""
    none, nowhere = torch.empty(0, model.shape.head_dim, dtype=model.dtype), np.empty(0, dtype=np.int64)
    keys, values, places, runs = [none], [none], [nowhere], [nowhere]
    for query, (_, parts) in enumerate(kept):
        for block, index_K, places_K, heads_K, bounds in parts:
            own = slice(*bounds[layer : layer + 2])
            entries_K = torch.from_numpy(heads_K[own] + layer * model.shape.num_kv_heads)
            for tensors, found_KD in zip((keys, values), block.pairs(index_K[own], entries_K), strict=True):
                tensors.append(found_KD)
            places.append(places_K[own])
            runs.append(heads_K[own] * len(kept) + query)
    run_S = np.concatenate(runs)
    order_S = np.argsort(run_S, kind="stable")
    counts = np.bincount(run_S, minlength=model.shape.num_kv_heads * len(kept))
    ends = counts.cumsum()
    ahead = np.tile([document.num_positions for document, _ in kept], model.shape.num_kv_heads) - ends
    together_S = np.arange(len(run_S)) + np.repeat(ahead, counts)
    stays_S = np.array([document.query.spread is not None for document, _ in kept])[run_S[order_S] % len(kept)]
    places_S = torch.from_numpy(np.where(stays_S, np.concatenate(places)[order_S], together_S) + first_position)
    rows_S = torch.from_numpy(order_S)
    keys_SD = model.rotate(torch.cat(keys)[rows_S][:, None], places_S, layer=layer)[:, 0]
    return keys_SD, torch.cat(values)[rows_S].to(model.device, model.dtype), (0, *ends.tolist())


def _even(x_SD: Tensor, model: LanguageModel) -> Tensor:
    """Runs of the same tokens, kv head by kv head, as [S, G, D]."""
    return x_SD.view(model.shape.num_kv_heads, -1, x_SD.shape[1]).transpose(0, 1).contiguous()
