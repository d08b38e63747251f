"""The model on one device: ``encode`` reads chunks, ``answer`` answers over what was kept.

Invariants: an engine holds no state but its weights, its anchor and a cache, so any engine gives the same
result for the same message, threads may share one, and losing one costs only the work in its hands. A
store hit and a miss give the same result: what was stored is what would be computed. Keys are stored
un-rotated with positions relative to their chunk.

Shapes: T rows, S keys, G key-value heads, D head dimension, L layers, R probe rows, H retrieval heads,
B blocks.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from cache_store.block import BlockKey, Identity, KVBlock, digest_tokens
from cache_store.store import TieredStore
from configs.schema import Job
from workers.carried import Carried, positions_of, unrotated
from workers.generate import Prompt, generate
from workers.hf import Tokenizer
from workers.loaded import LoadedModel
from workers.messages import Answered, Ask, ChunkRelevance, Encode, Encoded, Generated, Probe, Query
from workers.passes import Segment, SegmentPass
from workers.selection.budgets import BlockTable, Interval, UniformBudget
from workers.selection.profile import Profile
from workers.selection.relevance import block_shares
from workers.selection.scorers.base import Scorer
from workers.selection.scorers.probe import ProbeScorer
from workers.selection.scoring import Scoring


@dataclass(frozen=True)
class Method:
    """How this job reads: the parts of its configuration that the engine acts on, resolved."""

    block_tokens: int
    budget: UniformBudget
    skims: bool
    carries: bool
    keeps_pairs: bool

    @classmethod
    def of(cls, job: Job) -> Method:
        """Resolve a job's settings."""
        return cls(
            block_tokens=job.keep.block_tokens,
            budget=UniformBudget.of(job.keep),
            skims=job.skims,
            carries=job.read.context == "carried",
            keeps_pairs=job.answer.over == "kept",
        )


