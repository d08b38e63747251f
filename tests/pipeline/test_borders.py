"""Laws of borders: chunks are the document, within their lengths, and a change makes only the chunks around it new."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from configs.schema import Job
from configs.stages import AnswerOver, Read
from pipeline.borders import CUTS, WINDOW_TOKENS, cut_by_content, gear_hashes, least_tokens
from pipeline.prepared import Prepared, Selection, cut
from pipeline.reading import DocumentReader
from pipeline.rounds import whole_blocks
from tests.pipeline.jobs import Bench, sentence
from tests.pipeline.readers import BLOCK, LETTERS, document, keep, reader_of, settle
from tests.pipeline.test_rounds import QUESTIONS, noise
from workers.engine import Engine
from workers.loading import find_or_calibrate, load_engine, load_method, load_reading
from workers.messages import Ask, Chunk, Encoded, Generated, Interval

Ids = tuple[int, ...]
WAYS: tuple[str, ...] = get_args(AnswerOver.model_fields["over"].annotation)
TEXT = tuple(sentence(60_000, seed=0).encode())
CONTENT = {"borders": "content"}


@st.composite
def texts(draw: st.DrawFn, longest: int = 1000) -> Ids:
    """Token ids of a vocabulary of one token, a few, or many."""
    size, seed, vocabulary = draw(
        st.tuples(st.integers(0, longest), st.integers(0, 99), st.sampled_from([1, 3, 50_000]))
    )
    return tuple(np.random.default_rng(seed).integers(vocabulary, size=size).tolist())


def stops_of(chunks: Sequence[Chunk]) -> list[int]:
    return [chunk.start + len(chunk.token_ids) for chunk in chunks]


def test_every_word_of_the_setting_cuts() -> None:
    assert set(CUTS) == set(get_args(Read.model_fields["borders"].annotation))
    assert Read().borders == "even" and CUTS["even"] is cut


@pytest.mark.parametrize("borders", CUTS)
@given(ids=texts(), longest=st.integers(1, 200))
def test_chunks_are_the_document_in_order_and_none_is_too_long_or_too_short(
    borders: str, ids: Ids, longest: int
) -> None:
    chunks = CUTS[borders](ids, longest)
    assert tuple(token for chunk in chunks for token in chunk.token_ids) == ids
    assert [chunk.index for chunk in chunks] == list(range(len(chunks)))
    assert [chunk.start for chunk in chunks] == [0, *stops_of(chunks)][: len(chunks)]
    least = least_tokens(longest) if borders == "content" else longest
    assert all(least <= len(chunk.token_ids) <= longest for chunk in chunks[:-1])
    assert all(1 <= len(chunk.token_ids) <= longest for chunk in chunks[-1:])


def test_the_same_tokens_are_cut_at_the_same_places_on_every_machine() -> None:
    ids = tuple((n * n * 7919 + n) % 49_152 for n in range(4000))
    hashes = [16294208416658607535, 9221504377359073736, 17886141910619053482]
    assert gear_hashes(np.array(ids[:40], dtype=np.uint64))[[0, 31, 39]].tolist() == hashes
    assert stops_of(cut_by_content(ids, 640)) == [449, 692, 1255, 1836, 2262, 2693, 3244, 3846, 4000]


@given(ids=texts(longest=80))
def test_a_hash_is_the_sum_of_the_gears_in_its_window_each_moved_up_by_its_age(ids: Ids) -> None:
    gears = [int(gear_hashes(np.array([token], dtype=np.uint64))[0]) for token in ids]
    bits = 64 // WINDOW_TOKENS
    expected = [
        sum(gears[n - age] << (bits * age) for age in range(min(n + 1, WINDOW_TOKENS))) % 2**64 for n in range(len(ids))
    ]
    assert gear_hashes(np.array(ids, dtype=np.uint64)).tolist() == expected


@given(count=st.integers(0, 2000), token=st.integers(0, 2**31))
def test_text_that_is_all_the_same_is_cut_evenly(count: int, token: int) -> None:
    assert cut_by_content((token,) * count, 128) == cut((token,) * count, 128)


@given(
    ids=texts(1000),
    longest=st.integers(8, 120),
    place=st.floats(0, 1),
    gone=st.integers(0, 300),
    new=texts(300),
)
def test_a_change_moves_no_border_before_it_and_none_behind_the_first_that_is_met_again(
    ids: Ids, longest: int, place: float, gone: int, new: Ids
) -> None:
    """A border is decided by the chunk's start, the tokens up to its longest end, and whether the document goes on."""
    first = int(place * len(ids))
    last = min(len(ids), first + gone)
    changed = (*ids[:first], *new, *ids[last:])
    before, after = cut_by_content(ids, longest), cut_by_content(changed, longest)
    ahead = [chunk for chunk in before if chunk.start + longest < min(first, len(ids), len(changed))]
    assert after[: len(ahead)] == tuple(ahead)
    behind = last + WINDOW_TOKENS
    old = {stop for stop in stops_of(before) if stop >= behind}
    moved = {stop - len(changed) + len(ids) for stop in stops_of(after) if stop - len(changed) + len(ids) >= behind}
    met = min(old & moved, default=len(ids))
    assert {stop for stop in old if stop >= met} == {stop for stop in moved if stop >= met}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("gone", "come"), [(0, 100), (100, 0), (60, 60), (1, 1), (0, 1)])
