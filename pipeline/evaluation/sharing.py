"""One reading for many methods: chunks are read once per document, with every scorer looking on.

Invariants: a method gets exactly what its own encoder would have computed (a law test holds it to that); only what
is read behind the bare anchor is shared, since anything else a chunk was read after belongs to one method.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

from workers.context import Context
from workers.encoder import ChunkReading, Encoder, ReadingRule
from workers.loaded import LoadedModel
from workers.messages import Probe
from workers.selection.scorers.base import Scorer


class SharedReading:
    """The readings of one document under one rule, by all scorers that want it."""

    def __init__(
        self, loaded: LoadedModel, anchor: Context, rule: ReadingRule, scorers: Sequence[Scorer], *, keeps_pairs: bool
    ) -> None:
        """Scorers with the same record share their scores too. Without ``keeps_pairs`` a chunk's pairs are let go once
        it was scored."""
        distinct = {_name(scorer): scorer for scorer in scorers}
        self._loaded = loaded
        self._anchor = anchor
        self._keeps_pairs = keeps_pairs
        self._index = {name: index for index, name in enumerate(distinct)}
        self._encoder = Encoder(loaded, list(distinct.values()), rule)
        self._read: dict[tuple[tuple[int, ...], tuple[Probe, ...]], ChunkReading] = {}
        self.has_many = len(scorers) > 1
        """Whether several methods share this."""

    def encoder_for(self, scorer: Scorer, rule: ReadingRule) -> SharedEncoder:
        """What stands in for an encoder of one scorer."""
        return SharedEncoder(self, Encoder(self._loaded, [scorer], rule), self._index[_name(scorer)])

    def read(self, token_ids: Sequence[int], probes: Sequence[Probe], context: Context) -> ChunkReading | None:
        """The shared reading of a chunk; None behind anything but the anchor."""
        if context is not self._anchor:
            return None
        name = (tuple(token_ids), tuple(probes))
        if name not in self._read:
            reading = self._encoder.read(token_ids, probes, context)
            self._read[name] = reading if self._keeps_pairs else replace(reading, pairs=None)
        return self._read[name]


@dataclass(frozen=True)
class SharedEncoder:
    """One scorer's view of a shared reading; reads by itself what is not shared."""

    shared: SharedReading
    own: Encoder
    index: int

    def read(self, token_ids: Sequence[int], probes: Sequence[Probe], context: Context) -> ChunkReading:
        """As ``Encoder.read``."""
        found = self.shared.read(token_ids, probes, context)
        if found is None:
            return self.own.read(token_ids, probes, context)
        return replace(found, scores=(found.scores[self.index],))


def _name(scorer: Scorer) -> str:
    return json.dumps(scorer.record, sort_keys=True)
