"""Decoding a batch: nobody's answer depends on its neighbours, and who has stopped costs nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from configs import methods
from tests.tiny import save_tiny_gemma3
from tests.workers.engines import EVERYTHING, Workbench, chunked, encode, tokens
from workers import generate as generating
from workers.generate import Prompt, generate
from workers.messages import Query, Run
from workers.readers import reader_of
from workers.segments import Readable

READERS = {
    "all": methods.AllReader(),
    "top_pages": methods.TopPagesReader(page_tokens=4, tokens=8),
}
LIMITS = (3, 12, 7)


@pytest.fixture(scope="module", params=["llama", "gemma3"])
def bench(request: pytest.FixtureRequest, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Workbench:
    if request.param == "llama":
        return Workbench(tiny_model)
    return Workbench(save_tiny_gemma3(tmp_path_factory.mktemp("tiny-gemma3"), window=24))


@pytest.fixture(params=["reread", "kept"])
def opening(request: pytest.FixtureRequest, bench: Workbench) -> tuple[list[Readable], list[Prompt]]:
    """What three questions of three documents read, and their prompts: over text, or over pairs of their own."""
    engine = bench.engine(over=request.param)
    queries = []
    for n, length in enumerate((40, 150, 90)):
        probes, document = bench.probes(f"Who signed number {n}?"), tokens(length, seed=n)
        source = encode(chunked(document, 64), probes, EVERYTHING)
        engine.encode(source)
        queries.append(Query("doc", probes[0], (Run(0, document),), LIMITS[n], (source,), kept=(((0, length),),)))
    return engine._opening(queries)


def alone(bench: Workbench, opening: tuple[list[Readable], list[Prompt]], reader: Any) -> list[list[int]]:
    """What each prompt writes where the others write nothing: they are there, since the segments are everybody's."""
    segments, prompts = opening
    written = []
    for n in range(len(prompts)):
        others = [
            replace(prompt, max_new_tokens=prompt.max_new_tokens if m == n else 1) for m, prompt in enumerate(prompts)
        ]
        written.append(generate(bench.loaded, others, segments, frozenset(), reader)[n])
    return written


class Rows:
    """How many rows each pass of a model has."""

    def __init__(self, bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
        self.counts: list[int] = []
        self._run = bench.model.run
        monkeypatch.setattr(bench.model, "run", self)

    def __call__(self, token_ids: Sequence[int], *rest: Any, **named: Any) -> torch.Tensor | None:
        self.counts.append(len(token_ids))
        return self._run(token_ids, *rest, **named)


@pytest.mark.parametrize("name", READERS)
def test_an_answer_does_not_depend_on_when_others_stop(
    bench: Workbench, opening: tuple[list[Readable], list[Prompt]], name: str
) -> None:
    segments, prompts = opening
    reader = reader_of(READERS[name])
    whole = alone(bench, opening, reader)
    assert [len(ids) for ids in whole] == list(LIMITS)
    assert generate(bench.loaded, prompts, segments, frozenset(), reader) == whole
    stop = whole[1][5]
    cut = [ids[: ids.index(stop)] if stop in ids else ids for ids in whole]
    assert len(cut[1]) < len(whole[1])
    assert generate(bench.loaded, prompts, segments, {stop}, reader) == cut


def test_who_has_stopped_has_no_rows(
    bench: Workbench, opening: tuple[list[Readable], list[Prompt]], monkeypatch: pytest.MonkeyPatch
) -> None:
    segments, prompts = opening
    rows = Rows(bench, monkeypatch)
    generate(bench.loaded, prompts, segments, frozenset(), reader_of(READERS["all"]))
    prefill, *steps = rows.counts
    assert prefill == sum(len(prompt.token_ids) for prompt in prompts)
    assert steps == [sum(limit > step for limit in LIMITS) for step in range(1, max(LIMITS))]


@pytest.mark.parametrize("most", [1, 200])
def test_prompts_in_packs_write_what_they_write_at_once(
    bench: Workbench, opening: tuple[list[Readable], list[Prompt]], most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    segments, prompts = opening
    reader = reader_of(READERS["all"])
    once = generate(bench.loaded, prompts, segments, frozenset(), reader)
    logits_NV, _, places = generating._prefill(bench.loaded, prompts, segments)
    rows = Rows(bench, monkeypatch)
    monkeypatch.setattr(generating, "_PACK_ROWS", most)
    packed_NV, _, packed_places = generating._prefill(bench.loaded, prompts, segments)
    assert packed_places == places
    assert sum(rows.counts) == sum(len(prompt.token_ids) for prompt in prompts)
    assert len(rows.counts) == len(prompts) if most == 1 else max(rows.counts) <= most
    torch.testing.assert_close(packed_NV, logits_NV)
    assert generate(bench.loaded, prompts, segments, frozenset(), reader) == once
