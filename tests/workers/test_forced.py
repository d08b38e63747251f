"""Given tokens are predicted as decoding would have predicted them, whatever steps read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from configs.stages import AnswerOver, Keep, Read
from tests.tiny import save_tiny_gemma3
from tests.workers.engines import Workbench, profile_of, tokens
from workers.engine import Engine
from workers.generate import Prompt, generate
from workers.messages import Query, Run
from workers.method import Stages, method_of

READERS: dict[str, dict[str, Any]] = {
    "all": {"kind": "all"},
    "top_pages": {"kind": "top_pages", "page_tokens": 4, "tokens": 8},
}


@pytest.fixture(scope="module", params=["llama", "gemma3"])
def bench(request: pytest.FixtureRequest, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Workbench:
    if request.param == "llama":
        return Workbench(tiny_model)
    return Workbench(save_tiny_gemma3(tmp_path_factory.mktemp("tiny-gemma3"), window=2048))


def engine_of(bench: Workbench, reader: str) -> Engine:
    answer = AnswerOver.model_validate({"over": "reread", "reader": READERS[reader]})
    stages = Stages(Read(), Keep.model_validate({"block_tokens": 16, "widen_tokens": 4}), answer)
    method = method_of(stages, bench.model.shape, "weights", profile_of(bench.model.shape))
    engine = bench.engine()
    return Engine(bench.loaded, method, engine.store, anchor=engine._anchor)


@pytest.mark.parametrize("reader", READERS)
def test_what_decoding_writes_is_what_it_would_be_predicted_to_write(bench: Workbench, reader: str) -> None:
    engine = engine_of(bench, reader)
    [probe] = bench.probes("Who signed it?")
    query = Query("doc", probe, (Run(0, tokens(120)),), 12)
    prompt = Prompt(query.reread, engine._anchor.num_positions, 12)
    [written] = generate(bench.loaded, [prompt], engine._anchor.segments, frozenset(), engine._method.reader)
    assert engine.predict(query, written).argmax(dim=-1).tolist() == written


def test_a_reader_changes_what_is_predicted(bench: Workbench) -> None:
    """And never of the first token, which the prompt itself predicts."""
    [probe] = bench.probes("Who signed it?")
    query = Query("doc", probe, (Run(0, tokens(120)),), 4)
    everything, pages = (engine_of(bench, reader).predict(query, (5, 6, 7)) for reader in READERS)
    torch.testing.assert_close(everything[0], pages[0])
    assert not torch.allclose(everything[1:], pages[1:], atol=1e-5)


def test_one_token_is_predicted_by_the_prompt(bench: Workbench) -> None:
    [probe] = bench.probes("Who?")
    query = Query("doc", probe, (Run(0, tokens(40)),), 1)
    alone, first = (engine_of(bench, "all").predict(query, ids) for ids in ((5,), (5, 6)))
    torch.testing.assert_close(alone, first[:1])
