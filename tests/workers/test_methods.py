"""Laws that every method keeps, whatever it scores, keeps and reads: one test each, over all of them, in a model whose
layers all read everything and in one of which most read a window."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cache_store.store import TieredStore
from cache_store.tiers.memory import MemoryTier
from configs.methods import Budget, Pattern, Pruning, Scorer
from configs.shape import Slot, kinds
from configs.stages import AnswerOver, Keep, Read
from tests.tiny import save_tiny_gemma3
from tests.workers.engines import BUDGET_TOKENS, Workbench, chunked, encode, isolated, tokens
from tests.workers.methods import BUDGETS, METHODS, PATTERNS, PRUNINGS, REFUSED, SCORERS, with_files, write_files
from workers.engine import Engine
from workers.errors import ModelError
from workers.hf import ModelShape
from workers.messages import Ask, Encode, Encoded, Query, Run
from workers.method import Method, Stages, method_of
from workers.selection.budgets.base import BlockTable
from workers.selection.profile import Profile
from workers.selection.scorers.base import ChunkScores

DOCUMENT = tokens(200)
CHUNKS = chunked(DOCUMENT, 64)


SITTINGS = [
    (model, name) for model in ("llama", "gemma3") for name in METHODS if model == "llama" or name not in REFUSED
]


@pytest.fixture(scope="module")
def benches(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Workbench]:
    gemma3 = save_tiny_gemma3(tmp_path_factory.mktemp("tiny-gemma3"), window=2048)
    return {"llama": Workbench(tiny_model), "gemma3": Workbench(gemma3)}


@pytest.fixture(scope="module")
def files(benches: dict[str, Workbench], tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Path]]:
    return {
        name: write_files(tmp_path_factory.mktemp(name), bench.model.shape, bench.model.width, "weights")
        for name, bench in benches.items()
    }


@pytest.fixture(params=SITTINGS, ids=" ".join)
def sitting(request: pytest.FixtureRequest) -> tuple[str, str]:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
def bench(sitting: tuple[str, str], benches: dict[str, Workbench]) -> Workbench:
    return benches[sitting[0]]


@pytest.fixture
def keys(sitting: tuple[str, str], files: dict[str, dict[str, Path]]) -> Any:
    model, name = sitting
    return with_files(METHODS[name], files[model])


def tasks_of(bench: Workbench, keys: Any, *questions: str) -> tuple[Encode, ...]:
    probes = bench.probes(*questions)
    carried = keys.get("read", {}).get("context") == "carried"
    return (encode(CHUNKS, probes),) if carried else isolated(CHUNKS, probes)


def query_of(engine: Engine, tasks: tuple[Encode, ...], encoded: list[Encoded], index: int) -> Query:
    """What the driver would ask: scores settled, the budget's choice, kept pairs or text."""
    method, probe = engine._method, tasks[0].probes[index]
    chunks = [chunk for task in tasks for chunk in task.chunks]
    relevance = [chunk[index] for message in encoded for chunk in message.relevance]
    extents = [(chunk.start, chunk.start + len(chunk.token_ids)) for chunk in chunks]
    texts = [tuple(str(i) for i in range(own.log_RHB.shape[2])) for own in relevance]
    said = [
        ChunkScores(own.log_RHB, extent, 16, text, "1 2")
        for own, extent, text in zip(relevance, extents, texts, strict=True)
    ]
    shares = method.scorer.settle(said)
    offered = None
    if method.keeps_pairs:
        entries = max(len(own.offered) for own in relevance)
        offered = tuple(
            tuple(
                (first + a, first + b)
                for (first, _), own in zip(extents, relevance, strict=True)
                for a, b in own.offered[n if len(own.offered) > 1 else 0]
            )
            for n in range(entries)
        )
    table = BlockTable.of_chunks(extents, shares, 16, offered)
    choice = method.budget.choose(table if method.keeps_pairs else table.joint(), BUDGET_TOKENS)
    runs = tuple(Run(a, DOCUMENT[a:b]) for a, b in (() if method.keeps_pairs else choice.of(0, 0)))
    sources = tasks if method.keeps_pairs else ()
    return Query("doc", probe, runs, 6, sources, shape=choice.shape, kept=choice.kept)


def test_the_table_names_every_kind() -> None:
    for table, union in ((PATTERNS, Pattern), (SCORERS, Scorer), (BUDGETS, Budget)):
        assert list(table) == list(kinds(Slot(union).models()))
    assert ["none", *PRUNINGS] == list(kinds(Slot(Pruning).models()))


@pytest.mark.parametrize("name", REFUSED)
def test_what_layers_with_a_window_cannot_do_is_refused_by_its_key(
    benches: dict[str, Workbench], files: dict[str, dict[str, Path]], name: str
) -> None:
    with pytest.raises(ModelError, match=rf"^{REFUSED[name]}: .*3 of the 4 layers of model\.source.* allowed"):
        benches["gemma3"].method(**with_files(METHODS[name], files["gemma3"]))


