"""Reading a second time: one law for every way to answer, and what each way looks at."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from configs.stages import AnswerOver
from pipeline.document import Asked
from pipeline.prepared import Prepared
from tests.pipeline.readers import (
    BLOCK,
    LETTERS,
    WIDEN,
    Heat,
    document,
    encoded,
    hot,
    job,
    keep,
    reader_of,
    settle,
    text_with,
)
from workers.loading import load_reading
from workers.messages import Encode, Interval, Run, joined
from workers.selection.budgets.uniform import UniformBudget

WAYS: tuple[str, ...] = get_args(AnswerOver.model_fields["over"].annotation)
AGAIN = ("narrow", "two_round")
QUESTIONS = (Asked("who", "Who signed it?", "", 8, None), Asked("when", "When?", "In", 8, None))


def noise(seed: int) -> Heat:
    """Every block of every message as relevant as chance will have it, twice the same for the same block."""

    def heat(encode: Encode, ids: tuple[int, ...]) -> float:
        asked = "".join(probe.question_id for probe in encode.probes)
        return float(np.random.default_rng([seed, len(asked), len(encode.preface), *ids]).normal(scale=3))

    return heat


@pytest.mark.parametrize("over", WAYS)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    length=st.integers(1, 400),
    chunk_blocks=st.integers(2, 8),
    tokens=st.integers(BLOCK, 120),
    times=st.integers(2, 4),
    seed=st.integers(0, 2**16),
)
def test_whatever_is_read_again_what_is_kept_is_the_documents_and_within_the_budget(
    tiny_model: Path, over: str, length: int, chunk_blocks: int, tokens: int, times: int, seed: int
) -> None:
    answer = {"over": over, "narrow_budgets": times, "separator": "" if over == "kept" else "."}
    reader = reader_of(tiny_model, read={"chunk_tokens": BLOCK * chunk_blocks}, keep=keep(tokens), answer=answer)
    prepared = reader.prepare(document(LETTERS[:length], *QUESTIONS))
    offered: tuple[tuple[Interval, ...], ...] | None = (((0, 10**6),),) if over == "kept" else None
    rounds, selections = settle(reader, prepared, noise(seed), offered)
    assert len(rounds) == (2 if over in AGAIN else 1)
    for probe, selection in zip(prepared.probes, selections, strict=True):
        assert selection.query.probe == probe
        assert 0 < selection.choice.tokens <= tokens
        assert selection.table.share_LGB.sum() == pytest.approx(1)
        for run in selection.query.runs:
            assert run.token_ids == prepared.token_ids[run.start : run.stop] != ()
        runs = selection.query.runs
        assert all(earlier.stop < later.start for earlier, later in pairwise(runs))
    reading = load_reading(job(tiny_model))
    check_second_round(rounds, reading.shape.window - len(reading.frame.anchor))


def check_second_round(rounds: list[Prepared], room: int) -> None:
    """A question reads whole blocks of the document alone, in order, at places that are known, and it all fits."""
    for prepared in rounds[1:]:
        assert prepared.encodes == tuple(encode for look in prepared.looks for encode in look.encodes)
        for probe, look in zip(prepared.probes, prepared.looks, strict=True):
            assert {encode.probes for encode in look.encodes} == {(probe,)}
            text = [token for encode in look.encodes for chunk in encode.chunks for token in chunk.token_ids]
            extents = list(zip(look.table.starts_B.tolist(), look.table.stops_B.tolist(), strict=True))
            assert text == [token for start, stop in extents for token in prepared.token_ids[start:stop]]
            assert all(
                start % BLOCK == 0 and stop == min(start + BLOCK, prepared.num_tokens) for start, stop in extents
            )
            assert extents == sorted(extents)
            for encode in look.encodes:
                [chunk] = encode.chunks
                assert len(encode.preface) + len(chunk.token_ids) + len(probe.token_ids) <= room


class TestNarrow:
    """Coarse to fine."""

    def narrowed(self, model: Path, text: str, *, tokens: int = 48, times: int = 2, **heat: float) -> list[Prepared]:
        reader = reader_of(model, keep=keep(tokens), answer={"over": "narrow", "narrow_budgets": times})
        prepared = reader.prepare(document(text))
        return settle(reader, prepared, hot(prepared, **heat))[0]

    def test_the_best_blocks_are_read_together_in_document_order(self, tiny_model: Path) -> None:
        _, again = self.narrowed(tiny_model, text_with(A=40, B=250), A=10, B=9)
        [encode] = again.encodes
        [chunk] = encode.chunks
        starts = again.looks[0].table.starts_B.tolist()
        assert {32, 240} <= set(starts) and len(starts) == 96 // BLOCK
        assert len(chunk.token_ids) == 96 and chunk.start == 0

    def test_the_second_look_decides_and_widens_into_the_document(self, tiny_model: Path) -> None:
        """The first round likes A best, the second B, and B is widened into text that was not read again."""
        reader = reader_of(tiny_model, keep=keep(32), answer={"over": "narrow", "narrow_budgets": 2})
        prepared = reader.prepare(document(text_with(A=40, B=200, C=290)))
        first, second = hot(prepared, A=12, C=11.9, B=11.8), hot(prepared, B=20)
        step = reader.advance(prepared, encoded(prepared.encodes, first))
        assert isinstance(step, Prepared)
        assert step.looks[0].table.starts_B.tolist() == [32, 48, 192, 288]
        _, [selection] = settle(reader, step, second)
        assert (192 - WIDEN, 208 + WIDEN) in [(run.start, run.stop) for run in selection.query.runs]
        assert not any(run.start < 48 and run.stop > 32 for run in selection.query.runs)
        assert selection.table.relevance_of((192, 208)) > 0.4

    def test_what_does_not_fit_into_the_window_is_read_in_several_chunks(self, tiny_model: Path) -> None:
        _, again = self.narrowed(tiny_model, LETTERS[:-1] + "A", tokens=800, times=4, A=10)
        lengths = [len(chunk.token_ids) for encode in again.encodes for chunk in encode.chunks]
        assert len(lengths) == 2 and sum(lengths) == len(LETTERS)
        assert 1900 < lengths[0] < 2048 and lengths[0] % BLOCK == 0

    def test_every_chunk_keeps_its_floor_in_both_rounds(self, tiny_model: Path) -> None:
        floor = {"kind": "uniform", "tokens": 96, "min_blocks_per_chunk": 1}
        reader = reader_of(
            tiny_model,
            budget=UniformBudget(0, 1),
            keep={"block_tokens": BLOCK, "widen_tokens": 0, "budget": floor},
            answer={"over": "narrow", "narrow_budgets": 2},
        )
        prepared = reader.prepare(document(text_with(A=10)))
        _, [selection] = settle(reader, prepared, hot(prepared, A=10))
        kept = {place // 64 for run in selection.query.runs for place in range(run.start, run.stop)}
        assert kept == set(range(len(prepared.chunks)))


def test_a_chunk_is_read_again_behind_what_was_kept_of_the_others(tiny_model: Path) -> None:
    reader = reader_of(tiny_model, answer={"over": "two_round", "separator": "|"})
    prepared = reader.prepare(document(text_with(A=65, B=200)))
    (_, again), _ = settle(reader, prepared, hot(prepared, A=10, B=9))
    _, [once] = settle(reader_of(tiny_model, answer={"separator": "|"}), prepared, hot(prepared, A=10, B=9))
    runs, bar = once.query.runs, once.query.separator
    assert any(run.start < 64 < run.stop for run in runs), "a run lies on a border, and is cut there"
    for encode in again.encodes:
        [chunk] = encode.chunks
        own = range(chunk.start, chunk.start + len(chunk.token_ids))
        outside = [[token for place, token in enumerate(run.token_ids, run.start) if place not in own] for run in runs]
        expected = [token for part in outside if part for token in (*bar, *part)][len(bar) :]
        assert list(encode.preface) == expected
    assert [encode.chunks for encode in again.encodes] == [encode.chunks for encode in prepared.encodes]


@pytest.mark.parametrize(("over", "sizes"), [("narrow", [96, 48, 32, 16]), ("two_round", [64, 32, 16])])
def test_a_second_round_that_does_not_fit_starts_the_document_over_with_shorter_chunks(
    tiny_model: Path, over: str, sizes: list[int]
) -> None:
    reader = reader_of(tiny_model, answer={"over": over, "narrow_budgets": 2})
    prepared: Prepared | None = reader.prepare(document(text_with(A=40)))
    found = []
    while prepared is not None:
        assert (prepared.round, prepared.looks) == (1, ())
        (first, again), _ = settle(reader, prepared, hot(prepared, A=10))
        found.append(max(len(chunk.token_ids) for encode in again.encodes for chunk in encode.chunks))
        assert [t for chunk in first.chunks for t in chunk.token_ids] == list(first.token_ids)
        assert max(len(chunk.token_ids) for chunk in first.chunks) <= 64
        prepared = reader.cut_smaller(again)
    assert found == sizes


def test_runs_are_joined_with_a_separator_only_where_something_is_left_out() -> None:
    runs = [Run(0, (1, 2)), Run(2, (3,)), Run(9, (4,))]
    assert joined(runs, (0, 0)) == (1, 2, 3, 0, 0, 4)
    assert joined(runs) == (1, 2, 3, 4)
    assert joined([], (0,)) == ()