class Engine:
    """Reads and answers with one model; see the module. Threads may share it."""

    def __init__(
        self, loaded: LoadedModel, profile: Profile, method: Method, store: TieredStore, tenant: str = ""
    ) -> None:
        """The anchor is read here, once."""
        model, frame = loaded.weights, loaded.frame
        self._model = model
        self._backend = loaded.backend
        self._tokenizer: Tokenizer = frame.tokenizer
        self._profile = profile
        self._scorer: Scorer = ProbeScorer(profile.heads)
        self._method = method
        self._last_layer = self._scorer.layers[-1] if method.skims else model.shape.num_layers - 1
        self._anchor_ids = frame.anchor
        self._anchor = self._read_anchor()
        self._stop_ids = model.stop_ids | frame.tokenizer.stop_ids
        self.store = store
        shape = model.shape
        self._identity = Identity(
            tenant=tenant,
            weights=loaded.source.weights,
            tokenizer=loaded.source.tokenizer,
            dtype=str(model.dtype),
            attention=loaded.backend.name,
            rope=model.rope,
            layers=(0, shape.num_layers) if method.keeps_pairs else (0, 0),
            heads=(shape.num_kv_heads, shape.head_dim),
            scorer=json.dumps({"kind": "probe", "profile": profile.digest}),
            budget=json.dumps({"block_tokens": method.block_tokens} | self._budget_record()),
            question=None,
            chunk="",
            context="",
        )

    def encode(self, task: Encode) -> Encoded:
        """Read the chunks (from the store where they were read before) and say how relevant each block is."""
        started = time.perf_counter()
        keys, blocks, hits = self._kept(task)
        relevance = tuple(
            tuple(ChunkRelevance(block.lse_RHB.numpy(), self._offered(block)) for block in row) for row in blocks
        )
        names = tuple(key.hex for row in keys for key in row)
        return Encoded(relevance, names, time.perf_counter() - started, hits)

    def answer(self, task: Ask) -> Answered:
        """Answer a batch of queries greedily, each over what was kept of its document."""
        started = time.perf_counter()
        first = len(self._anchor_ids)
        if self._method.keeps_pairs:
            kept, lengths = self._assemble(task.queries)
            segments = [self._anchor, kept]
            prompts = [
                Prompt(query.probe.token_ids, first + length, query.max_new_tokens)
                for query, length in zip(task.queries, lengths, strict=True)
            ]
        else:
            segments = [self._anchor]
            prompts = [Prompt(query.reread, first, query.max_new_tokens) for query in task.queries]
        written = generate(self._model, self._backend, prompts, segments, self._stop_ids)
        seconds = (time.perf_counter() - started) / len(task.queries)
        return Answered(tuple(Generated(self._tokenizer.decode(ids), len(ids), seconds) for ids in written))

    def free(self, names: Sequence[str]) -> None:
        """Drop store entries by name; see ``Encoded.keys``."""
        self.store.free([BlockKey.from_hex(name) for name in names])

    def _read_anchor(self) -> Segment:
        places = range(len(self._anchor_ids))
        reading = SegmentPass(self._backend, (0, len(places)), last_layer=self._model.shape.num_layers - 1)
        self._model.run(self._anchor_ids, places, reading)
        return reading.shared_segment()

    # -- reading ---------------------------------------------------------------------------------

    def _kept(self, task: Encode) -> tuple[list[list[BlockKey]], list[list[KVBlock]], int]:
        """Keys and blocks [chunk][probe] of a task, and how many of its chunks came from the store."""
        keys = self._keys(task)
        found = [[self.store.get(key) for key in row] for row in keys]
        complete = [[block for block in row if block is not None] for row in found]
        if all(len(row) == len(task.probes) for row in complete):
            return keys, complete, len(keys)
        blocks = self._read(task, keys)
        for row in blocks:
            for block in row:
                self.store.put(block)
        return keys, blocks, 0

    def _keys(self, task: Encode) -> list[list[BlockKey]]:
        """Names of what each chunk leaves for each probe. What a chunk was read after is part of the name: the
        anchor, and in carried reading everything that shaped the carried set."""
        carried_by = [(probe.token_ids, probe.scored) for probe in task.probes] if self._method.carries else []
        context = digest_tokens(self._anchor_ids, *(run for probe in carried_by for run in probe))
        keys = []
        for chunk in task.chunks:
            digest = digest_tokens(chunk.token_ids)
            keys.append([self._key(digest, probe, context) for probe in task.probes])
            if self._method.carries:
                context = digest_tokens([ord(letter) for letter in context + digest])
        return keys

    def _key(self, chunk: str, probe: Probe, context: str) -> BlockKey:
        question = digest_tokens(probe.token_ids, probe.scored)
        return replace(self._identity, question=question, chunk=chunk, context=context).key()

    def _read(self, task: Encode, keys: list[list[BlockKey]]) -> list[list[KVBlock]]:
        """Compute what ``_kept`` did not find, chunk by chunk."""
        carried = Carried(self._model, self._method.budget, self._method.block_tokens, len(self._anchor_ids))
        rows = []
        for chunk, row_keys in zip(task.chunks, keys, strict=True):
            context = [self._anchor, *carried.segments()]
            first = len(self._anchor_ids) + carried.num_tokens
            places = range(first, first + len(chunk.token_ids))
            reading = SegmentPass(self._backend, (0, len(places)), context, last_layer=self._last_layer)
            self._model.run(chunk.token_ids, places, reading)
            pairs = reading.shared_segment()
            scores = self._probe(task.probes, [*context, pairs], pairs, places.stop)
            rows.append([self._leave(key, pairs, places, lse) for key, lse in zip(row_keys, scores, strict=True)])
            if self._method.carries:
                carried.add(chunk, pairs, places, scores)
        return rows

    def _probe(
        self, probes: Sequence[Probe], context: Sequence[Segment], pairs: Segment, first_position: int
    ) -> list[Tensor]:
        """Log-masses [R, H, B] of each probe over the chunk's ``pairs``. All probes share one pass over the same
        pairs as branches that never see each other."""
        bounds = (0, *accumulate(len(probe.token_ids) for probe in probes))
        rows = [
            range(start + inside.start, start + inside.stop)
            for start, probe in zip(bounds, probes, strict=False)
            for inside in [self._profile.scored_rows(probe.scored, len(probe.token_ids))]
        ]
        watcher = Scoring(self._scorer, pairs, rows, self._method.block_tokens)
        places = [first_position + i for probe in probes for i in range(len(probe.token_ids))]
        ids = [token for probe in probes for token in probe.token_ids]
        last = self._scorer.layers[-1]
        self._model.run(ids, places, SegmentPass(self._backend, bounds, context, last_layer=last, watcher=watcher))
        return watcher.scores()

    def _leave(self, key: BlockKey, pairs: Segment, places: range, lse_RHB: Tensor) -> KVBlock:
        """What a chunk leaves for one probe: its scores, and for answers over kept pairs the chunk's offer: at
        most a whole budget of its best tokens, and its edges, into which a neighbour's best may be widened."""
        shape = self._model.shape
        if not self._method.keeps_pairs:
            none = torch.empty(0, shape.num_kv_heads, 0, shape.head_dim)
            return KVBlock(key, torch.empty(0, dtype=torch.int32), none, none, lse_RHB)
        [share] = block_shares([lse_RHB.numpy()])
        table = BlockTable.of_chunks([(0, len(places))], [share], self._method.block_tokens)
        widen = self._method.budget.widen_tokens
        edges = positions_of([(0, min(widen, len(places))), (max(0, len(places) - widen), len(places))])
        chosen = torch.unique(torch.cat([positions_of(self._method.budget.choose(table)), edges]))  # sorted
        keys, values = unrotated(self._model, pairs, chosen, torch.tensor(places)[chosen])
        return KVBlock(key, chosen.int(), keys.cpu(), values.cpu(), lse_RHB)

    def _offered(self, block: KVBlock) -> tuple[Interval, ...] | None:
        """Where in its chunk a block holds pairs; None where pairs are not what is kept."""
        if not self._method.keeps_pairs:
            return None
        positions = block.positions_T.numpy()
        borders = np.flatnonzero(np.diff(positions) != 1) + 1
        return tuple((int(run[0]), int(run[-1]) + 1) for run in np.split(positions, borders) if len(run))

    # -- answering over kept pairs ---------------------------------------------------------------

    def _assemble(self, queries: Sequence[Query]) -> tuple[Segment, list[int]]:
        """The kept pairs of all queries, packed, at compact positions behind the anchor; tokens per query."""
        parts = [self._gather(query) for query in queries]
        lengths = [keys.shape[2] for keys, _ in parts]
        keys_LGSD, values_LGSD = (torch.cat(tensors, dim=2) for tensors in zip(*parts, strict=True))
        places = torch.cat([torch.arange(length) for length in lengths]) + len(self._anchor_ids)
        keys = [self._model.rotate(layer.transpose(0, 1), places) for layer in keys_LGSD]
        values = [layer.transpose(0, 1).to(self._model.device, self._model.dtype) for layer in values_LGSD]
        return Segment(keys, values, (0, *accumulate(lengths))), lengths

    def _gather(self, query: Query) -> tuple[Tensor, Tensor]:
        """Un-rotated keys and values [L, G, T, D] of a query's runs, in document order."""
        keys, values = [], []
        for source in query.sources:
            for chunk, block in zip(source.chunks, self._blocks_for(query.probe, source), strict=True):
                positions = block.positions_T.long() + chunk.start
                wanted = torch.zeros(len(positions), dtype=torch.bool)
                for run in query.runs:
                    wanted |= (positions >= run.start) & (positions < run.stop)
                keys.append(block.keys_LGTD[:, :, wanted])
                values.append(block.values_LGTD[:, :, wanted])
        return torch.cat(keys, dim=2), torch.cat(values, dim=2)

    def _blocks_for(self, probe: Probe, source: Encode) -> list[KVBlock]:
        """What each chunk of a message left for one of its probes; all of it is read again if any is gone."""
        index = [other.question_id for other in source.probes].index(probe.question_id)
        found = [self.store.get(row[index]) for row in self._keys(source)]
        kept = [block for block in found if block is not None]
        return kept if len(kept) == len(found) else [row[index] for row in self._kept(source)[1]]

    def _budget_record(self) -> dict[str, object]:
        """The budget, where it decides what an entry holds: scores alone are the same for every budget."""
        decides = self._method.keeps_pairs or self._method.carries
        return {"kind": "uniform", **vars(self._method.budget)} if decides else {}