NOTHING_TO_THIN: dict[str, tuple[str, dict[str, Any]]] = {
    "pattern": ("read.pattern.kind: bigbird", {"read": {"pattern": PATTERNS["bigbird"]}}),
    "gate": ("read.pruning.kind: gate", {"read": {"pruning": PRUNINGS["gate"]}}),
    "reader": ("answer.reader.kind: top_pages", {"answer": {"reader": {"kind": "top_pages"}}}),
    **{
        name: (f"keep.scorer.kind: {name}", {"keep": {"scorer": scorer}})
        for name, scorer in SCORERS.items()
        if name not in ("streaming", "random")
    },
}


def without_full_layers(keys: dict[str, Any]) -> Method:
    shape = ModelShape(2, 4, 2, 8, window=64, windows=(16, 16))
    keep = {"scorer": {"kind": "random"}} | keys.get("keep", {})
    read, answer = Read.model_validate(keys.get("read", {})), AnswerOver.model_validate(keys.get("answer", {}))
    return method_of(Stages(read, Keep.model_validate(keep), answer), shape, "weights", Profile("weights", ((0, 0),)))


@pytest.mark.parametrize("name", NOTHING_TO_THIN)
def test_a_model_of_windows_only_has_nothing_that_looks_far(name: str) -> None:
    begins, keys = NOTHING_TO_THIN[name]
    with pytest.raises(ModelError, match=rf"^{begins} needs layers that read all .*2 of the 2 layers .* allowed"):
        without_full_layers(keys)


@pytest.mark.parametrize("scorer", ["streaming", "random"])
def test_scorers_that_look_at_no_layer_need_none(scorer: str) -> None:
    assert without_full_layers({"keep": {"scorer": SCORERS[scorer]}}).scorer.layers == ()


def test_a_hit_a_miss_and_a_lost_entry_give_the_same_answer(bench: Workbench, keys: Any) -> None:
    tasks = tasks_of(bench, keys, "Who signed it?", "When?")

    def outcome(engine: Engine) -> tuple[list[bytes], list[str]]:
        encoded = [engine.encode(task) for task in tasks]
        scores = [p.log_RHB.tobytes() for message in encoded for chunk in message.relevance for p in chunk]
        queries = tuple(query_of(engine, tasks, encoded, index) for index in range(2))
        return scores, [answer.text for answer in engine.answer(Ask(queries)).answers]

    store = TieredStore([MemoryTier(2**26)])
    first = outcome(bench.engine(store, **keys))
    again = outcome(bench.engine(store, **keys))
    assert sum(store.counters.hits.values()) > 0
    assert first == again == outcome(bench.engine(TieredStore([MemoryTier(1)]), **keys))


def test_a_question_never_reads_what_was_kept_for_another(bench: Workbench, keys: Any) -> None:
    """And what was kept without looking at a question serves all of them."""
    store = TieredStore([MemoryTier(2**26)])
    engine = bench.engine(store, **keys)
    [one], [two] = ([engine.encode(task) for task in tasks_of(bench, keys, text)[:1]] for text in ("Who?", "When?"))
    if engine._method.asks:
        assert two.cache_hits == 0 and set(one.keys).isdisjoint(two.keys)
    else:
        assert two.cache_hits == len(two.relevance) and one.keys == two.keys


def test_what_is_kept_is_within_the_budget_and_the_store_shrinks_by_what_was_dropped(
    bench: Workbench, keys: Any
) -> None:
    tasks = tasks_of(bench, keys, "Who signed it?")
    store = TieredStore([MemoryTier(2**26)])
    engine = bench.engine(store, **keys)
    encoded = [engine.encode(task) for task in tasks]
    query = query_of(engine, tasks, encoded, 0)
    kept = [sum(b - a for a, b in runs) for runs in query.kept]
    assert sum(kept) / len(kept) <= BUDGET_TOKENS
    if not engine._method.keeps_pairs:
        return
    shape = bench.model.shape
    pair_bytes = 2 * shape.head_dim * 4
    for _, block in engine._document(query).parts:
        pairs = block.keys_ND.nbytes + block.values_ND.nbytes
        assert pairs == int(block.counts_LG.sum()) * pair_bytes
    segment, _ = bench.assembled(engine, query)
    entries = shape.num_layers * shape.num_kv_heads
    assert segment.num_bytes == sum(kept) * pair_bytes * entries // len(kept)


def test_shares_are_a_whole(bench: Workbench, keys: Any) -> None:
    engine = bench.engine(**keys)
    tasks = tasks_of(bench, keys, "Who signed it?")
    relevance = [chunk[0] for task in tasks for chunk in engine.encode(task).relevance]
    said = [
        ChunkScores(own.log_RHB, (chunk.start, chunk.start + len(chunk.token_ids)), 16, ("",) * own.log_RHB.shape[2])
        for own, chunk in zip(relevance, CHUNKS, strict=True)
    ]
    shares_LGB = np.concatenate(engine._method.scorer.settle(said), axis=2)
    assert (shares_LGB >= 0).all()
    np.testing.assert_allclose(shares_LGB.sum(axis=2).mean(), 1.0, rtol=1e-6)
