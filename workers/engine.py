"""The model on one device: ``encode`` reads chunks, ``answer`` answers over what was kept.

Invariants: an engine holds no state but its weights, its anchor and a cache, so any engine gives the same
result for the same message, threads may share one, and losing one costs only the work in its hands. A
store hit and a miss give the same result: what was stored is what would be computed. What was kept by looking at a
question is named by it, and never found for another.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from cache_store.block import Entry, KVBlock
from cache_store.identity import BlockKey, Identity, digest_tenant, digest_tokens
from cache_store.store import TieredStore
from workers.context import Carried, Context
from workers.encoder import ChunkReading, Encoder, Reads, observation_record
from workers.generate import Prompt, forced_logits, generate
from workers.index import Questions, index_block, index_keys, keys_of
from workers.keeping import Keeping, KeptDocument, assemble, kept_block, offered_by, scores_only
from workers.loaded import LoadedModel
from workers.messages import Answered, Ask, Chunk, ChunkRelevance, Encode, Encoded, Generated, Interval, Probe, Query
from workers.method import Method
from workers.segments import Readable
from workers.selection.saying import Saying
from workers.selection.scorers.base import ChunkScores
from workers.selection.scorers.index import IndexScorer

_log = logging.getLogger(__name__)


class Engine:
    """Reads and answers with one model; see the module. Threads may share it."""

    def __init__(
        self,
        loaded: LoadedModel,
        method: Method,
        store: TieredStore,
        *,
        tenant: str = "",
        encoder: Reads | None = None,
        anchor: Context | None = None,
    ) -> None:
        """The anchor is read here, once, unless given. ``encoder``: who reads chunks; None for the method's own."""
        self._loaded = loaded
        self._model = loaded.weights
        self.tokenizer = loaded.frame.tokenizer
        self._method = method
        self._saying = Saying(method.scorer, method.rule.block_tokens, self.tokenizer.decode)
        self._encoder: Reads = encoder or Encoder(loaded, [method.scorer], method.rule)
        self._anchor = anchor or Context.of_anchor(loaded)
        self._stop_ids = self._model.stop_ids | self.tokenizer.stop_ids
        self.store = store
        self._questions_of: tuple[tuple[Probe, ...], Questions] | None = None
        shape = self._model.shape
        self._identity = Identity(
            tenant=digest_tenant(tenant),
            weights=loaded.source.weights,
            tokenizer=loaded.source.tokenizer,
            dtype=str(self._model.dtype),
            attention=loaded.backend.name,
            rope=self._model.rope,
            layers=(0, shape.num_layers) if method.keeps_pairs or method.indexes else (0, 0),
            heads=(shape.num_kv_heads, shape.head_dim),
            reading=json.dumps(method.record | observation_record(method.scorer, loaded.frame), sort_keys=True),
            scorer=json.dumps(method.scorer.record, sort_keys=True),
            budget="",
            codec=method.codec if method.keeps_pairs or method.indexes else "model",
            question=None,
            chunk="",
            context="",
        )

    @property
    def kv_shape(self) -> tuple[int, int]:
        """The model's layers and kv heads."""
        return self._model.shape.num_layers, self._model.shape.num_kv_heads

    def work(self, task: Encode | Ask) -> Encoded | Answered:
        """Do what a message asks for."""
        return self.encode(task) if isinstance(task, Encode) else self.answer(task)

    def encode(self, task: Encode) -> Encoded:
        """Read the chunks (from the store where they were read before) and say how relevant each block is."""
        started = time.perf_counter()
        keys, blocks, hits = self._kept(task)
        questions = self._questions(task)
        relevance = [tuple(self._relevance(row, questions, len(task.probes))) for row in blocks]
        names = tuple(key.hex for row in keys for key in row)
        return Encoded(tuple(relevance), names, time.perf_counter() - started, hits)

    def answer(self, task: Ask) -> Answered:
        """Answer a batch of queries greedily, each over what was kept of its document."""
        started = time.perf_counter()
        segments, prompts = self._opening(task.queries)
        written = generate(self._loaded, prompts, segments, self._stop_ids, self._method.reader)
        seconds = (time.perf_counter() - started) / len(task.queries)
        return Answered(tuple(Generated(self.tokenizer.decode(ids), len(ids), seconds) for ids in written))

    def predict(self, query: Query, token_ids: Sequence[int]) -> Tensor:
        """Logits [N, V] with which a query's kept set predicts each of N given tokens as its answer."""
        segments, [prompt] = self._opening([query])
        return forced_logits(self._loaded, prompt, segments, token_ids, self._method.reader)

    def free(self, names: Sequence[str]) -> None:
        """Drop store entries by name; see ``Encoded.keys``."""
        self.store.free([BlockKey.from_hex(name) for name in names])

    def close(self) -> None:
        """Wait until the store is written."""
        self.store.flush()

    # -- reading ---------------------------------------------------------------------------------

    def _kept(self, task: Encode) -> tuple[list[list[BlockKey]], list[list[KVBlock]], int]:
        """Keys and blocks [chunk][probe] of a task ([chunk][0] where no question is looked at), and how many of its
        chunks came from the store."""
        named = self._identities(task)
        keys = _keys_of(named)
        found = [[self.store.get(key) for key in row] for row in keys]
        complete = [[block for block in row if block is not None] for row in found]
        if all(len(kept) == len(row) for kept, row in zip(complete, keys, strict=True)):
            return keys, complete, len(keys)
        blocks = self._read(task, named)
        for row in blocks:
            for block in row:
                self.store.put(block)
        return keys, blocks, 0

    def _keys(self, task: Encode) -> list[list[BlockKey]]:
        """Names of what ``_identities`` describes."""
        return _keys_of(self._identities(task))

    def _identities(self, task: Encode) -> list[list[Identity]]:
        """What each chunk leaves for each probe. What a chunk was read after is part of the name: anchor,
        preface, and in carried reading everything that shaped the carried set. Where a chunk starts is part of it for
        scorers that look at no layer: they have nothing but places to choose pairs by."""
        by_place = self._method.keeps_pairs and not self._method.scorer.layers
        shaping = [(probe.token_ids, probe.scored) for probe in task.probes] if self._method.is_shaped_by_all else []
        context = digest_tokens(self._loaded.frame.anchor, task.preface, *(run for probe in shaping for run in probe))
        questions = (
            [digest_tokens(probe.token_ids, probe.scored) for probe in task.probes] if self._method.asks else [None]
        )
        identities = []
        for chunk in task.chunks:
            digest = digest_tokens(chunk.token_ids, [chunk.start] if by_place else [])
            budget = self._budget_record(task.budget_tokens, len(chunk.token_ids))
            named = replace(self._identity, budget=budget, chunk=digest, context=context)
            identities.append([replace(named, question=question) for question in questions])
            if self._method.carries:
                context = digest_tokens(list(bytes.fromhex(context)), list(bytes.fromhex(digest)))
        return identities

    def _read(self, task: Encode, identities: list[list[Identity]]) -> list[list[KVBlock]]:
        """Compute what ``_kept`` did not find, chunk by chunk."""
        method = self._method
        carried = Carried(
            self._loaded,
            method.scorer,
            tokens=task.budget_tokens,
            widen_tokens=method.widen_tokens,
            block_tokens=method.rule.block_tokens,
        )
        before = self._anchor.followed_by(self._loaded, task.preface)
        rows = []
        for chunk, row in zip(task.chunks, identities, strict=True):
            reading = self._encoder.read(chunk.token_ids, task.probes, carried.behind(before))
            said = self._said(chunk, reading, task.probes) if method.keeps_pairs or method.carries else []
            entries = self._entries(row, chunk, reading, task.probes)
            rows.append(self._leave(entries, reading, said, task.budget_tokens))
            if method.carries and reading.pairs is not None:
                carried.add(chunk, reading.pairs, reading.places, said)
        return rows

    def _said(self, chunk: Chunk, reading: ChunkReading, probes: Sequence[Probe]) -> list[ChunkScores]:
        """What the scorer settles of a chunk for each probe; once, where it looks at none."""
        [scores], texts_B = reading.scores, self._saying.texts(chunk)
        return [
            self._saying.of(scores_RHB.numpy(), chunk, texts_B, probe)
            for scores_RHB, probe in zip(scores, probes, strict=self._method.asks)
        ]

    def _entries(
        self, row: Sequence[Identity], chunk: Chunk, reading: ChunkReading, probes: Sequence[Probe]
    ) -> list[Entry]:
        """What a chunk leaves for each probe, without its pairs; once, where the scorer looks at none."""
        [scores], length = reading.scores, len(chunk.token_ids)
        match self._method.scorer.observer:
            case "probe":
                costs = [length + len(probe.token_ids) for probe in probes]
            case "repeat":
                costs = [2 * length]
            case _:
                costs = [length]
        return [Entry(identity, length, cost, said) for identity, cost, said in zip(row, costs, scores, strict=True)]

    def _leave(
        self, entries: Sequence[Entry], reading: ChunkReading, said: Sequence[ChunkScores], tokens: int
    ) -> list[KVBlock]:
        """What a chunk leaves: its scores, and for answers over kept pairs what it offers."""
        method = self._method
        if isinstance(method.scorer, IndexScorer):
            assert reading.pairs is not None
            keys = index_keys(self._loaded, method.scorer, reading.pairs, reading.places)
            return [index_block(entry, self._loaded, keys) for entry in entries]
        if not method.keeps_pairs:
            return [scores_only(entry) for entry in entries]
        assert reading.pairs is not None
        keeping, left = self._keeping(tokens), []
        for entry, own in zip(entries, said, strict=True):
            [shares_LGB] = method.scorer.settle([own])
            choice = keeping.offer(len(reading.places), shares_LGB)
            left.append(kept_block(entry, self._model, reading.pairs, reading.places, choice))
        return left

    def _questions(self, task: Encode) -> Questions | None:
        """The probes, run so that they can be asked of an index; None for methods that have none. Chunks travel alone
        with the same probes, so the last ones are remembered."""
        if not isinstance(self._method.scorer, IndexScorer):
            return None
        remembered = self._questions_of  # read once: another thread may put others in its place
        if remembered is None or remembered[0] != task.probes:
            remembered = (task.probes, Questions(self._loaded, self._method.scorer, self._anchor, task.probes))
            self._questions_of = remembered
        return remembered[1]

    def _relevance(self, row: Sequence[KVBlock], questions: Questions | None, probes: int) -> list[ChunkRelevance]:
        """What a chunk's entries say for each probe."""
        if questions is not None:
            [block] = row
            scores = questions.of(keys_of(block), self._method.rule.block_tokens)
            return [ChunkRelevance(scores_RHB.numpy(), None) for scores_RHB in scores]
        said = [ChunkRelevance(block.scores_RHB.numpy(), self._offered(block)) for block in row]
        return said if self._method.asks else said * probes

    def _offered(self, block: KVBlock) -> tuple[tuple[Interval, ...], ...] | None:
        """Where in its chunk a block holds pairs; None where pairs are not what is kept."""
        return offered_by(block) if self._method.keeps_pairs else None

    def _keeping(self, tokens: int) -> Keeping:
        """How much a chunk may offer to a document that keeps ``tokens``."""
        method = self._method
        return Keeping(method.budget, tokens, method.rule.block_tokens, method.widen_tokens, method.chunk_fraction)

    def _budget_record(self, tokens: int, chunk_tokens: int) -> str:
        """The budget, where it decides what an entry holds: scores alone are the same for every budget. What is carried
        into a chunk is chosen by the document's."""
        method, record = self._method, dict[str, object](block_tokens=self._method.rule.block_tokens)
        if method.keeps_pairs:
            record |= self._keeping(tokens).record(chunk_tokens)
        if method.carries:
            record |= {"tokens": tokens, "widen_tokens": method.widen_tokens, **method.budget.record}
        return json.dumps(record, sort_keys=True)

    # -- answering -------------------------------------------------------------------------------

    def _opening(self, queries: Sequence[Query]) -> tuple[list[Readable], list[Prompt]]:
        """What a batch of queries reads before its own tokens, and these tokens."""
        first = self._anchor.num_positions
        segments: list[Readable] = list(self._anchor.segments)
        if not self._method.keeps_pairs:
            return segments, [Prompt(query.reread, first, query.max_new_tokens) for query in queries]
        kept, lengths = assemble(self._model, [self._document(query) for query in queries], first)
        prompts = [
            Prompt(query.probe.token_ids, first + length, query.max_new_tokens)
            for query, length in zip(queries, lengths, strict=True)
        ]
        return [*segments, kept], prompts

    def _document(self, query: Query) -> KeptDocument:
        """What the chunks of a query's document left for it."""
        parts = [
            (chunk, block)
            for source in query.sources
            for chunk, block in zip(source.chunks, self._blocks_for(query.probe, source), strict=True)
        ]
        return KeptDocument(query, tuple(parts))

    def _blocks_for(self, probe: Probe, source: Encode) -> list[KVBlock]:
        """What each chunk of a message left for one of its probes; all of it is read again if any is gone."""
        index = [other.question_id for other in source.probes].index(probe.question_id) if self._method.asks else 0
        found = [self.store.get(row[index]) for row in self._keys(source)]
        kept = [block for block in found if block is not None]
        if len(kept) == len(found):
            return kept
        _log.warning(
            "%s: the store lost %d of %d chunks since they were read; reading them again",
            source.document, len(found) - len(kept), len(found),
        )  # fmt: skip
        return [row[index] for row in self._kept(source)[1]]


def _keys_of(identities: list[list[Identity]]) -> list[list[BlockKey]]:
    return [[identity.key() for identity in row] for row in identities]
