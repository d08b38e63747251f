"""One document's journey, without a model: what is asked, what is kept, what is written down."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.document import Asked, Fault
from pipeline.errors import JobError
from pipeline.prepared import Prepared
from tests.pipeline.readers import BLOCK, LETTERS, document, hot, job, keep, reader_of, settle, text_with
from workers.loading import load_reading
from workers.messages import Generated
from workers.selection.budgets.uniform import UniformBudget
from workers.selection.profile import Profile
from workers.selection.scorers.base import ChunkScores
from workers.selection.scorers.probe import ProbeScorer

TEXT = text_with(A=100)


def test_chunks_are_the_document_and_travel_alone_unless_carried(tiny_model: Path) -> None:
    isolated = reader_of(tiny_model).prepare(document(TEXT))
    carried = reader_of(tiny_model, read={"chunk_tokens": 64, "context": "carried"}).prepare(document(TEXT))
    for prepared in (isolated, carried):
        assert [t for chunk in prepared.chunks for t in chunk.token_ids] == list(prepared.token_ids)
        assert [chunk.start for chunk in prepared.chunks] == [0, 64, 128, 192, 256]
    assert [len(encode.chunks) for encode in isolated.encodes] == [1] * 5
    assert [len(encode.chunks) for encode in carried.encodes] == [5]


def test_what_is_attended_to_is_kept_widened_and_quoted(tiny_model: Path) -> None:
    reader = reader_of(tiny_model)
    prepared = reader.prepare(document(TEXT))
    _, [selection] = settle(reader, prepared, hot(prepared, A=10))
    answer = reader.answer(prepared, 0, selection, Generated(" It was me. ", 4, 0.25), 1.5)
    assert answer.kept_tokens <= 48 and answer.document_tokens == 300
    [best] = [span for span in answer.spans if span.start <= 96 - 4 and span.end >= 112 + 4]
    assert best.text == TEXT[best.start : best.end] and best.share > 0.5
    assert answer.relevance_kept == pytest.approx(sum(span.share for span in answer.spans))
    assert (answer.answer, answer.seconds_encode, answer.seconds_answer) == ("It was me.", 1.5, 0.25)
    assert (answer.id, answer.question_id, answer.source_file, answer.source_row) == ("doc", "who", "x.parquet", 3)


@pytest.mark.parametrize("text", ["naïve 😀😀 " * 20, "a\x00b" * 60, "日本語" * 40])
def test_spans_never_cut_a_character(tiny_model: Path, text: str) -> None:
    reader = reader_of(tiny_model)
    prepared = reader.prepare(document(text))
    _, [selection] = settle(reader, prepared, lambda encode, ids: float(ids[0] % 7))
    answer = reader.answer(prepared, 0, selection, Generated("x", 1, 0.1), 0.1)
    for span in answer.spans:
        assert span.text == text[span.start : span.end] and span.text
        span.text.encode()


class TestKeptPairs:
    """Answers over kept pairs: which pairs, and where they come from."""

    def test_they_are_among_what_was_offered_and_name_their_sources(self, tiny_model: Path) -> None:
        reader = reader_of(tiny_model, answer={"over": "kept"})
        prepared = reader.prepare(document(TEXT))
        _, [selection] = settle(reader, prepared, hot(prepared, A=10), offered=(((32, 48),),))
        query = selection.query
        assert query.shape == (1, 1) and query.kept == (tuple((run.start, run.stop) for run in query.runs),)
        places = {place for run in query.runs for place in range(run.start, run.stop)}
        assert 100 in places
        assert places <= {first + place for first in range(0, 300, 64) for place in range(32, 48)}
        sources = {chunk.start for source in query.sources for chunk in source.chunks}
        assert sources == {place // 64 * 64 for place in places}

    @pytest.mark.parametrize(("positions", "spread"), [("compact", None), ("original", 300)])
    def test_they_are_moved_together_or_stay_where_they_stood(
        self, tiny_model: Path, positions: str, spread: int | None
    ) -> None:
        reader = reader_of(tiny_model, answer={"over": "kept", "positions": positions})
        prepared = reader.prepare(document(TEXT))
        _, [selection] = settle(reader, prepared, hot(prepared, A=10), offered=(((0, 64),),))
        assert selection.query.spread == spread

    def test_the_window_bounds_a_document_whose_pairs_stay(self, tiny_model: Path) -> None:
        """To the token: one letter more is refused, with what to do."""
        reader = reader_of(tiny_model, answer={"over": "kept", "positions": "original"})
        reading, [probe] = load_reading(job(tiny_model)), reader.prepare(document("b")).probes
        fits = reading.shape.window - len(reading.frame.anchor) - len(probe.token_ids) - 8
        assert not reader.prepare(document("b" * fits)).failures
        [failure] = reader.prepare(document("b" * (fits + 1))).failures
        assert f"document {fits + 1} + " in failure.message and "answer.positions: compact" in failure.message

    def test_each_layer_and_head_keeps_its_own_and_the_spans_show_what_they_share(self, tiny_model: Path) -> None:
        """The first head looks at what is hot, the others at the end, then at the beginning; the last may not keep
        the beginnings of chunks."""
        reader = reader_of(tiny_model, scorer=OneHeadLooks(Profile("tiny", ((0, 1),))), answer={"over": "kept"})
        prepared = reader.prepare(document(TEXT))
        offered = (((0, 64),), ((0, 64),), ((0, 64),), ((16, 64),))
        _, [selection] = settle(reader, prepared, hot(prepared, A=10), offered)
        query, choice = selection.query, selection.choice
        assert query.shape == choice.shape == (2, 2) and query.kept == choice.kept
        assert any(start <= 96 and stop >= 112 for start, stop in choice.of(0, 0))
        assert choice.of(1, 0)[0][0] == 0 and choice.of(1, 0)[-1] == (284, 300)
        assert choice.of(1, 1)[0][0] == 16 and choice.of(1, 1)[-1] == (284, 300)
        union = {place for kept in query.kept for start, stop in kept for place in range(start, stop)}
        assert {chunk.start for source in query.sources for chunk in source.chunks} == {p // 64 * 64 for p in union}
        answer = reader.answer(prepared, 0, selection, Generated("x", 1, 0.1), 0.1)
        assert answer.kept_tokens == round(sum(stop - start for kept in query.kept for start, stop in kept) / 4)
        held = [selection.table.share_LGB[n // 2, n % 2] @ _covered(kept) for n, kept in enumerate(query.kept)]
        assert answer.relevance_kept == pytest.approx(np.mean(held))
        assert [(run.start, run.stop) for run in query.runs] == [(span.start, span.end) for span in answer.spans]
        assert sum(len(run.token_ids) for run in query.runs) <= 48


@dataclass(frozen=True)
class OneHeadLooks(ProbeScorer):
    """Two layers with two kv heads; all but the first look at the last block."""

    def settle(self, chunks: Sequence[ChunkScores]) -> list[NDArray[np.float64]]:
        shares = super().settle(chunks)
        for index, chunk_LGB in enumerate(shares):
            end_B = np.zeros(chunk_LGB.shape[2])
            end_B[-1] = index == len(shares) - 1
            shares[index] = np.stack([np.stack([chunk_LGB[0, 0], end_B]), np.stack([end_B, end_B])])
        return shares


def _covered(kept: Sequence[tuple[int, int]]) -> NDArray[np.float64]:
    """Which part of each block of a text of 300 tokens is kept, counted token by token."""
    token_T = np.zeros(300)
    for start, stop in kept:
        token_T[start:stop] = 1
    return np.array([token_T[first : first + BLOCK].mean() for first in range(0, 300, BLOCK)])


def test_a_separator_stands_between_kept_runs_that_were_no_neighbours(tiny_model: Path) -> None:
    reader = reader_of(tiny_model, answer={"separator": "..."})
    prepared = reader.prepare(document(text_with(A=20, B=250)))
    _, [selection] = settle(reader, prepared, hot(prepared, A=10, B=10))
    runs = selection.query.runs
    dot = selection.query.separator
    assert len(runs) == 2 and len(dot) == 3
    assert selection.query.reread == (*runs[0].token_ids, *dot, *runs[1].token_ids, *prepared.probes[0].token_ids)
    assert selection.choice.tokens == sum(len(run.token_ids) for run in runs)


def test_a_fraction_is_of_the_documents_own_length_and_never_less_than_a_block(tiny_model: Path) -> None:
    reader = reader_of(tiny_model, keep=keep(fraction=0.25))
    for length, tokens in ((300, 75), (40, BLOCK), (5, BLOCK)):
        prepared = reader.prepare(document(LETTERS[:length]))
        assert {encode.budget_tokens for encode in prepared.encodes} == {prepared.budget_tokens} == {tokens}
        _, [selection] = settle(reader, prepared, lambda encode, ids: 0.0)
        assert 0 < selection.choice.tokens <= tokens


class TestTooLong:
    """What can never fit into the window is refused, with the sum: for the whole job, or for one question."""

    def test_a_question_too_long_for_the_window_fails_alone(self, tiny_model: Path) -> None:
        long = Asked("long", "why " * 600, "", 8, None)
        greedy = Asked("greedy", "Why?", "", 5000, None)
        fine = Asked("who", "Who signed it?", "", 8, None)
        prepared = reader_of(tiny_model).prepare(document(TEXT, long, fine, greedy))
        assert [asked.question_id for asked in prepared.asked] == ["who"]
        assert [(f.question_id, f.stage, f.error, f.retryable) for f in prepared.failures] == [
            ("long", "prepare", "QuestionTooLong", False),
            ("greedy", "prepare", "QuestionTooLong", False),
        ]
        assert "the model's window is 2048" in prepared.failures[0].message
        assert "max_new_tokens 5000" in prepared.failures[1].message

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"questions": [{"id": "who", "text": "why " * 600}]}, r"questions\[0\] \(who\): .*window is 2048"),
            ({"questions": [{"id": "who", "text": "Who?", "max_new_tokens": 3000}]}, "max_new_tokens 3000"),
            ({"keep": keep(4096)}, r"keep\.budget\.tokens 4096"),
            ({"read": {"chunk_tokens": 4096}}, r"read\.chunk_tokens 4096"),
            ({"read": {"chunk_tokens": 1024, "context": "carried"}, "keep": keep(1100)}, "carried 1100"),
            (
                {"read": {"chunk_tokens": 1024}, "keep": keep(1100), "answer": {"over": "two_round"}},
                r"kept of other chunks 1100 .*lower read\.chunk_tokens or keep\.budget\.tokens",
            ),
            ({"keep": keep(1600), "answer": {"separator": "....."}}, r"answer\.separator 500"),
        ],
    )  # fmt: skip
    def test_a_job_that_can_never_fit_is_refused_before_it_starts(
        self, tiny_model: Path, changes: dict[str, object], message: str
    ) -> None:
        with pytest.raises(JobError, match=message):
            reader_of(tiny_model, **changes)

    def test_a_fraction_of_a_long_document_fails_where_that_of_a_short_one_fits(self, tiny_model: Path) -> None:
        reader = reader_of(tiny_model, keep=keep(fraction=0.8))
        assert not reader.prepare(document(LETTERS[:1000])).failures
        prepared = reader.prepare(document(LETTERS))
        [failure] = prepared.failures
        assert failure.error == "QuestionTooLong" and "keep.budget.fraction 2400" in failure.message
        assert not prepared.encodes and not prepared.chunks

    def test_over_kept_pairs_the_fullest_head_counts(self, tiny_model: Path) -> None:
        reader_of(tiny_model, keep=keep(1100), answer={"over": "kept"})
        with pytest.raises(JobError, match=r"keep\.budget\.tokens 2200"):
            reader_of(tiny_model, budget=TwiceInOneHead(4), keep=keep(1100), answer={"over": "kept"})


class TwiceInOneHead(UniformBudget):
    """Some head may keep twice the budget."""

    def most(self, tokens: int) -> int:
        return 2 * tokens


def test_a_faulty_document_fails_every_question_of_it(tiny_model: Path) -> None:
    two = (Asked("a", "Who?", "", 8, None), Asked("b", "When?", "", 8, None))
    prepared = reader_of(tiny_model).prepare(document(None, *two, fault=Fault("NullText", "text is null")))
    assert not prepared.encodes and not prepared.asked
    assert [(f.question_id, f.stage, f.error) for f in prepared.failures] == [
        ("a", "corpus", "NullText"),
        ("b", "corpus", "NullText"),
    ]


def test_a_document_shorter_than_one_block_is_read_whole(tiny_model: Path) -> None:
    reader = reader_of(tiny_model)
    prepared = reader.prepare(document("tiny"))
    _, [selection] = settle(reader, prepared, lambda encode, ids: 0.0)
    assert [(run.start, run.stop) for run in selection.query.runs] == [(0, 4)]


@pytest.mark.parametrize("context", ["isolated", "carried"])
def test_a_document_can_be_cut_smaller_down_to_one_block(tiny_model: Path, context: str) -> None:
    reader = reader_of(tiny_model, read={"chunk_tokens": 64, "context": context})
    prepared: Prepared | None = reader.prepare(document(TEXT))
    sizes = []
    while prepared is not None:
        sizes.append(len(prepared.chunks[0].token_ids))
        assert [t for chunk in prepared.chunks for t in chunk.token_ids] == list(prepared.token_ids)
        assert [chunk for encode in prepared.encodes for chunk in encode.chunks] == list(prepared.chunks)
        prepared = reader.cut_smaller(prepared)
    assert sizes == [64, 32, 16]
