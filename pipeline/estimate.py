"""What a job would do, for ``foveate plan``: its documents counted, its bytes computed, its time estimated.

Invariants: the corpus is streamed and every document tokenized, so that counts are counts; nothing is written
to the output or the store (a model that must be converted or downloaded is, into its cache); the time rests
on what was measured here, and ``Measured`` says on what.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from cache_store.pairs import bytes_per_number
from configs.schema import Job, Store
from pipeline.corpus import CorpusFiles, open_corpus
from pipeline.plan import make_plan
from pipeline.prepared import Prepared
from pipeline.preparing import Preparer
from workers.errors import BackendUnavailable, ModelError
from workers.index import kv_heads
from workers.keeping import Keeping
from workers.loading import (
    Reading,
    find_or_calibrate,
    load_engine,
    load_reading,
    resolve_runtime,
    with_dtype,
)
from workers.messages import Ask, Encode, Encoded, Query, Run
from workers.method import needs_profile
from workers.selection.budgets import budget_of
from workers.selection.budgets.base import Budget
from workers.selection.profile import find_profile
from workers.selection.scorers.index import IndexScorer

Tick = Callable[[int, int], None]


@dataclass(frozen=True)
class Counts:
    """What is in the corpus. ``failures``: questions that will fail, by class; ``questions`` are the others.
    ``kept_tokens``: tokens kept for all questions together; ``again_tokens``: what second rounds read;
    ``answer_tokens``: the most that may be written."""

    documents: int
    unasked: int
    questions: int
    failures: dict[str, int]
    tokens: int
    longest: int
    chunks: int
    offered_tokens: int
    kept_tokens: int
    again_tokens: int
    answer_tokens: int
    parts: int


@dataclass(frozen=True)
class Measured:
    """Seconds that one chunk and one answer took here, on one engine."""

    chunk_tokens: int
    chunk_questions: int
    seconds_chunk: float
    answer_tokens: int
    seconds_answer: float


@dataclass(frozen=True)
class Estimate:
    """``full_kv_bytes``: all pairs of all documents in all layers; ``kept_kv_bytes``: those that answers are
    computed over; ``store_bytes``: keys and values that the engines put into the store, at most; None where no
    calibration has said yet which an index has. ``unmeasured``: why there is no time."""

    counts: Counts
    dtype: str
    window: int
    full_kv_bytes: int
    kept_kv_bytes: int
    store_bytes: int | None
    engines: int
    measured: Measured | None
    unmeasured: str

    @property
    def seconds(self) -> float | None:
        """Estimated time of the run, all engines busy; None where nothing was measured."""
        if self.measured is None:
            return None
        tokens = self.counts.tokens + self.counts.again_tokens
        reading = tokens * self.measured.seconds_chunk / self.measured.chunk_tokens
        return (reading + self.counts.questions * self.measured.seconds_answer) / self.engines


def estimate(job: Job, *, measure: bool = True, tick: Tick | None = None) -> Estimate:
    """Read the whole corpus once and add up. ``tick(done, total)`` is called for every document. Raises
    ``JobError`` and ``ModelError`` as a run would."""
    job = with_dtype(job)
    dtype = job.model.dtype
    reading = load_reading(job)
    budget = budget_of(job.keep, shape=reading.shape, weights=reading.source.weights)
    reader = Preparer(job, reading, budget)
    corpus = open_corpus(job.corpus, job.questions)
    counts, sample = _count(job, corpus, reader, budget, tick)
    per_token = reading.shape.bytes_per_token(getattr(torch, dtype))
    per_stored = _bytes_per_stored_token(job, reading)
    unmeasured = _why_not_measured(job, reading, sample, measure)
    return Estimate(
        counts=counts,
        dtype=dtype,
        window=reading.shape.window,
        full_kv_bytes=counts.tokens * per_token,
        kept_kv_bytes=counts.kept_tokens * per_token,
        store_bytes=None if per_stored is None else counts.offered_tokens * per_stored,
        engines=_engines(job),
        measured=None if unmeasured or sample is None else _measure(job, sample),
        unmeasured=unmeasured,
    )


def _count(
    job: Job, corpus: CorpusFiles, reader: Preparer, budget: Budget, tick: Tick | None
) -> tuple[Counts, Prepared | None]:
    """Add up, and remember one document to measure with: the first that fills a chunk, else the longest."""
    plan = make_plan(corpus, job.output.part_tokens)
    sums: Counter[str] = Counter(rows=0)
    failures: Counter[str] = Counter()
    sample: Prepared | None = None
    longest = 0
    for part in plan.parts:
        for run in part.runs:
            for document in corpus.rows(run, plan.first_places):
                prepared = reader.prepare(document)
                questions, tokens = len(prepared.probes), prepared.num_tokens
                failures.update(failure.error for failure in prepared.failures)
                longest = max(longest, tokens)
                offered = _offered_tokens(job, prepared, budget)
                held = offered if job.keeps_pairs else tokens  # no chunk offers more than it has
                sums.update(
                    rows=1,
                    questions=questions,
                    tokens=tokens,
                    chunks=len(prepared.chunks),
                    offered=offered * (questions if job.keep.question == "known" else min(1, questions)),
                    kept=questions * min(prepared.budget_tokens, held),
                    again=questions * _tokens_again(job, prepared),
                    answers=sum(asked.max_new_tokens for asked in prepared.asked),
                )
                if prepared.chunks and _is_better(prepared, sample, job.read.chunk_tokens):
                    sample = prepared
                if tick is not None:
                    tick(sums["rows"], plan.rows)
    counts = Counts(
        documents=sums["rows"],
        unasked=plan.unasked,
        questions=sums["questions"],
        failures=dict(failures.most_common()),
        tokens=sums["tokens"],
        longest=longest,
        chunks=sums["chunks"],
        offered_tokens=sums["offered"],
        kept_tokens=sums["kept"],
        again_tokens=sums["again"],
        answer_tokens=sums["answers"],
        parts=len(plan.parts),
    )
    return counts, sample


def _offered_tokens(job: Job, prepared: Prepared, budget: Budget) -> int:
    """What a document's chunks leave per layer and head: an index of all their tokens, or pairs of some."""
    lengths = [len(chunk.token_ids) for chunk in prepared.chunks]
    keep = job.keep
    if keep.scorer.kind == "index":
        return sum(lengths)
    keeping = Keeping(budget, prepared.budget_tokens, keep.block_tokens, keep.widen_tokens, keep.chunk_fraction)
    return sum(keeping.bound(length) for length in lengths)


