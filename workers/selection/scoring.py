"""Asking a scorer while a pass runs: the observers' queries as they go by, layer by layer.

Shapes: T rows of the pass, R rows that observe, H query heads, G kv heads, D head dimension, C chunk tokens,
B blocks, E width of the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from workers.hf import LanguageModel
from workers.passes import Sight
from workers.segments import Segment
from workers.selection.scorers.base import LayerView, Scorer


@dataclass(frozen=True)
class Observed:
    """What is scored: a chunk's rotated pairs (None: the pass's own rows are the chunk) at ``places``, in a model."""

    model: LanguageModel
    pairs: Segment | None
    places: range
    block_tokens: int


@dataclass
class Scoring:
    """A ``passes.Watcher`` that asks one scorer, in every layer that it names. ``rows``: per observing sequence
    (a probe, the chunk, its repetition) which rows of the pass it looks at; they stand at ``row_places``."""

    scorer: Scorer
    observed: Observed
    rows: Sequence[range]
    row_places: Sequence[int]
    _seen: list[list[Tensor]] = field(default_factory=list)

    @property
    def wants_lse(self) -> bool:
        """Probes are put on the document's scale later; others are normalised by all that their rows read."""
        return self.scorer.observer in ("chunk", "repeat")

    @property
    def wants_hidden(self) -> bool:
        """As the scorer does."""
        return self.scorer.reads_hidden

    def see(self, sight: Sight) -> None:
        """Score this layer for every observing sequence."""
        if sight.layer not in self.scorer.layers:
            return
        pairs, chunk = self.observed.pairs, self.observed
        keys_CGD = sight.k_TGD if pairs is None else pairs.keys[sight.layer]
        values_CGD = sight.v_TGD if pairs is None else pairs.values[sight.layer]
        device = keys_CGD.device
        scores = []
        for rows in self.rows:
            window = slice(rows.start, rows.stop)
            view = LayerView(
                layer=sight.layer,
                queries_RHD=sight.q_THD[window],
                keys_CGD=keys_CGD,
                values_CGD=values_CGD,
                places_C=torch.arange(chunk.places.start, chunk.places.stop, device=device),
                row_places_R=torch.tensor(self.row_places[window], device=device),
                scale=sight.scale,
                block_tokens=chunk.block_tokens,
                model=chunk.model,
                lse_RH=None if sight.lse_TH is None or not self.wants_lse else sight.lse_TH[window],
                hidden_CE=sight.hidden_TE,
                alive_S=sight.alive_S,
            )
            scores.append(self.scorer.score(view).cpu())
        self._seen.append(scores)

    def scores(self) -> list[Tensor]:
        """Per observing sequence, [R', h of all layers seen, B]."""
        return [torch.cat(layers, dim=1) for layers in zip(*self._seen, strict=True)]
