"""What a chunk is read after: the anchor, perhaps a preface, perhaps what was kept of earlier chunks.

Shapes: S pairs carried, G key-value heads, D head dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from workers.loaded import LoadedModel
from workers.messages import Chunk, Interval
from workers.passes import SegmentPass
from workers.segments import Segment, concatenate
from workers.selection.budgets.base import BlockTable
from workers.selection.budgets.uniform import UniformBudget
from workers.selection.scorers.base import ChunkScores, Scorer


@dataclass(frozen=True)
class Context:
    """``fixed`` segments are read in full by every row behind them; ``carried`` pairs too, unless a pattern chooses
    among them. The next token stands at ``num_positions``."""

    fixed: tuple[Segment, ...]
    carried: Segment | None
    num_positions: int

    @property
    def segments(self) -> tuple[Segment, ...]:
        """All of it, in order."""
        return self.fixed if self.carried is None else (*self.fixed, self.carried)

    @classmethod
    def of_anchor(cls, loaded: LoadedModel) -> Context:
        """The frame's anchor, read now."""
        return cls((), None, 0).followed_by(loaded, loaded.frame.anchor)

    def followed_by(self, loaded: LoadedModel, token_ids: Sequence[int]) -> Context:
        """This context and more tokens behind it, read now, in all layers."""
        if not token_ids:
            return self
        places = range(self.num_positions, self.num_positions + len(token_ids))
        last_layer = loaded.weights.shape.num_layers - 1
        reading = SegmentPass(loaded.backend, (0, len(places)), self.segments, last_layer=last_layer)
        loaded.weights.run(token_ids, places, reading)
        return replace(self, fixed=(*self.segments, reading.shared_segment()), carried=None, num_positions=places.stop)


class Carried:
    """The kept set that travels from chunk to chunk of one document in carried reading.

    After each chunk the budget chooses again among all that was read. One set serves all questions of the document
    and all layers and heads: a block counts as relevant as it is to the question, and on average over the heads, that
    need it. Held un-rotated; compact positions follow the context before it.
    """

    def __init__(
        self, loaded: LoadedModel, scorer: Scorer, *, tokens: int, widen_tokens: int, block_tokens: int
    ) -> None:
        """Empty: the first chunk reads what stands before it only. ``tokens``: the most that travel, each block widened
        by ``widen_tokens`` as a uniform budget does it."""
        self._model = loaded.weights
        self._scorer = scorer
        self._budget = UniformBudget(widen_tokens)
        self._tokens = tokens
        self._block_tokens = block_tokens
        self._positions = torch.empty(0, dtype=torch.long)
        self._pairs: Segment | None = None
        self._extents: list[Interval] = []
        self._scores: list[list[ChunkScores]] = []

    def behind(self, context: Context) -> Context:
        """``context`` and the carried pairs at compact positions behind it."""
        if self._pairs is None:
            return context
        stop = context.num_positions + len(self._positions)
        places = torch.arange(context.num_positions, stop)
        keys = [self._model.rotate(keys, places, layer=layer) for layer, keys in enumerate(self._pairs.keys)]
        return replace(context, carried=Segment(keys, self._pairs.values), num_positions=stop)

    def add(self, chunk: Chunk, pairs: Segment, places: range, scores: list[ChunkScores]) -> None:
        """Choose again among what is carried and the chunk just read at ``places``; ``scores``: one per question, or
        one for all."""
        stop = chunk.start + len(chunk.token_ids)
        self._extents.append((chunk.start, stop))
        self._scores.append(scores)
        read = torch.tensor(places)
        keys = [self._model.unrotate(keys, read, layer=layer) for layer, keys in enumerate(pairs.keys)]
        fresh = Segment(keys, pairs.values)
        merged = concatenate([self._pairs, fresh]) if self._pairs is not None else fresh
        positions = torch.cat([self._positions, torch.arange(chunk.start, stop)])
        offered = tuple((int(p), int(p) + 1) for p in positions)
        tables = [
            BlockTable.of_chunks(
                self._extents, self._scorer.settle([row[p] for row in self._scores]), self._block_tokens, (offered,)
            )
            for p in range(len(scores))
        ]
        joint_B = np.max([table.joint_B for table in tables], axis=0)
        table = replace(tables[0], share_LGB=joint_B[None, None])
        wanted = torch.isin(positions, positions_of(self._budget.choose(table, self._tokens).of(0, 0)))
        self._positions = positions[wanted]
        self._pairs = Segment([k[wanted] for k in merged.keys], [v[wanted] for v in merged.values])


def positions_of(intervals: Sequence[Interval]) -> torch.Tensor:
    """All positions of sorted, disjoint intervals, [T] int64."""
    return torch.cat([torch.arange(start, stop) for start, stop in intervals] or [torch.empty(0, dtype=torch.long)])
