"""The laws that matter most, on the real demo model: SmolLM2-135M-Instruct from its GGUF file."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from cache_store.store import TieredStore
from configs.load import load_job
from configs.schema import Job
from pipeline.document import Asked, Document
from pipeline.evaluation.tasks.reference import reference_text
from pipeline.evaluation.tasks.single_needle import SingleNeedle
from pipeline.evaluation.tasks.sizer import Sizer
from pipeline.prepared import cut
from pipeline.reading import DocumentReader
from workers.attention.base import resolve
from workers.engine import Engine
from workers.hf import LanguageModel
from workers.keeping import assemble
from workers.loaded import LoadedModel
from workers.loading import Reading, find_or_calibrate, load_method, load_reading
from workers.messages import Ask, Encode, Query, Run
from workers.passes import SegmentPass

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def job() -> Job:
    return load_needles()


def load_needles(*settings: str) -> Job:
    return load_job("configs/needles.yaml", ["corpus.path=unused.parquet", "model.dtype=float32", *settings])


@pytest.fixture(scope="module")
def reading(job: Job) -> Reading:
    return load_reading(job)


@pytest.fixture(scope="module")
def model(reading: Reading) -> LanguageModel:
    return LanguageModel(reading.source.directory, dtype=torch.float32, device=torch.device("cpu"))


@pytest.fixture(scope="module")
def engine(job: Job, reading: Reading, model: LanguageModel) -> Engine:
    return engine_of(job, reading, model)


def engine_of(job: Job, reading: Reading, model: LanguageModel) -> Engine:
    loaded = LoadedModel(model, resolve("cpu", model.device), reading.frame, reading.source)
    return Engine(loaded, load_method(job, reading, find_or_calibrate(job, reading)), TieredStore([]))


def test_keeping_everything_with_carried_context_is_dense_attention(reading: Reading, model: LanguageModel) -> None:
    """Logits over pairs that were read in chunks, un-rotated, stored and moved back equal one dense pass."""
    engine = engine_of(load_needles("read.context=carried", "answer.over=kept"), reading, model)
    backend = resolve("cpu", model.device)
    document = tuple(reading.frame.tokenizer.encode(reference_text("held_out", whole=False))[:1000])
    probe = reading.frame.probe("q", "What is an assert statement?")
    read = Encode("doc", cut(document, 256), (probe,), budget_tokens=len(document))
    query = Query("doc", probe, (Run(0, document),), 1, (read,), kept=(((0, len(document)),),))
    kept, [length] = assemble(model, [engine._document(query)], len(reading.frame.anchor))
    assert length == len(document)
    first = len(reading.frame.anchor) + length
    rows = range(len(probe.token_ids))
    reading_pass = SegmentPass(backend, (0, len(rows)), (*engine._anchor.segments, kept))
    logits = model.run(probe.token_ids, range(first, first + len(rows)), reading_pass, logits_of=rows)
    ids = (*reading.frame.anchor, *document, *probe.token_ids)
    dense = model.run(ids, range(len(ids)), SegmentPass(backend, (0, len(ids))), logits_of=range(first, len(ids)))
    reference = AutoModelForCausalLM.from_pretrained(reading.source.directory, dtype=torch.float32).eval()
    with torch.inference_mode():
        own = reference(torch.tensor([ids]), use_cache=False).logits[0, first:]
    assert logits is not None and dense is not None
    assert (dense - own).abs().max() < 1e-3
    assert (logits - own).abs().max() < 1e-3


def test_needles_in_six_thousand_tokens_are_found_quoted_and_answered(
    job: Job, reading: Reading, engine: Engine
) -> None:
    method = load_method(job, reading, find_or_calibrate(job, reading))
    reader = DocumentReader(job, reading, method.scorer, method.budget)
    for item in SingleNeedle(label="needle").items(Sizer(reading.frame), {6144: 2}, 7):
        asked = Asked("row", item.question, item.answer_prefix, item.max_new_tokens)
        prepared = reader.prepare(Document(item.id, item.context, "needles", 0, (asked,)))
        selections = reader.advance(prepared, [engine.encode(task) for task in prepared.encodes])
        assert isinstance(selections, list)
        [selection] = selections
        [generated] = engine.answer(Ask((selection.query,))).answers
        answer = reader.answer(prepared, 0, selection, generated, 0.0)
        assert item.answers[0] in answer.answer
        best = max(answer.spans, key=lambda span: span.share)
        assert f"is: {item.answers[0]}." in best.text
        assert answer.kept_tokens <= 512 < answer.document_tokens
        assert generated.num_tokens <= item.max_new_tokens


def test_answers_stop_at_the_models_own_stop_token(reading: Reading, engine: Engine) -> None:
    words = tuple(reading.frame.tokenizer.encode("The sky over Oslo is green today."))
    probe = reading.frame.probe("q", "What colour is the sky over Oslo? One word.")
    [answer] = engine.answer(Ask((Query("doc", probe, (Run(0, words),), 64),))).answers
    assert 0 < answer.num_tokens < 64
    assert answer.text and "<|im_end|>" not in answer.text
