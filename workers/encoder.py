"""Reading one chunk: its pairs, and what each scorer says of its blocks.

A chunk is read as anchor, context (a preface, or what earlier chunks left) and the chunk itself; then whoever
observes looks at it: the probes behind it as branches that never see each other, or a repetition of it. Several
scorers share one reading, each pass running as deep as the deepest of them needs. Invariants: nothing is kept
between calls; what comes out depends on the tokens read, not on who else was scoring.

Shapes: C chunk tokens, R rows, H columns of scores, B blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol

import torch
from torch import Tensor

from workers.attention.plan import Pattern
from workers.context import Context
from workers.depth import DepthPass, DepthSchedule
from workers.loaded import LoadedModel
from workers.messages import Probe
from workers.passes import Own, SegmentPass
from workers.prompt import Frame
from workers.segments import Segment
from workers.selection.scorers.base import Observer, Scorer
from workers.selection.scoring import Observed, Scoring
from workers.sparse import BlockCount, GateDrop, GateOwn, PatternOwn


def observation_record(scorer: Scorer, frame: Frame) -> dict[str, object]:
    """What the observer reads that is in no message, as plain JSON values: part of every store key."""
    return {"repetition": frame.repetition} if scorer.observer == "repeat" else {}


@dataclass(frozen=True)
class ReadingRule:
    """How a chunk is read: ``pattern`` (None: dense), what is dropped on the way, and whether the pairs of all layers
    are wanted (otherwise a pass ends where the last scorer has seen enough)."""

    block_tokens: int
    pattern: Pattern | None = None
    depth: DepthSchedule | None = None
    gate: GateDrop | None = None
    all_layers: bool = True


@dataclass(frozen=True)
class ChunkReading:
    """What reading left: rotated ``pairs`` at ``places`` (None where they are not all there), and ``scores[s][p]``,
    [R, H, B] float32 of scorer s for probe p (one entry where the scorer does not look at probes, [1, 1, B] zeros where
    it looks at nothing). ``blocks``: what a pattern computed."""

    pairs: Segment | None
    places: range
    scores: tuple[tuple[Tensor, ...], ...]
    blocks: BlockCount


class Reads(Protocol):
    """Who reads a chunk; ``Encoder`` in earnest."""

    def read(self, token_ids: Sequence[int], probes: Sequence[Probe], context: Context) -> ChunkReading:
        """Read one chunk after ``context`` with these probes behind it."""
        ...


class Encoder:
    """Reads chunks with one model in one way, for any number of scorers. Threads may share it."""

    def __init__(self, loaded: LoadedModel, scorers: Sequence[Scorer], rule: ReadingRule) -> None:
        """The scorers must go with the rule (``configs.schema`` sees to it)."""
        assert rule.depth is None or all(scorer.observer == "probe" for scorer in scorers)
        self._loaded = loaded
        self._model = loaded.weights
        self._scorers = tuple(scorers)
        self._rule = rule
        deepest = self._model.shape.num_layers - 1
        seen = max((scorer.layers[-1] for scorer in scorers if scorer.layers), default=None)
        self._last_layer = deepest if rule.all_layers else seen
        self._repetition = loaded.frame.repetition

    def read(self, token_ids: Sequence[int], probes: Sequence[Probe], context: Context) -> ChunkReading:
        """Read one chunk after ``context`` with these probes behind it."""
        places = range(context.num_positions, context.num_positions + len(token_ids))
        if self._rule.depth is not None:
            scorings = self._read_by_depth(self._rule.depth, token_ids, probes, context)
            return ChunkReading(None, places, self._collect(scorings, len(token_ids)), BlockCount())
        if self._last_layer is None:  # no pair is wanted and nobody looks: there is nothing to compute
            return ChunkReading(None, places, self._collect({}, len(token_ids)), BlockCount())
        everything, blocks = range(len(token_ids)), BlockCount()
        observed = Observed(self._model, None, places, self._rule.block_tokens)
        scorings = {
            index: Scoring(scorer, observed, [scorer.rows((0, len(places)), len(places))], places)
            for index, scorer in [*self._of("chunk"), *self._of("nobody")]
        }
        reading = SegmentPass(
            self._loaded.backend,
            (0, len(everything)),
            context.segments if self._rule.pattern is None else context.fixed,
            own=self._own(context, blocks),
            last_layer=self._last_layer,
            watchers=list(scorings.values()),
        )
        self._model.run(token_ids, places, reading)
        pairs = reading.shared_segment()
        scorings |= self._probe(probes, context, pairs, places)
        scorings |= self._repeat(token_ids, context, pairs, places)
        return ChunkReading(pairs, places, self._collect(scorings, len(token_ids)), blocks)

    def _own(self, context: Context, blocks: BlockCount) -> Own | None:
        """How the chunk's rows read each other; None for causally."""
        rule, backend = self._rule, self._loaded.backend
        if rule.pattern is not None:
            return PatternOwn(backend, rule.pattern, context.carried, blocks)
        return GateOwn(backend, rule.gate) if rule.gate is not None else None

    def _probe(self, probes: Sequence[Probe], context: Context, pairs: Segment, places: range) -> dict[int, Scoring]:
        """All probes in one pass over the same pairs, as branches that never see each other."""
        looking = self._of("probe")
        if not looking:
            return {}
        ids, bounds, row_places = _branches(probes, places.stop)
        observed = Observed(self._model, pairs, places, self._rule.block_tokens)
        scorings = {
            index: Scoring(scorer, observed, _rows(scorer, probes, bounds), row_places) for index, scorer in looking
        }
        self._look(ids, row_places, bounds, [*context.segments, pairs], scorings)
        return scorings

    def _repeat(self, token_ids: Sequence[int], context: Context, pairs: Segment, places: range) -> dict[int, Scoring]:
        """The chunk once more behind itself, as if the model had been told to repeat it."""
        looking = self._of("repeat")
        if not looking:
            return {}
        ids = (*self._repetition, *token_ids)
        row_places = range(places.stop, places.stop + len(ids))
        rows = range(len(ids))  # what the instruction looks up counts too
        observed = Observed(self._model, pairs, places, self._rule.block_tokens)
        scorings = {index: Scoring(scorer, observed, [rows], row_places) for index, scorer in looking}
        self._look(ids, row_places, (0, len(ids)), [*context.segments, pairs], scorings)
        return scorings

    def _look(
        self,
        ids: Sequence[int],
        row_places: Sequence[int],
        bounds: Sequence[int],
        segments: Sequence[Segment],
        scorings: dict[int, Scoring],
    ) -> None:
        """A pass of observers, as deep as the deepest of their scorers looks."""
        last = max(scoring.scorer.layers[-1] for scoring in scorings.values())
        watchers = list(scorings.values())
        reading = SegmentPass(self._loaded.backend, bounds, segments, last_layer=last, watchers=watchers)
        self._model.run(ids, row_places, reading)

    def _read_by_depth(
        self, schedule: DepthSchedule, token_ids: Sequence[int], probes: Sequence[Probe], context: Context
    ) -> dict[int, Scoring]:
        """Chunk and probes in one pass that fewer and fewer of the chunk's tokens survive."""
        assert self._last_layer is not None
        places = range(context.num_positions, context.num_positions + len(token_ids))
        ids, bounds, row_places = _branches(probes, places.stop)
        observed = Observed(self._model, None, places, self._rule.block_tokens)
        scorings = {
            index: Scoring(scorer, observed, _rows(scorer, probes, bounds), row_places)
            for index, scorer in self._of("probe")
        }
        reading = DepthPass(
            self._loaded.backend,
            schedule,
            len(token_ids),
            bounds,
            context.segments,
            scored=[
                range(start + probe.scored[0], start + probe.scored[1])
                for start, probe in zip(bounds, probes, strict=False)
            ],
            last_layer=self._last_layer,
            watchers=list(scorings.values()),
        )
        self._model.run([*token_ids, *ids], [*places, *row_places], reading)
        return scorings

    def _collect(self, scorings: dict[int, Scoring], num_tokens: int) -> tuple[tuple[Tensor, ...], ...]:
        nothing = torch.zeros(1, 1, -(-num_tokens // self._rule.block_tokens))
        return tuple(
            tuple(scorings[index].scores()) if index in scorings else (nothing,) for index in range(len(self._scorers))
        )

    def _of(self, observer: Observer) -> list[tuple[int, Scorer]]:
        """The scorers that look through this observer, with their indices; none that look at no layer."""
        return [(i, s) for i, s in enumerate(self._scorers) if s.observer == observer and s.layers]


def _branches(probes: Sequence[Probe], first_position: int) -> tuple[list[int], tuple[int, ...], list[int]]:
    """Token ids of all probes, their bounds, and the positions: each begins at ``first_position``."""
    ids = [token for probe in probes for token in probe.token_ids]
    bounds = (0, *accumulate(len(probe.token_ids) for probe in probes))
    return ids, bounds, [first_position + i for probe in probes for i in range(len(probe.token_ids))]


def _rows(scorer: Scorer, probes: Sequence[Probe], bounds: Sequence[int]) -> list[range]:
    """Per probe, the rows that a scorer looks at."""
    return [
        range(start + inside.start, start + inside.stop)
        for start, probe in zip(bounds, probes, strict=False)
        for inside in [scorer.rows(probe.scored, len(probe.token_ids))]
    ]
