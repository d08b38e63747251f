"""Laws of kept sets: what is read back is what was chosen, pair by pair, and nothing kept is nothing read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cache_store.block import Entry, KVBlock
from cache_store.identity import BlockKey
from tests.cache_store.blocks import make_identity
from tests.workers.engines import Workbench, chunked, encode, tokens
from workers.keeping import Keeping, KeptDocument, assemble, joined, kept_block, offered_by
from workers.messages import Chunk, Interval, Query
from workers.segments import Segment
from workers.selection.budgets.adaptive import AdaptiveBudget
from workers.selection.budgets.base import Budget, Choice
from workers.selection.budgets.uniform import UniformBudget

LAYERS, HEADS, DEPTH, CHUNK, FIRST = 3, 2, 8, 12, 5
SHAPES = [(1, 1), (LAYERS, 1), (1, HEADS), (LAYERS, HEADS)]


@pytest.fixture(scope="module")
def bench(tiny_model: Path) -> Workbench:
    return Workbench(tiny_model)


def intervals(stop: int) -> st.SearchStrategy[tuple[Interval, ...]]:
    """Sorted and disjoint; none at all too."""
    return st.lists(st.tuples(st.integers(0, stop), st.integers(0, 6)), max_size=4).map(
        lambda found: joined([(start, min(stop, start + length)) for start, length in found])
    )


def choices(stop: int, shape: tuple[int, int]) -> st.SearchStrategy[Choice]:
    count = shape[0] * shape[1]
    return st.tuples(*[intervals(stop)] * count).map(lambda kept: Choice(shape, kept))


def block_of(bench: Workbench, places: range, choice: Choice, seed: int) -> tuple[Segment, KVBlock]:
    generator = torch.Generator().manual_seed(seed)
    keys, values = (
        [torch.randn(len(places), HEADS, DEPTH, generator=generator) for _ in range(LAYERS)] for _ in range(2)
    )
    pairs = Segment(keys, values)
    entry = Entry(make_identity(seed), len(places), len(places), torch.zeros(1, 1, 1))
    return pairs, kept_block(entry, bench.model, pairs, places, choice)


@pytest.mark.parametrize(
    ("scorer", "times", "asks"),
    [("probe", 1, True), ("index", 1, False), ("expected", 1, False), ("reconstruct", 2, False)],
)
def test_an_entry_knows_its_chunks_tokens_and_what_they_cost(
    bench: Workbench, scorer: str, times: int, asks: bool
) -> None:
    over = "reread" if scorer == "index" else "kept"
    engine = bench.engine(keep={"scorer": {"kind": scorer}}, over=over)
    [probe] = bench.probes("Who signed it?")
    read = engine.encode(encode(chunked(tokens(72), 48), (probe,)))
    found = [engine.store.get(BlockKey.from_hex(name)) for name in read.keys]
    assert [block and block.num_tokens for block in found] == [48, 24]
    asked = len(probe.token_ids) if asks else 0
    assert [block and block.cost for block in found] == [times * length + asked for length in (48, 24)]


@pytest.mark.parametrize("shape", SHAPES)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_an_entry_holds_the_chosen_pairs_and_says_which(
    bench: Workbench, shape: tuple[int, int], data: st.DataObject
) -> None:
    choice, places = data.draw(choices(CHUNK, shape)), range(40, 40 + CHUNK)
    pairs, block = block_of(bench, places, choice, 0)
    offered = offered_by(block)
    for layer in range(LAYERS):
        still = bench.model.unrotate(pairs.keys[layer], torch.tensor(places), layer)
        for head in range(HEADS):
            own = [position for start, stop in choice.of(layer, head) for position in range(start, stop)]
            assert block.positions(layer, head).tolist() == own
            torch.testing.assert_close(block.keys(layer, head), still[own, head])
            torch.testing.assert_close(block.values(layer, head), pairs.values[layer][own, head])
            assert offered[layer * HEADS + head if len(offered) > 1 else 0] == choice.of(layer, head)


@pytest.mark.parametrize("shape", SHAPES)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_what_queries_read_is_what_they_kept_where_it_stood_or_moved_together_before_the_question(
    bench: Workbench, shape: tuple[int, int], data: st.DataObject
) -> None:
    """Every document has a short last chunk, and one may have left nothing at all."""
    starts = range(0, 3 * CHUNK, CHUNK)
    documents: list[tuple[Choice, KeptDocument]] = []
    wholes: list[list[KVBlock]] = []
    for seed in range(data.draw(st.integers(1, 3))):
        choice = data.draw(choices(3 * CHUNK - 5, shape))
        chunks = [Chunk(n, start, tokens(CHUNK if n < 2 else CHUNK - 5)) for n, start in enumerate(starts)]
        wholes.append([])
        parts = []
        for chunk in chunks:
            held = Choice((1, 1), (((0, len(chunk.token_ids)),),))
            _, block = block_of(bench, range(len(chunk.token_ids)), held, 10 * seed + chunk.index)
            wholes[-1].append(block)
            parts.append((chunk, block))
        if not any(choice.kept):
            parts = []
        spread = data.draw(st.sampled_from([None, 3 * CHUNK - 5]))
        query = Query("doc", bench.probes("?")[0], (), 1, shape=choice.shape, kept=choice.kept, spread=spread)
        documents.append((choice, KeptDocument(query, tuple(parts))))
    readable, lengths = assemble(bench.model, [document for _, document in documents], FIRST)
    for n, (choice, _) in enumerate(documents):
        spread = documents[n][1].query.spread
        assert lengths[n] == (spread or max(sum(b - a for a, b in kept) for kept in choice.kept))
        for layer in range(LAYERS):
            for head in range(HEADS):
                own = [position for start, stop in choice.of(layer, head) for position in range(start, stop)]
                still, values = (
                    torch.cat([getattr(block, name)(layer, head) for block in wholes[n]])[own]
                    for name in ("keys", "values")
                )
                places = FIRST + (torch.tensor(own) if spread else torch.arange(lengths[n] - len(own), lengths[n]))
                got_keys, got_values = readable.last(layer, head, n, 10**6)
                torch.testing.assert_close(got_keys, bench.model.rotate(still[:, None], places, layer)[:, 0])
                torch.testing.assert_close(got_values, values)


@pytest.mark.parametrize("budget", [UniformBudget(4), AdaptiveBudget(HEADS, 0.2, 4)], ids=["uniform", "adaptive"])
@given(data=st.data(), length=st.integers(1, 300), tokens=st.integers(8, 400), fraction=st.floats(0.05, 1.0))
def test_a_chunk_with_a_share_of_its_own_leaves_no_more_and_the_same_in_every_document(
    budget: Budget, data: st.DataObject, length: int, tokens: int, fraction: float
) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 2**16)))
    shares_LGB = rng.random((LAYERS, HEADS, -(-length // 8)))
    keeping = Keeping(budget, tokens, 8, 4, fraction)
    most, offered = max(8, int(fraction * length)), keeping.offer(length, shares_LGB)
    assert keeping.most(length) == (most if most < tokens else None)
    if most < tokens:
        assert 0 < offered.tokens <= most
        for other in (replace(keeping, tokens=most + 1), replace(keeping, tokens=10**6)):
            assert other.offer(length, shares_LGB) == offered and other.record(length) == keeping.record(length)
    else:
        without = replace(keeping, chunk_fraction=None)
        assert offered == without.offer(length, shares_LGB) and keeping.record(length) == without.record(length)
