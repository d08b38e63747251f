"""From what the chunks of a document said to what a question keeps of it.

Scores are settled on one scale for the document, the budget chooses among its blocks, and what was chosen becomes
the query that an engine answers. Invariants: it depends on values only, not on who read which chunk when; text is
chosen on the joint scale of all layers and heads, pairs on their own.

Shapes: B blocks, L layers or 1, G key-value heads or 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from configs.schema import Job
from pipeline.prepared import Look, Prepared, Selection
from workers.messages import Chunk, ChunkRelevance, Interval, Probe, Query, Run
from workers.selection.budgets.base import BlockTable, Budget, Choice
from workers.selection.budgets.uniform import UniformBudget
from workers.selection.saying import Saying


class Chooser:
    """Chooses with one job's scorer and budget."""

    def __init__(self, job: Job, saying: Saying, budget: Budget, separator: tuple[int, ...]) -> None:
        """``saying``: of the job's scorer; ``separator``: token ids between kept runs of text."""
        self._stays = job.answer.positions == "original"
        self._saying = saying
        self._budget = budget
        self._text_budget = UniformBudget(job.keep.widen_tokens, floor_of(job))
        self._block_tokens = job.keep.block_tokens
        self._keeps_pairs = job.keeps_pairs
        self._separator = separator

    def tables(self, prepared: Prepared, relevance: Sequence[Sequence[ChunkRelevance]]) -> list[BlockTable]:
        """The blocks of a document from each question's view. ``relevance[c][q]``: chunk c for question q."""
        texts = [self._saying.texts(chunk) for chunk in prepared.chunks]
        extents = [(chunk.start, chunk.start + len(chunk.token_ids)) for chunk in prepared.chunks]
        tables = []
        for index, probe in enumerate(prepared.probes):
            own = [chunk[index] for chunk in relevance]
            shares = self._settle(prepared.chunks, texts, probe, own)
            offered = _offered(extents, own) if self._keeps_pairs else None
            tables.append(BlockTable.of_chunks(extents, shares, self._block_tokens, offered))
        return tables

    def table_again(self, look: Look, relevance: Sequence[ChunkRelevance]) -> BlockTable:
        """The blocks of a later round, with the shares of that round. A text put together from blocks is settled as a
        document of its own."""
        chunks = [chunk for encode in look.encodes for chunk in encode.chunks]
        texts = [self._saying.texts(chunk) for chunk in chunks]
        [probe] = look.encodes[0].probes
        share_LGB = np.concatenate(self._settle(chunks, texts, probe, relevance), axis=2)
        assert share_LGB.shape[2] == len(look.table.starts_B)
        return replace(look.table, share_LGB=share_LGB)

    def select(self, prepared: Prepared, index: int, table: BlockTable) -> Selection:
        """What question ``index`` keeps. Where layers and heads keep different pairs, its runs are the text that a
        uniform budget would keep: what its spans show."""
        tokens = prepared.budget_tokens
        choice = self._budget.choose(table if self._keeps_pairs else table.joint(), tokens)
        shown = choice if choice.shape == (1, 1) else self._text_budget.choose(table.joint(), tokens)
        query = Query(
            document=prepared.name,
            probe=prepared.probes[index],
            runs=runs_of(prepared, shown.kept[0]),
            max_new_tokens=prepared.asked[index].max_new_tokens,
            separator=self._separator,
        )
        if self._keeps_pairs:
            query = _over_pairs(query, prepared, choice)
            query = replace(query, spread=prepared.num_tokens) if self._stays else query
        return Selection(query, table, choice)

    def _settle(
        self,
        chunks: Sequence[Chunk],
        texts: Sequence[tuple[str, ...]],
        probe: Probe,
        relevance: Sequence[ChunkRelevance],
    ) -> list[NDArray[np.float64]]:
        said = (
            self._saying.of(own.log_RHB, chunk, texts_B, probe)
            for own, chunk, texts_B in zip(relevance, chunks, texts, strict=True)
        )
        return self._saying.scorer.settle(list(said))


def floor_of(job: Job) -> int:
    """Blocks that every chunk keeps at least."""
    return job.keep.budget.min_blocks_per_chunk if job.keep.budget.kind == "uniform" else 0


def runs_of(prepared: Prepared, kept: Sequence[Interval]) -> tuple[Run, ...]:
    """Intervals of a document with their tokens."""
    return tuple(Run(start, prepared.token_ids[start:stop]) for start, stop in kept)


def _over_pairs(query: Query, prepared: Prepared, choice: Choice) -> Query:
    """The query over kept pairs; it names the messages that those come from, so that a lost one can be read again."""
    kept = np.zeros(prepared.num_tokens, dtype=bool)
    for start, stop in chain.from_iterable(choice.kept):
        kept[start:stop] = True
    sources = tuple(
        encode
        for encode in prepared.encodes
        if any(kept[chunk.start : chunk.start + len(chunk.token_ids)].any() for chunk in encode.chunks)
    )
    return replace(query, sources=sources, shape=choice.shape, kept=choice.kept)


def _offered(extents: Sequence[Interval], relevance: Sequence[ChunkRelevance]) -> tuple[tuple[Interval, ...], ...]:
    """What the chunks kept, in document positions, per layer and head; one entry where all chunks kept the same in
    every layer and head."""
    offers = []
    for chunk in relevance:
        assert chunk.offered is not None, "an engine that keeps pairs says which"
        offers.append(chunk.offered)
    return tuple(
        tuple(
            (first + start, first + stop)
            for (first, _), offer in zip(extents, offers, strict=True)
            for start, stop in offer[index if len(offer) > 1 else 0]
        )
        for index in range(max(len(offer) for offer in offers))
    )
