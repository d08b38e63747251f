"""Laws of layers that read a window: however what they read was cut, it is what one windowed pass would read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoModelForCausalLM

from tests.tiny import save_tiny_gemma3
from tests.workers.attention import conftest
from tests.workers.attention.conftest import Sitting
from tests.workers.attention.ragged import Ragged, assert_close, softmax64
from tests.workers.engines import EVERYTHING, Workbench, chunked, encode, isolated, tokens
from tests.workers.kept import RAGGED, READABLES, SCALE, Kept, parts_of_rows
from workers.attention.base import Partial
from workers.messages import Ask, Query, Run
from workers.passes import SegmentPass, Sight
from workers.segments import HeadPart, Readable
from workers.tail import Tail, TailOwn

sitting = conftest.sitting

GROUP = 3
DOCUMENT = tokens(300)
"""Some twenty windows of the tiny Gemma."""


# -- one layer, against float64 ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Before:
    """What stands before the rows: segments in order, and the parts they were made of."""

    segments: Sequence[Readable]
    parts: Sequence[Sequence[HeadPart]]


class Watching:
    """Notes what a pass makes of its last layer."""

    wants_lse, wants_hidden = True, False

    def see(self, sight: Sight) -> None:
        self.lse_TH = sight.lse_TH


def attend(sitting: Sitting, before: Before, rows: Sequence[Tensor], row_bounds: Sequence[int], window: int) -> Partial:
    """The layer 1 of a pass, as a model would call it."""
    watching = Watching()
    reading = SegmentPass(sitting.backend, row_bounds, before.segments, watchers=[watching])
    out_THD = reading.attend(1, *rows, SCALE, window=window)
    assert watching.lse_TH is not None
    return Partial(out_THD, watching.lse_TH)


def windowed64(before: Before, rows: Sequence[Tensor], row_bounds: Sequence[int], window: int) -> Partial:
    """By definition, a row and a head at a time: every pair has a position, and a row reads those in its window."""
    q_THD, k_TGD, v_TGD = rows
    heads = k_TGD.shape[1]
    of_rows = [parts_of_rows(parts, row_bounds) for parts in before.parts]
    found = []
    for start, stop in pairwise(row_bounds):
        for row in range(start, stop):
            lengths = [max(len(keys) for layer in parts[row] for keys, _ in layer) for parts in of_rows]
            ends = list(accumulate(lengths))
            place = (ends[-1] if ends else 0) + row - start
            by_head = []
            for head, q_RD in enumerate(q_THD[row].chunk(heads)):
                keys, values = [k_TGD[max(start, row + 1 - window) : row + 1, head]], []
                values = [v_TGD[max(start, row + 1 - window) : row + 1, head]]
                for parts, end in zip(of_rows, ends, strict=True):
                    k_SD, v_SD = parts[row][1][head]
                    places_S = torch.arange(end - len(k_SD), end, device=k_SD.device)
                    keys.append(k_SD[places_S > place - window])
                    values.append(v_SD[places_S > place - window])
                k_SD, v_SD = torch.cat(keys), torch.cat(values)
                ragged = Ragged(q_RD[None], k_SD[:, None], v_SD[:, None], (0, 1), (0, len(k_SD)), SCALE)
                by_head.append(softmax64(ragged, causal=False))
            found.append(Partial(*(torch.cat(x, dim=1) for x in zip(*by_head, strict=True))))
    return Partial(*(torch.cat(x) for x in zip(*found, strict=True)))


def drawn_rows(sitting: Sitting, count: int, heads: int = 2) -> list[Tensor]:
    generator = torch.Generator().manual_seed(9)
    sizes = (heads * GROUP, heads, heads)
    return [torch.randn(count, size, 8, generator=generator).to(sitting.device, sitting.dtype) for size in sizes]


@pytest.mark.parametrize("window", [1, 2, 5, 12, 21, 100])
@pytest.mark.parametrize("row_bounds", [(0, 1, 2, 3), (0, 4, 4, 20), (0, 17, 18, 19)], ids=["step", "idle", "prompts"])
@pytest.mark.parametrize("kind", READABLES)
def test_segments_and_rows_are_read_as_one(
    sitting: Sitting, kind: str, row_bounds: tuple[int, ...], window: int
) -> None:
    """An anchor that all share, a chunk cut in two, an empty rest."""
    shared = Kept.even(6).parts(sitting, 1)
    cuts = [Kept.even(*lengths).parts(sitting, seed) for seed, lengths in ((2, (7, 0, 9)), (3, (3, 5, 1)))]
    made = [READABLES[kind](parts, False) for parts in cuts]
    before = Before([READABLES["even"](shared, True), *made], [shared, *cuts])
    rows = drawn_rows(sitting, row_bounds[-1])
    want = windowed64(before, rows, row_bounds, window)
    assert_close(attend(sitting, before, rows, row_bounds, window), want, sitting, slack=2)


@pytest.mark.parametrize("kind", RAGGED)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_heads_that_kept_less_leave_a_gap(sitting: Sitting, kind: str, data: st.DataObject) -> None:
    """Over which a window reaches what stands before it."""
    num_heads, num_sequences = data.draw(st.integers(1, 2)), data.draw(st.integers(1, 3))
    layer = st.tuples(*[st.integers(0, 9)] * num_heads)
    part = st.tuples(layer, layer)
    kept = [
        Kept(tuple(data.draw(st.lists(part, min_size=num_sequences, max_size=num_sequences))))
        for _ in range(data.draw(st.integers(1, 3)))
    ]
    cuts = [one.parts(sitting, seed) for seed, one in enumerate(kept)]
    before = Before([RAGGED[kind](parts, False) for parts in cuts], cuts)
    counts = data.draw(st.lists(st.integers(0, 7), min_size=num_sequences, max_size=num_sequences))
    row_bounds, rows = (0, *accumulate(counts)), drawn_rows(sitting, sum(counts), num_heads)
    window = data.draw(st.integers(1, 24))
    got = attend(sitting, before, rows, row_bounds, window)
    if sum(counts):
        assert_close(got, windowed64(before, rows, row_bounds, window), sitting, slack=3)


@pytest.mark.parametrize("window", [1, 3, 8, 100])
def test_steps_of_decoding_read_the_steps_before_them(sitting: Sitting, window: int) -> None:
    """Seven steps of two sequences, of which one stops after four, are the last rows of a pass over everything."""
    parts, steps = Kept.even(5, 2).parts(sitting), 7
    before = Before([READABLES["even"](parts, False)], [parts])
    rows = drawn_rows(sitting, 2 * steps)
    want = windowed64(before, rows, (0, steps, 2 * steps), window)
    tail = Tail(2, steps, 2)
    for step in range(steps):
        writing = [0, 1] if step < 4 else [1]
        tail.begin(writing)
        own = TailOwn(sitting.backend, tail)
        reading = SegmentPass(sitting.backend, tail.row_bounds, before.segments, own=own)
        now = [n * steps + step for n in writing]
        out_THD = reading.attend(1, *(x[now] for x in rows), SCALE, window=window)
        torch.testing.assert_close(out_THD.cpu().double(), want.out_THD[now], rtol=0, atol=2 * sitting.out)


# -- a whole model -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_gemma3(tmp_path_factory.mktemp("tiny-gemma3"), window=2048)


@pytest.fixture(scope="module")
def bench(directory: Path) -> Workbench:
    return Workbench(directory)


@pytest.fixture(scope="module")
def reference(directory: Path) -> torch.nn.Module:
    """The same weights through transformers alone, window and all."""
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager").eval()


@torch.inference_mode()
def dense_logits(reference: torch.nn.Module, ids: Sequence[int], last: int) -> Tensor:
    return reference(torch.tensor([ids]), use_cache=False).logits[0, -last:]


@pytest.mark.parametrize("length", [3, 40, 300])
def test_rereading_everything_writes_what_the_model_writes(
    bench: Workbench, reference: torch.nn.Module, length: int
) -> None:
    """Forty tokens, so that the last ones are written more than a window behind the prompt."""
    [probe] = bench.probes("Who signed it?")
    query = Query("doc", probe, (Run(0, DOCUMENT[:length]),), 40)
    ids = [*bench.frame.anchor, *DOCUMENT[:length], *probe.token_ids]
    with torch.inference_mode():
        written = reference.generate(torch.tensor([ids]), max_new_tokens=40, do_sample=False)[0, len(ids) :].tolist()
    [answer] = bench.engine().answer(Ask((query,))).answers
    assert answer.text == bench.frame.tokenizer.decode(written)


def test_every_step_predicts_what_the_model_predicts(bench: Workbench, reference: torch.nn.Module) -> None:
    """Given tokens, in a batch of two: what greedy decoding may hide shows in the logits."""
    model, texts, steps = bench.model, (tokens(30, 1), tokens(21, 2)), tokens(20, 3)
    bounds = (0, 30, 51)
    prefill = SegmentPass(bench.backend, bounds, bench.engine()._anchor.segments)
    first = len(bench.frame.anchor)
    model.run([*texts[0], *texts[1]], [*range(first, first + 30), *range(first, first + 21)], prefill, logits_of=[0])
    context = [*bench.engine()._anchor.segments, prefill.segment()]
    tail = Tail(2, len(steps), model.shape.num_layers)
    for number, token in enumerate(steps):
        tail.begin([0, 1])
        own = TailOwn(bench.backend, tail)
        step = SegmentPass(bench.backend, tail.row_bounds, context, own=own)
        logits = model.run([token] * 2, [first + len(text) + number for text in texts], step, logits_of=[0, 1])
        for text, row in zip(texts, logits, strict=True):
            [expected] = dense_logits(reference, [*bench.frame.anchor, *text, *steps[: number + 1]], 1)
            torch.testing.assert_close(row, expected, atol=1e-4, rtol=1e-4)


def test_a_forced_answer_is_predicted_as_the_model_predicts_it(bench: Workbench, reference: torch.nn.Module) -> None:
    [probe], answer = bench.probes("Who signed it?"), tokens(25, 4)
    predicted = bench.engine().predict(Query("doc", probe, (Run(0, DOCUMENT),), 1), answer)
    ids = (*bench.frame.anchor, *DOCUMENT, *probe.token_ids, *answer[:-1])
    torch.testing.assert_close(predicted, dense_logits(reference, ids, len(answer)), atol=1e-4, rtol=1e-4)


ALL = {"kind": "sliding_window", "window_tokens": 4096}
"""A pattern that leaves nothing out."""


@pytest.mark.parametrize("pattern", [{"kind": "dense"}, ALL], ids=["dense", "pattern"])
@pytest.mark.parametrize("chunk_tokens", [64, 300])
def test_keeping_everything_with_carried_context_is_dense_attention(
    bench: Workbench, reference: torch.nn.Module, chunk_tokens: int, pattern: dict
) -> None:
    """Pairs of every layer, un-rotated by its own angles, stored, and moved back."""
    engine = bench.engine(read={"context": "carried", "pattern": pattern}, over="kept")
    [probe] = bench.probes("Who signed it?")
    read = encode(chunked(DOCUMENT, chunk_tokens), (probe,), EVERYTHING)
    engine.encode(read)
    query = Query("doc", probe, (Run(0, DOCUMENT),), 1, (read,), kept=(((0, len(DOCUMENT)),),))
    expected = dense_logits(reference, (*bench.frame.anchor, *DOCUMENT, *probe.token_ids), 1)
    torch.testing.assert_close(engine.predict(query, [0]), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("scorer", [{"kind": "probe"}, {"kind": "probe", "heads": "all"}, {"kind": "window"}])
def test_skimming_scores_as_reading_in_full(bench: Workbench, scorer: dict[str, str]) -> None:
    task = encode(chunked(DOCUMENT[:64], 64), bench.probes("Who signed it?"))
    skimmed, full = (
        bench.engine(read={"skim": skims}, keep={"scorer": scorer}).encode(task).relevance[0][0].log_RHB
        for skims in (True, False)
    )
    np.testing.assert_array_equal(skimmed, full)


def test_relevance_is_the_attention_of_layers_that_see_the_whole_chunk(
    bench: Workbench, reference: torch.nn.Module
) -> None:
    """Over one chunk that is the whole document; all heads of the one layer without a window."""
    [probe] = bench.probes("Who signed it?")
    document = DOCUMENT[:100]
    ids = (*bench.frame.anchor, *document, *probe.token_ids)
    with torch.inference_mode():
        attention = reference(torch.tensor([ids]), output_attentions=True).attentions[2]
    first = len(bench.frame.anchor)
    rows = [first + len(document) + row for row in range(*probe.scored)]
    engine = bench.engine(keep={"scorer": {"kind": "probe", "heads": "all"}})
    found = engine.encode(encode(chunked(document, 128), (probe,))).relevance[0][0].log_RHB
    assert found.shape[1] == 4
    for head in range(4):
        weights = attention[0, head, rows, first : first + len(document)].numpy()
        expected = np.add.reduceat(weights, range(0, len(document), 16), axis=1)
        shares = np.exp(found[:, head] - np.logaddexp.reduce(found[:, head], axis=1, keepdims=True))
        np.testing.assert_allclose(shares, expected / expected.sum(axis=1, keepdims=True), atol=1e-5)


def test_probes_are_branches_that_do_not_see_each_other(bench: Workbench) -> None:
    probes = bench.probes("Who signed it?", "When?", "Where was that, in which city?")
    [task] = isolated(chunked(DOCUMENT[:100], 128), probes)
    together = bench.engine().encode(task).relevance[0]
    for index, probe in enumerate(probes):
        [task] = isolated(chunked(DOCUMENT[:100], 128), (probe,))
        alone = bench.engine().encode(task).relevance[0][0]
        np.testing.assert_allclose(together[index].log_RHB, alone.log_RHB, atol=1e-4)


def test_members_of_a_batch_do_not_see_each_other(bench: Workbench) -> None:
    probes = bench.probes("Who signed it?", "When?", "For how much money, and in which city?")
    queries = [Query("doc", probe, (Run(0, tokens(40 * n + 3, n)),), 20 + n) for n, probe in enumerate(probes)]
    engine = bench.engine()
    together = engine.answer(Ask(tuple(queries))).answers
    alone = [engine.answer(Ask((query,))).answers[0] for query in queries]
    assert [a.text for a in together] == [a.text for a in alone]
