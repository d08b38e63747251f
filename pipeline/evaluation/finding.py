"""From an item to what each contender keeps of it: the product's own steps, around shared readings.

Invariants: contenders that read alike share one reading; a contender's kept pairs live until it was answered, and
no longer; a contender that cannot be run is an error with its reason.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from cache_store.pairs import bytes_per_number
from cache_store.store import TieredStore
from cache_store.tiers.memory import MemoryTier
from configs.methods import RandomScorer, UniformBudget
from configs.schema import Job
from configs.stages import AnswerOver, Read
from pipeline.attribution import relevance_kept
from pipeline.document import Asked, Document
from pipeline.errors import JobError
from pipeline.evaluation.baselines import BASELINES, Plain
from pipeline.evaluation.contender import Contender, Found
from pipeline.evaluation.sharing import SharedReading
from pipeline.evaluation.tasks.base import Item
from pipeline.prepared import Prepared, Selection
from pipeline.reading import DocumentReader
from workers.context import Context
from workers.engine import Engine
from workers.errors import BackendUnavailable, ModelError
from workers.index import kv_heads
from workers.loaded import LoadedModel
from workers.loading import Reading, load_method
from workers.messages import Encoded
from workers.method import Method as Parts
from workers.selection.budgets.base import Choice
from workers.selection.profile import Profile
from workers.selection.scorers.index import IndexScorer

_ROOM = 2**40
"""Bytes that a document's kept sets may take while it is tried: they go with it."""


@dataclass(frozen=True)
class Refused:
    """A contender that cannot be tried on an item, and why."""

    contender: Contender
    reason: str


class Finder:
    """Finds with one loaded model. Threads may share it."""

    def __init__(self, reading: Reading, loaded: LoadedModel, profile: Profile | None, anchor: Context) -> None:
        """``profile``: retrieval heads, where any contender needs them."""
        self._reading = reading
        self._loaded = loaded
        self._profile = profile
        self._anchor = anchor

    def find(self, item: Item, contenders: Sequence[Contender], *, shares: bool) -> Iterator[Found | Refused]:
        """What each contender keeps, in no particular order. Without ``shares`` each reads by itself, so that seconds
        are its own."""
        document = document_of(item)
        groups: dict[str, list[tuple[Contender, Parts]]] = {}
        for index, contender in enumerate(contenders):
            if contender.method.baseline is not None:
                yield self._baseline(document, contender)
                continue
            try:
                parts = load_method(contender.job, self._reading, self._profile)
            except ModelError as error:
                yield Refused(contender, str(error))
                continue
            name = _way_of_reading(contender, parts) if shares else str(index)
            groups.setdefault(name, []).append((contender, parts))
        for group in groups.values():
            yield from self._find_together(document, group)

    def _find_together(self, document: Document, group: list[tuple[Contender, Parts]]) -> Iterator[Found | Refused]:
        """Contenders that read alike, one after the other over one shared reading."""
        rule = replace(group[0][1].rule, all_layers=any(parts.rule.all_layers for _, parts in group))
        keeps = any(parts.keeps_pairs or parts.carries or parts.indexes for _, parts in group)
        shared = SharedReading(self._loaded, self._anchor, rule, [p.scorer for _, p in group], keeps_pairs=keeps)
        for contender, parts in group:
            try:
                yield self._read(document, contender, parts, shared)
            except (JobError, ModelError, BackendUnavailable) as error:
                yield Refused(contender, str(error))

    def _read(self, document: Document, contender: Contender, parts: Parts, shared: SharedReading) -> Found | Refused:
        """One contender's way through a document."""
        started = time.perf_counter()
        reader = DocumentReader(contender.job, self._reading, parts.scorer, parts.budget)
        store = TieredStore([MemoryTier(_ROOM)])
        encoder = shared.encoder_for(parts.scorer, parts.rule)
        engine = Engine(self._loaded, parts, store, encoder=encoder, anchor=self._anchor)
        prepared = reader.prepare(document)
        if prepared.failures:
            return Refused(contender, prepared.failures[0].message)
        step: Prepared | list[Selection] = prepared
        while isinstance(step, Prepared):
            encoded: list[Encoded] = [engine.encode(task) for task in step.encodes]
            prepared, step = step, reader.advance(step, encoded)
        [selection] = step
        return Found(
            contender=contender,
            query=selection.query,
            kept=selection.choice.kept,
            engine=engine,
            seconds_read=None if shared.has_many else time.perf_counter() - started,
            relevance_kept=relevance_kept(selection.choice, selection.table),
            kept_bytes=self._bytes(parts, selection.choice, prepared.num_tokens),
        )

    def _bytes(self, parts: Parts, choice: Choice, num_tokens: int) -> int | None:
        """What was kept of a document takes, as the method's codec holds it; None where only text is kept."""
        shape = self._reading.shape
        row = shape.head_dim * bytes_per_number(parts.codec, self._loaded.weights.dtype)
        if isinstance(parts.scorer, IndexScorer):
            return num_tokens * len(kv_heads(parts.scorer, shape)) * row
        pairs = round(choice.tokens * shape.num_layers * shape.num_kv_heads)
        return 2 * pairs * row if parts.keeps_pairs else None

    def _baseline(self, document: Document, contender: Contender) -> Found | Refused:
        """What a baseline reads: text that no attention chose."""
        started = time.perf_counter()
        job = _without_method(contender.job, contender.budget)
        parts = load_method(job, self._reading, None)
        try:
            reader = DocumentReader(job, self._reading, parts.scorer, parts.budget)
        except JobError as error:
            return Refused(contender, str(error))
        prepared = reader.prepare(document)
        if prepared.failures:
            return Refused(contender, prepared.failures[0].message)
        engine = Engine(self._loaded, parts, TieredStore([]), anchor=self._anchor)
        assert contender.method.baseline is not None
        query = BASELINES[contender.method.baseline](Plain(prepared, engine), contender)
        quotes = contender.method.baseline != "map_reduce"  # which answers over answers
        kept = (tuple((run.start, run.stop) for run in query.runs),) if quotes else ()
        return Found(contender, query, kept, engine, time.perf_counter() - started)


def document_of(item: Item) -> Document:
    """An item as a row of a corpus."""
    asked = Asked(item.id, item.question, item.answer_prefix, item.max_new_tokens)
    return Document(item.id, item.context, item.task, 0, (asked,))


def _without_method(job: Job, budget: int | None) -> Job:
    """A job that answers over text and for which nothing of the model need be known. Without a budget the window is
    not asked about one."""
    tokens = budget or job.keep.block_tokens
    keep = job.keep.model_copy(update={"scorer": RandomScorer(), "budget": UniformBudget(tokens=tokens)})
    return job.model_copy(
        update={"read": Read(chunk_tokens=job.read.chunk_tokens), "keep": keep, "answer": AnswerOver()}
    )


def _way_of_reading(contender: Contender, parts: Parts) -> str:
    """Contenders with the same name here can share a reading. Questions are branches behind a chunk, so its pairs are
    the same whether they are known or not: one reading, as deep as the deepest of its scorers, serves both."""
    scored_by = parts.scorer.record if parts.is_shaped_by_all or parts.carries else None
    read, keep = contender.job.read, contender.job.keep
    return json.dumps([parts.record, read.chunk_tokens, keep.block_tokens, scored_by])
