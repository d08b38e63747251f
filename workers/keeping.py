"""From a chunk's pairs to what the store keeps of them, and from kept sets back to what an answer reads.

A chunk cannot know what its document will keep, so it *offers*: per layer and kv head its own best tokens, as many
as the whole document may keep, and its edges, into which a neighbour's best may be widened. Once the document is
read, the kept sets of its chunks are cut down to the document's choice and put side by side. Invariants: what is
kept is un-rotated, at positions relative to its chunk; what is read stands at compact positions, the last of every
head directly before the question.

Shapes: C chunk tokens, T kept tokens of one layer and head, N of all, L layers, G kv heads, D head dimension,
B blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cache_store.block import BlockKey, HeadPairs, KVBlock
from workers.context import positions_of
from workers.hf import LanguageModel
from workers.messages import Chunk, Interval, Query
from workers.segments import HeadSegment, Readable, Segment
from workers.selection.budgets.base import BlockTable, Budget, Choice


@dataclass(frozen=True)
class Keeping:
    """How much a chunk may offer: the budget, the document's ``tokens`` per layer and head, blocks and edges."""

    budget: Budget
    tokens: int
    block_tokens: int
    widen_tokens: int

    def offer(self, num_tokens: int, shares_LGB: NDArray[np.float64]) -> Choice:
        """Which of a chunk's ``num_tokens`` tokens are offered, given its own shares."""
        table = BlockTable.of_chunks([(0, num_tokens)], [shares_LGB], self.block_tokens)
        edge = min(self.widen_tokens, num_tokens)
        edges = ((0, edge), (num_tokens - edge, num_tokens)) if edge else ()
        chosen = self.budget.offer(table, self.tokens)
        return Choice(chosen.shape, tuple(joined((*runs, *edges)) for runs in chosen.kept))


def joined(intervals: Sequence[Interval]) -> tuple[Interval, ...]:
    """The union of intervals, sorted and disjoint."""
    union: list[Interval] = []
    for start, stop in sorted(intervals):
        if union and start <= union[-1][1]:
            union[-1] = (union[-1][0], max(stop, union[-1][1]))
        elif start < stop:
            union.append((start, stop))
    return tuple(union)


def scores_only(key: BlockKey, scores_RHB: Tensor) -> KVBlock:
    """The entry of a chunk of which text is kept, and no pairs."""
    return KVBlock.of_heads(key, [], scores_RHB)


def kept_block(
    key: BlockKey, model: LanguageModel, pairs: Segment, places: range, choice: Choice, scores_RHB: Tensor
) -> KVBlock:
    """The entry of a chunk: the chosen pairs of a reading at ``places``, un-rotated."""
    shape = model.shape
    whole = torch.tensor(places)
    chosen = [positions_of(kept) for kept in choice.kept]
    layers = []
    for layer in range(shape.num_layers):
        keys_CGD = model.unrotate(pairs.keys[layer], whole, layer=layer).cpu()
        values_CGD = pairs.values[layer].cpu()
        heads = []
        for head in range(shape.num_kv_heads):
            rows, columns = choice.shape
            own = chosen[(layer if rows > 1 else 0) * columns + (head if columns > 1 else 0)]
            heads.append(HeadPairs(own.int(), keys_CGD[own, head], values_CGD[own, head]))
        layers.append(heads)
    return KVBlock.of_heads(key, layers, scores_RHB)


def offered_by(block: KVBlock) -> tuple[tuple[Interval, ...], ...]:
    """Where in its chunk a block holds pairs, per layer and kv head; one entry where they all agree."""
    shape = block.counts_LG.shape
    runs = [_runs_of(block.positions(layer, head)) for layer in range(shape[0]) for head in range(shape[1])]
    return (runs[0],) if len(set(runs)) == 1 else tuple(runs)


def _runs_of(positions_T: Tensor) -> tuple[Interval, ...]:
    positions = positions_T.numpy()
    if not len(positions):
        return ()
    borders = np.flatnonzero(np.diff(positions) != 1) + 1
    return tuple((int(run[0]), int(run[-1]) + 1) for run in np.split(positions, borders))


@dataclass(frozen=True)
class KeptDocument:
    """One query and what the chunks of its document left, in order."""

    query: Query
    parts: tuple[tuple[Chunk, KVBlock], ...]

    def pairs(self, layer: int, head: int) -> tuple[Tensor, Tensor]:
        """Un-rotated keys and values [T, D] that the query keeps of one layer and kv head, in document order."""
        kept = Choice(self.query.shape, self.query.kept).of(layer, head)
        keys, values = [], []
        for chunk, block in self.parts:
            wanted = _inside(block.positions(layer, head).long() + chunk.start, kept)
            keys.append(block.keys(layer, head)[wanted])
            values.append(block.values(layer, head)[wanted])
        return torch.cat(keys), torch.cat(values)


def _inside(positions_T: Tensor, intervals: Sequence[Interval]) -> Tensor:
    """Which positions lie in sorted, disjoint intervals, [T] bool."""
    if not intervals:
        return torch.zeros(len(positions_T), dtype=torch.bool)
    starts, stops = torch.tensor(intervals).T.contiguous()
    before = torch.searchsorted(starts, positions_T, right=True) - 1
    inside: Tensor = (before >= 0) & (positions_T < stops[before.clamp(min=0)])
    return inside


def assemble(
    model: LanguageModel, documents: Sequence[KeptDocument], first_position: int
) -> tuple[Readable, list[int]]:
    """What a batch of queries reads, one sequence each, at compact positions from ``first_position``; and how many
    positions each takes: its longest head's."""
    shape = model.shape
    lengths = [max(sum(b - a for a, b in kept) for kept in document.query.kept) for document in documents]
    if all(document.query.shape == (1, 1) for document in documents):
        return _same_for_all(model, documents, first_position), lengths
    parts = []
    for document, length in zip(documents, lengths, strict=True):
        layers = []
        for layer in range(shape.num_layers):
            heads = []
            for head in range(shape.num_kv_heads):
                keys_TD, values_TD = document.pairs(layer, head)
                places = torch.arange(length - len(keys_TD), length) + first_position
                rotated = model.rotate(keys_TD[:, None], places, layer=layer)[:, 0]
                heads.append((rotated, values_TD.to(model.device, model.dtype)))
            layers.append(heads)
        parts.append(layers)
    return HeadSegment.pack(parts), lengths


def _same_for_all(model: LanguageModel, documents: Sequence[KeptDocument], first_position: int) -> Segment:
    """The packed pairs of queries that keep the same tokens in every layer and head."""
    keys, values, lengths = [], [], []
    for layer in range(model.shape.num_layers):
        heads = [[document.pairs(layer, head) for head in range(model.shape.num_kv_heads)] for document in documents]
        keys_SGD = torch.cat([torch.stack([k for k, _ in own], dim=1) for own in heads])
        values_SGD = torch.cat([torch.stack([v for _, v in own], dim=1) for own in heads])
        lengths = [len(own[0][0]) for own in heads]
        places = torch.cat([torch.arange(length) for length in lengths]) + first_position
        keys.append(model.rotate(keys_SGD, places, layer=layer))
        values.append(values_SGD.to(model.device, model.dtype))
    return Segment(keys, values, (0, *accumulate(lengths)))