def test_a_change_near_the_front_leaves_nearly_all_chunks_where_even_borders_leave_none(
    gone: int, come: int, seed: int
) -> None:
    """Of tokens that only change places, even borders keep all behind the change."""
    first = len(TEXT) // 100
    new = tuple(sentence(1000, seed=seed + 1).encode())[-come:] if come else ()
    changed = (*TEXT[:first], *new, *TEXT[first + gone :])

    def unchanged(borders: str) -> float:
        old = {chunk.token_ids for chunk in CUTS[borders](TEXT, 1024)}
        chunks = CUTS[borders](changed, 1024)
        return sum(chunk.token_ids in old for chunk in chunks) / len(chunks)

    assert unchanged("content") >= 0.9
    assert unchanged("even") == 0.0 if gone != come else unchanged("even") >= 0.9


@given(ids=texts(1000), more=texts(300), longest=st.integers(8, 120))
def test_a_document_that_grew_at_its_end_keeps_all_chunks_but_the_last(ids: Ids, more: Ids, longest: int) -> None:
    kept, after = cut_by_content(ids, longest)[:-1], cut_by_content(ids + more, longest)
    assert after[: len(kept)] == kept


@given(
    sizes=st.lists(st.tuples(st.integers(1, 60), st.integers(0, 60)), max_size=8),
    block=st.integers(1, 20),
    rest=st.integers(0, 40),
)
def test_whole_blocks_cover_what_was_kept_and_little_more(sizes: list[tuple[int, int]], block: int, rest: int) -> None:
    kept: list[Interval] = []
    end = 0
    for size, gap in sizes:
        start = end + gap + bool(kept)
        kept.append((start, end := start + size))
    end += rest
    blocks = whole_blocks(kept, block, end)
    assert all(stop - start == block or stop == end for start, stop in blocks)
    assert all(stop <= start for (_, stop), (start, _) in pairwise(blocks))
    covered = {place for start, stop in blocks for place in range(start, stop)}
    wanted = {place for start, stop in kept for place in range(start, stop)}
    assert wanted <= covered and len(covered - wanted) < block * max(1, len(kept))