def _bytes_per_stored_token(job: Job, reading: Reading) -> int | None:
    """Of a token of which all layers and heads keep pairs, or of the heads of an index; None before calibration."""
    shape, dtype = reading.shape, getattr(torch, job.model.dtype)
    row_bytes = shape.head_dim * bytes_per_number(job.keep.codec, dtype)
    if job.keep.scorer.kind == "index":
        profile = find_profile(job.model.profile, reading.source.weights)
        if profile is None or profile.index is None:
            return None
        return len(kv_heads(IndexScorer(profile.index), shape)) * row_bytes
    return 2 * shape.num_layers * shape.num_kv_heads * row_bytes if job.keeps_pairs else 0


def _tokens_again(job: Job, prepared: Prepared) -> int:
    """What a second round reads for each question: a narrowed text, or every chunk behind what others left."""
    tokens, budget = prepared.num_tokens, prepared.budget_tokens
    if job.answer.over == "narrow":
        return min(tokens, job.answer.narrow_budgets * budget)
    return tokens + len(prepared.chunks) * min(tokens, budget) if job.answer.over == "two_round" else 0


def _is_better(prepared: Prepared, sample: Prepared | None, chunk_tokens: int) -> bool:
    return sample is None or sample.num_tokens < min(chunk_tokens, prepared.num_tokens)


def _why_not_measured(job: Job, reading: Reading, sample: Prepared | None, wanted: bool) -> str:
    """Empty where a chunk can be measured."""
    if not wanted:
        return "not measured (--no-measure)"
    try:
        resolve_runtime(job.model)
    except (ModelError, BackendUnavailable) as error:
        return f"not measured: {error}"
    if sample is None:
        return "no document that can be read"
    if needs_profile(job.keep) and find_profile(job.model.profile, reading.source.weights) is None:
        return "this model is not calibrated yet: run `foveate calibrate`, or the first run will do it"
    return ""


def _measure(job: Job, sample: Prepared) -> Measured:
    """Time one chunk and one answer on an engine with an empty store of its own, one thread as in a pool."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        profile = find_or_calibrate(job, load_reading(job))
        engine = load_engine(job.model_copy(update={"store": Store()}), profile)
        chunk = sample.chunks[0]
        task = Encode("estimate", (chunk,), sample.probes, sample.budget_tokens)
        short = replace(chunk, token_ids=chunk.token_ids[: job.keep.block_tokens])
        engine.encode(replace(task, chunks=(short,)))
        started = time.perf_counter()
        encoded = engine.encode(task)
        seconds_chunk = time.perf_counter() - started
        query = _query(sample, task, encoded, engine.kv_shape)
        answered = engine.answer(Ask((query,)))
    finally:
        torch.set_num_threads(threads)
    return Measured(
        chunk_tokens=len(chunk.token_ids),
        chunk_questions=len(sample.probes),
        seconds_chunk=seconds_chunk,
        answer_tokens=max(
            sum(len(run.token_ids) for run in query.runs),
            *(sum(b - a for a, b in kept) for kept in query.kept or ((),)),
        ),
        seconds_answer=answered.answers[0].seconds,
    )


def _query(sample: Prepared, task: Encode, encoded: Encoded, kv_shape: tuple[int, int]) -> Query:
    """A question over as many tokens as it keeps: any of the document for rereading, else the pairs the chunk left."""
    offered = encoded.relevance[0][0].offered
    query = Query("estimate", sample.probes[0], (), sample.asked[0].max_new_tokens)
    if offered is None:
        return replace(query, runs=(Run(0, sample.token_ids[: sample.budget_tokens]),))
    return replace(query, sources=(task,), kept=offered, shape=(1, 1) if len(offered) == 1 else kv_shape)


def _engines(job: Job) -> int:
    """Engines at work at once: threads of this machine never gain from more than its cores."""
    if job.pool.kind == "local":
        return min(job.pool.workers, os.cpu_count() or 1)
    return job.pool.workers
