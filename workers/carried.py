"""The kept set that travels from chunk to chunk of one document, when context is carried.

Shapes: S pairs carried, G key-value heads, D head dimension, T chosen rows, L layers.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from workers.hf import LanguageModel
from workers.messages import Chunk
from workers.passes import Segment, concatenate
from workers.selection.budgets import BlockTable, Interval, UniformBudget
from workers.selection.relevance import block_shares


class Carried:
    """The kept set that travels from chunk to chunk of one document in carried reading.

    After each chunk the budget chooses again among all that was read. One set serves all questions of the
    document: a block counts as relevant as it is to the question that needs it most. Held un-rotated;
    compact positions follow the anchor.
    """

    def __init__(self, model: LanguageModel, budget: UniformBudget, block_tokens: int, anchor_tokens: int) -> None:
        """Empty: the first chunk reads the anchor only."""
        self._model = model
        self._budget = budget
        self._block_tokens = block_tokens
        self._anchor_tokens = anchor_tokens
        self._positions = torch.empty(0, dtype=torch.long)
        self._pairs: Segment | None = None
        self._extents: list[Interval] = []
        self._scores: list[list[Tensor]] = []

    @property
    def num_tokens(self) -> int:
        """Tokens carried now."""
        return len(self._positions)

    def segments(self) -> list[Segment]:
        """The carried pairs at compact positions, or nothing."""
        if self._pairs is None:
            return []
        places = torch.arange(self.num_tokens) + self._anchor_tokens
        return [Segment([self._model.rotate(keys, places) for keys in self._pairs.keys], self._pairs.values)]

    def add(self, chunk: Chunk, pairs: Segment, places: range, scores: list[Tensor]) -> None:
        """Choose again among what is carried and the chunk just read at positions ``places``."""
        stop = chunk.start + len(chunk.token_ids)
        self._extents.append((chunk.start, stop))
        self._scores.append(scores)
        read = torch.tensor(places)
        fresh = Segment([self._model.unrotate(keys, read) for keys in pairs.keys], pairs.values)
        merged = concatenate([self._pairs, fresh]) if self._pairs is not None else fresh
        positions = torch.cat([self._positions, torch.arange(chunk.start, stop)])
        shares = [block_shares([row[p].numpy() for row in self._scores]) for p in range(len(scores))]
        joint = [np.max(chunk_shares, axis=0) for chunk_shares in zip(*shares, strict=True)]
        offered = tuple((int(p), int(p) + 1) for p in positions)
        table = BlockTable.of_chunks(self._extents, joint, self._block_tokens, offered)
        wanted = torch.isin(positions, positions_of(self._budget.choose(table)))
        self._positions = positions[wanted]
        self._pairs = Segment([k[wanted] for k in merged.keys], [v[wanted] for v in merged.values])


def positions_of(intervals: Sequence[Interval]) -> Tensor:
    """All positions of sorted, disjoint intervals, [T] int64."""
    return torch.cat([torch.arange(start, stop) for start, stop in intervals])


def unrotated(model: LanguageModel, pairs: Segment, chosen_T: Tensor, places_T: Tensor) -> tuple[Tensor, Tensor]:
    """The chosen rows of a segment as keys (un-rotated from ``places_T``) and values, each [L, G, T, D]."""
    keys = [model.unrotate(layer[chosen_T], places_T).transpose(0, 1) for layer in pairs.keys]
    values = [layer[chosen_T].transpose(0, 1) for layer in pairs.values]
    return torch.stack(keys), torch.stack(values)