@pytest.mark.parametrize("over", WAYS)
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(length=st.integers(1, 600), tokens=st.integers(BLOCK, 120), seed=st.integers(0, 2**16))
def test_whatever_is_read_of_it_a_document_cut_by_content_is_kept_within_the_budget(
    tiny_model: Path, over: str, length: int, tokens: int, seed: int
) -> None:
    read = CONTENT | {"chunk_tokens": 4 * BLOCK}
    reader = reader_of(tiny_model, read=read, keep=keep(tokens), answer={"over": over})
    prepared = reader.prepare(document(LETTERS[seed % 1000 :][:length], *QUESTIONS))
    assert prepared.chunks == cut_by_content(prepared.token_ids, 4 * BLOCK)
    offered = (((0, 10**6),),) if over == "kept" else None
    rounds, selections = settle(reader, prepared, noise(seed), offered)
    for selection in selections:
        assert 0 < selection.choice.tokens <= tokens
        assert selection.table.share_LGB.sum() == pytest.approx(1)
        for run in selection.query.runs:
            assert run.token_ids == prepared.token_ids[run.start : run.stop] != ()
    for look in [look for again in rounds[1:] for look in again.looks]:
        check_blocks(look.encodes, look.table.starts_B.tolist(), look.table.stops_B.tolist(), prepared.token_ids)


def check_blocks(encodes: Sequence[Any], starts: list[int], stops: list[int], ids: Ids) -> None:
    """The blocks that an engine counts from the chunks' starts are those of the table."""
    counted = [
        chunk.token_ids[first : first + BLOCK]
        for encode in encodes
        for chunk in encode.chunks
        for first in range(0, len(chunk.token_ids), BLOCK)
    ]
    assert counted == [ids[start:stop] for start, stop in zip(starts, stops, strict=True)]


@pytest.mark.parametrize("context", ["isolated", "carried"])
def test_a_document_cut_by_content_can_be_cut_smaller_down_to_one_block(tiny_model: Path, context: str) -> None:
    reader = reader_of(tiny_model, read=CONTENT | {"chunk_tokens": 128, "context": context})
    prepared: Prepared | None = reader.prepare(document(LETTERS))
    longest = []
    while prepared is not None:
        longest.append(max(len(chunk.token_ids) for chunk in prepared.chunks))
        assert [chunk for encode in prepared.encodes for chunk in encode.chunks] == list(prepared.chunks)
        assert [token for chunk in prepared.chunks for token in chunk.token_ids] == list(prepared.token_ids)
        prepared = reader.cut_smaller(prepared)
    assert longest == sorted(set(longest), reverse=True) and longest[-1] <= BLOCK


# -- a store that outlives its reader -------------------------------------------------------------------------------

PAGES = sentence(2000, seed=7)
GROWN = PAGES[:150] + " Utrecht signed nothing in May. " + PAGES[150:]


@dataclass(frozen=True)
class Outcome:
    """What came of a document: chunks that its first round found in the store, what was kept, and the answers."""

    prepared: Prepared
    hits: int
    selections: list[Selection]
    answers: list[str]


def read(job: Job, engine: Engine, text: str) -> Outcome:
    """A document's whole journey with one engine."""
    reading = load_reading(job)
    parts = load_method(job, reading, find_or_calibrate(job, reading))
    reader = DocumentReader(job, reading, parts.scorer, parts.budget)
    prepared = reader.prepare(document(text, *QUESTIONS))
    hits: list[int] = []
    step: Prepared | list[Selection] = prepared
    while isinstance(step, Prepared):
        encoded: list[Encoded] = [engine.encode(task) for task in step.encodes]
        hits.append(sum(message.cache_hits for message in encoded))
        step = reader.advance(step, encoded)
    written: list[Generated] = [engine.answer(Ask((selection.query,))).answers[0] for selection in step]
    return Outcome(prepared, hits[0], step, [generated.text for generated in written])


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Bench:
    return Bench(tmp_path_factory.mktemp("borders"), tiny_model, [10])


def engine_of(job: Job) -> Engine:
    return load_engine(job, find_or_calibrate(job, load_reading(job)))


