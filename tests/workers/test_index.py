"""Laws of the attention index: what it says is what retrieval heads see, and it costs their keys alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cache_store.store import TieredStore
from cache_store.tiers.memory import MemoryTier
from tests.workers.engines import Workbench, chunked, isolated, profile_of, tokens
from workers.hf import ModelShape
from workers.messages import Probe
from workers.passes import SegmentPass, Sight
from workers.selection.profile import Profile

INDEX: dict[str, Any] = {"keep": {"scorer": {"kind": "index", "lexical": 0.0}, "question": "unknown"}}
DOCUMENT = tokens(150)


@pytest.fixture(scope="module")
def bench(tiny_model: Path) -> Workbench:
    return Workbench(tiny_model)


def chosen_for(shape: ModelShape) -> Profile:
    """The heads that the workbench's profile has for an index."""
    profile = profile_of(shape).index
    assert profile is not None
    return profile


class Recorder:
    """A watcher that keeps rotated queries and keys of every layer."""

    wants_lse = False
    wants_hidden = False

    def __init__(self) -> None:
        self.seen: dict[int, Sight] = {}

    def see(self, sight: Sight) -> None:
        self.seen[sight.layer] = sight


def recorded(bench: Workbench, ids: tuple[int, ...], places: range) -> dict[int, Sight]:
    """A pass of these tokens alone behind the anchor, which is read with them."""
    recorder, anchor = Recorder(), bench.frame.anchor
    everything = (*anchor, *ids)
    reading = SegmentPass(bench.backend, (0, len(everything)), last_layer=2, watchers=[recorder])
    bench.model.run(everything, [*range(len(anchor)), *places], reading)
    return recorder.seen


def from_scratch(bench: Workbench, chunk: tuple[int, ...], probe: Probe) -> np.ndarray:
    """What every retrieval head makes of every block, in float64: the probe was never behind the chunk."""
    first = len(bench.frame.anchor)
    keys = recorded(bench, chunk, range(first, first + len(chunk)))
    near = recorded(bench, probe.token_ids, range(first, first + len(probe.token_ids)))
    heads = []
    for layer, head in chosen_for(bench.model.shape).heads:
        sight = near[layer]
        q_TD = sight.q_THD[first:, head : head + 1]
        still_TD = bench.model.unrotate(q_TD, torch.arange(first, first + len(q_TD)), layer=layer)
        behind = torch.arange(len(q_TD)) + first + len(chunk)
        q_RD = bench.model.rotate(still_TD, behind, layer=layer)[
            probe.scored[1] - 1 : probe.scored[1], 0
        ].double()  # rows: last
        k_CD = keys[layer].k_TGD[first:, head // 2].double()
        logits_RC = q_RD @ k_CD.T * sight.scale
        heads.append(torch.stack([part.logsumexp(dim=1) for part in logits_RC.split(16, dim=1)], dim=1))
    return torch.stack(heads, dim=1).numpy()


def test_an_index_says_what_the_retrieval_heads_see(bench: Workbench) -> None:
    probes = bench.probes("Who signed it?", "When?")
    for task in isolated(chunked(DOCUMENT, 64), probes):
        [chunk] = bench.engine(**INDEX).encode(task).relevance
        for probe, said in zip(probes, chunk, strict=True):
            expected = from_scratch(bench, task.chunks[0].token_ids, probe)
            np.testing.assert_allclose(said.log_RHB, expected, rtol=1e-4, atol=1e-4)


def test_later_questions_read_nothing_and_get_answers_of_their_own(bench: Workbench) -> None:
    store = TieredStore([MemoryTier(2**26)])
    [first] = isolated(chunked(DOCUMENT[:64], 64), bench.probes("Who signed it?"))
    [later] = isolated(chunked(DOCUMENT[:64], 64), bench.probes("When?"))
    assert bench.engine(store, **INDEX).encode(first).cache_hits == 0
    again, alone = bench.engine(store, **INDEX).encode(later), bench.engine(**INDEX).encode(later)
    assert (again.cache_hits, alone.cache_hits) == (1, 0)
    np.testing.assert_array_equal(again.relevance[0][0].log_RHB, alone.relevance[0][0].log_RHB)


@pytest.mark.parametrize(("codec", "itemsize"), [("model", 4), ("int8", 1)])
def test_it_costs_the_retrieval_heads_keys_alone(bench: Workbench, codec: str, itemsize: int) -> None:
    keep = INDEX["keep"] | {"codec": codec}
    store = TieredStore([MemoryTier(2**26)])
    engine = bench.engine(store, keep=keep)
    [task] = isolated(chunked(DOCUMENT[:64], 64), bench.probes("Who signed it?"))
    [[key]] = engine._keys(task)
    engine.encode(task)
    block = store.get(key)
    assert block is not None
    kept = {(layer, head // 2) for layer, head in chosen_for(bench.model.shape).heads}
    for layer in range(3):
        for head in range(2):
            assert len(block.positions(layer, head)) == 64 * ((layer, head) in kept)
    assert block.keys_ND.nbytes == len(kept) * 64 * 8 * itemsize and not block.values_ND.nbytes
