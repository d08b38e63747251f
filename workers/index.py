"""An attention index: the retrieval heads' keys of every token of a chunk, and what a later question makes of them.

A chunk is read once, for nobody in particular, as deep as its last retrieval head; the keys of those few heads are
kept, un-rotated, and nothing else. A question is run once behind the anchor alone; its queries are then turned to where
it would stand behind each chunk and meet that chunk's keys. Invariants: an index serves every question; scores have the
shape and scale of the probe scorer's, so that all that follows is the same.

Shapes: C chunk tokens, R scored rows of a probe, h retrieval heads, B blocks, L layers, G kv heads, H query heads,
D head dimension, N rows of an entry.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import torch
from torch import Tensor

from cache_store.block import Entry, HeadPairs, KVBlock
from workers.context import Context
from workers.hf import ModelShape
from workers.loaded import LoadedModel
from workers.messages import Probe
from workers.passes import SegmentPass, Sight
from workers.segments import Segment
from workers.selection.scorers.base import LayerView
from workers.selection.scorers.index import IndexScorer

IndexKeys = Mapping[tuple[int, int], Tensor]
"""Un-rotated keys [C, D] of every token of a chunk, by (layer, kv head)."""


def index_keys(loaded: LoadedModel, scorer: IndexScorer, pairs: Segment, places: range) -> IndexKeys:
    """What a chunk that was read at ``places`` leaves for later questions: keys of the kv heads that retrieval heads
    read, in the order of an entry's rows."""
    positions_C = torch.arange(places.start, places.stop, device=loaded.weights.device)
    return {
        (layer, head): loaded.weights.unrotate(pairs.keys[layer][:, head : head + 1], positions_C, layer=layer)[:, 0]
        for layer, head in kv_heads(scorer, loaded.weights.shape)
    }


def index_block(entry: Entry, loaded: LoadedModel, keys: IndexKeys) -> KVBlock:
    """The entry of a chunk that left these keys: no values."""
    model, shape = loaded.weights, loaded.weights.shape
    num_tokens = len(next(iter(keys.values())))
    counts_LG = torch.zeros(shape.num_layers, shape.num_kv_heads, dtype=torch.int32)
    for layer, head in keys:
        counts_LG[layer, head] = num_tokens
    rows = HeadPairs(
        torch.arange(num_tokens).repeat(len(keys)),
        torch.cat([key_CD.cpu() for key_CD in keys.values()]),
        torch.empty(0, shape.head_dim, dtype=model.dtype),
    )
    return KVBlock.of_rows(entry, counts_LG, rows)


def keys_of(block: KVBlock) -> IndexKeys:
    """The keys of an entry, as its codec holds them."""
    held = [(int(layer), int(head)) for layer, head in block.counts_LG.nonzero()]
    return {(layer, head): block.keys(layer, head) for layer, head in held}


class Questions:
    """Probes that were run behind the anchor alone, ready to be asked of any number of chunks."""

    def __init__(self, loaded: LoadedModel, scorer: IndexScorer, anchor: Context, probes: Sequence[Probe]) -> None:
        """Runs them, in one pass as deep as the last retrieval head."""
        self._loaded = loaded
        self._scorer = scorer
        self._anchor_positions = anchor.num_positions
        self._probes = probes
        self._bounds = (0, *accumulate(len(probe.token_ids) for probe in probes))
        places = [anchor.num_positions + i for probe in probes for i in range(len(probe.token_ids))]
        listener = _Listener(frozenset(scorer.layers))
        ids = [token for probe in probes for token in probe.token_ids]
        last = scorer.layers[-1]
        reading = SegmentPass(loaded.backend, self._bounds, anchor.segments, last_layer=last, watchers=[listener])
        loaded.weights.run(ids, places, reading)
        self._queries_THD = {
            layer: loaded.weights.unrotate(q_THD, torch.tensor(places), layer=layer)
            for layer, q_THD in listener.queries_THD.items()
        }
        self._scale = listener.scale

    def of(self, keys: IndexKeys, block_tokens: int) -> list[Tensor]:
        """Per probe what it makes of a chunk's index, [R, h, B] as the probe scorer's."""
        layers = [self._views(keys, layer, block_tokens) for layer in self._scorer.layers]
        return [
            torch.cat([self._scorer.score(view).cpu() for view in views], dim=1) for views in zip(*layers, strict=True)
        ]

    def _views(self, keys: IndexKeys, layer: int, block_tokens: int) -> list[LayerView]:
        """One layer as each probe would meet it, behind the chunk."""
        model, first = self._loaded.weights, self._anchor_positions
        num_tokens = len(next(iter(keys.values())))
        places_C = torch.arange(first, first + num_tokens, device=model.device)
        keys_CGD = torch.zeros(num_tokens, model.shape.num_kv_heads, model.shape.head_dim, dtype=model.dtype)
        for head in range(model.shape.num_kv_heads):
            if (layer, head) in keys:
                keys_CGD[:, head] = keys[layer, head]
        keys_CGD = model.rotate(keys_CGD, places_C, layer=layer)
        views = []
        for probe, start in zip(self._probes, self._bounds, strict=False):
            inside = self._scorer.rows(probe.scored, len(probe.token_ids))
            row_places_R = torch.tensor(inside, device=model.device) + first + num_tokens
            queries_RHD = self._queries_THD[layer][start + inside.start : start + inside.stop]
            views.append(
                LayerView(
                    layer=layer,
                    queries_RHD=model.rotate(queries_RHD, row_places_R, layer=layer),
                    keys_CGD=keys_CGD,
                    values_CGD=keys_CGD[:, :0],
                    places_C=places_C,
                    row_places_R=row_places_R,
                    scale=self._scale,
                    block_tokens=block_tokens,
                    model=model,
                )
            )
        return views


@dataclass
class _Listener:
    """A ``passes.Watcher`` that remembers the queries of some layers, and by what their logits are scaled."""

    layers: frozenset[int]
    wants_lse: bool = False
    wants_hidden: bool = False
    queries_THD: dict[int, Tensor] = field(default_factory=dict)
    scale: float = 1.0

    def see(self, sight: Sight) -> None:
        """Remember this layer's, if it is wanted."""
        if sight.layer in self.layers:
            self.queries_THD[sight.layer] = sight.q_THD
            self.scale = sight.scale


def kv_heads(scorer: IndexScorer, shape: ModelShape) -> list[tuple[int, int]]:
    """(layer, kv head) that the retrieval heads read, in the order of an entry's rows."""
    group = shape.num_heads // shape.num_kv_heads
    return sorted({(layer, head // group) for layer, head in scorer.profile.heads})