@pytest.mark.parametrize("tier", ["memory", "files"])
@pytest.mark.parametrize("over", WAYS)
def test_of_a_document_that_changed_only_what_changed_is_read_again(
    bench: Bench, tmp_path: Path, over: str, tier: str
) -> None:
    """From files the second reader is another engine; from memory the same."""
    store = {"keep": True, "tiers": [{"kind": tier} | ({"path": str(tmp_path)} if tier == "files" else {})]}
    changes: dict[str, Any] = {"read": CONTENT | {"chunk_tokens": 128}, "answer": {"over": over}}
    job, without = bench.job(store=store, **changes), bench.job(store={"tiers": []}, **changes)
    engine = engine_of(job)
    first = read(job, engine, PAGES)
    again = read(job, engine if tier == "memory" else engine_of(job), GROWN)
    alone = read(without, engine_of(without), GROWN)
    old = {chunk.token_ids for chunk in first.prepared.chunks}
    unchanged = sum(chunk.token_ids in old for chunk in again.prepared.chunks)
    assert (first.hits, again.hits, alone.hits) == (0, unchanged, 0)
    assert len(again.prepared.chunks) > 20 and unchanged >= 0.9 * len(again.prepared.chunks)
    assert again.answers == alone.answers != [""] * len(QUESTIONS)
    assert [s.query for s in again.selections] == [s.query for s in alone.selections]
    assert [s.choice for s in again.selections] == [s.choice for s in alone.selections]


def test_with_even_borders_all_of_it_is_read_again(bench: Bench) -> None:
    job = bench.job()
    engine = engine_of(job)
    assert read(job, engine, PAGES).hits == 0
    assert read(job, engine, GROWN).hits == 1, "the chunk before the change"


def test_carried_reading_reads_all_of_a_changed_document_again(bench: Bench) -> None:
    """Each chunk reads what was kept of all before it, and they travel in one message."""
    changes: dict[str, Any] = {"read": CONTENT | {"chunk_tokens": 128, "context": "carried"}}
    job, without = bench.job(**changes), bench.job(store={"tiers": []}, **changes)
    engine = engine_of(job)
    first, again, same = (read(job, engine, text) for text in (PAGES, GROWN, PAGES))
    assert (first.hits, again.hits, same.hits) == (0, 0, len(first.prepared.chunks))
    assert again.answers == read(without, engine_of(without), GROWN).answers


@pytest.mark.parametrize("scorer", ["keydiff", "reconstruct"])
def test_a_budget_that_grows_with_its_document_reads_it_again_unless_chunks_have_shares_of_their_own(
    bench: Bench, scorer: str
) -> None:
    """Then a whole document may keep more than before, and the chunks that did not change still are what they were."""
    budget = {"kind": "adaptive", "fraction": 0.4}
    for chunk_fraction in (None, 0.25):
        keep = {
            "scorer": {"kind": scorer}, "question": "unknown", "budget": budget, "chunk_fraction": chunk_fraction,
            "block_tokens": BLOCK, "widen_tokens": 2,
        }  # fmt: skip
        changes: dict[str, Any] = {"read": CONTENT | {"chunk_tokens": 128}, "keep": keep, "answer": {"over": "kept"}}
        job = bench.job(store={"keep": True, "tiers": [{"kind": "memory"}]}, **changes)
        without = bench.job(store={"tiers": []}, **changes)
        engine = engine_of(job)
        first, again = read(job, engine, PAGES[:400]), read(job, engine, GROWN[:430])
        old = {chunk.token_ids for chunk in first.prepared.chunks}
        unchanged = sum(chunk.token_ids in old for chunk in again.prepared.chunks)
        assert unchanged > 0 and again.hits == (unchanged if chunk_fraction else 0)
        alone = read(without, engine_of(without), GROWN[:430])
        assert again.answers == alone.answers
        assert [s.choice for s in again.selections] == [s.choice for s in alone.selections]
