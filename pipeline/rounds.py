"""Reading a second time: what a question looks at again once the first round has said where to look.

Each way is one dataclass here and one line in ``second_round_of``. Invariants: a second round belongs to one
question (its messages carry that probe alone); its chunks hold whole blocks, so that each of its blocks stands at a
known place of the document.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from configs.schema import Job
from pipeline.choosing import floor_of, runs_of
from pipeline.prepared import Look, Prepared, cut
from pipeline.room import Room
from workers.messages import Chunk, Encode, Interval, Run, joined
from workers.selection.budgets.base import BlockTable, Budget
from workers.selection.budgets.uniform import UniformBudget


class SecondRound(Protocol):
    """What is read again?"""

    def look(self, prepared: Prepared, index: int, table: BlockTable) -> Look:
        """What question ``index`` reads again of a document whose first round said ``table``."""
        ...


@dataclass(frozen=True)
class Narrow:
    """Coarse to fine, as in Choi et al. 2017, "Coarse-to-Fine Question Answering for Long Documents": the best
    blocks, ``budgets`` budgets' worth of them, are put together in document order and read as few chunks as the
    window allows; what is kept is selected from them again. ``coarse`` chooses blocks and widens none. Where a chunk
    ends inside a block of ``block_tokens``, what was chosen there is read on until its last block is whole."""

    budgets: int
    coarse: UniformBudget
    block_tokens: int
    room: Room

    def look(self, prepared: Prepared, index: int, table: BlockTable) -> Look:
        """As ``SecondRound.look``. Chunks count their positions in the narrowed text."""
        probe = prepared.probes[index]
        kept = self.coarse.choose(table.joint(), self.budgets * prepared.budget_tokens).kept[0]
        blocks = whole_blocks(kept, self.block_tokens, prepared.num_tokens)
        text = joined(runs_of(prepared, blocks))
        chunks = cut(text, min(self.room.chunk_tokens(probe), prepared.max_chunk_tokens))
        encodes = (Encode(prepared.name, (chunk,), (probe,), prepared.budget_tokens) for chunk in chunks)
        return Look(tuple(encodes), replace(_blocks_at(table, blocks), extent=(0, prepared.num_tokens)))


@dataclass(frozen=True)
class TwoRound:
    """Each chunk is read again behind what the first round kept of the others, so that a fact can be found whose
    meaning hangs on another chunk."""

    budget: Budget
    separator: tuple[int, ...]

    def look(self, prepared: Prepared, index: int, table: BlockTable) -> Look:
        """As ``SecondRound.look``."""
        probe, tokens = prepared.probes[index], prepared.budget_tokens
        runs = runs_of(prepared, self.budget.choose(table.joint(), tokens).kept[0])
        encodes = (
            Encode(prepared.name, (chunk,), (probe,), tokens, joined(_outside(runs, chunk), self.separator))
            for chunk in prepared.chunks
        )
        return Look(tuple(encodes), table)


def second_round_of(job: Job, budget: Budget, room: Room, separator: tuple[int, ...]) -> SecondRound | None:
    """The second round that a job wants, or None where documents are read once."""
    match job.answer.over:
        case "narrow":
            return Narrow(job.answer.narrow_budgets, UniformBudget(0, floor_of(job)), job.keep.block_tokens, room)
        case "two_round":
            return TwoRound(budget, separator)
        case "reread" | "kept":
            return None


def whole_blocks(kept: Sequence[Interval], block_tokens: int, document_tokens: int) -> list[Interval]:
    """Sorted intervals of a document as whole blocks, in order: each interval is cut from its start and read on until
    its last block is whole, or the document ends."""
    blocks: list[Interval] = []
    read = 0
    for start, stop in kept:
        for first in range(max(start, read), stop, block_tokens):
            read = min(first + block_tokens, document_tokens)
            blocks.append((first, read))
    return blocks


def _blocks_at(table: BlockTable, blocks: Sequence[Interval]) -> BlockTable:
    """A table of other blocks of its document, each in the chunk and with the shares of the block that it begins in."""
    starts_B, stops_B = np.array(blocks, dtype=np.int64).reshape(-1, 2).T
    begun_B = np.searchsorted(table.starts_B, starts_B, side="right") - 1
    return replace(
        table,
        starts_B=starts_B,
        stops_B=stops_B,
        chunk_B=table.chunk_B[begun_B],
        share_LGB=table.share_LGB[:, :, begun_B],
    )


def _outside(runs: tuple[Run, ...], chunk: Chunk) -> tuple[Run, ...]:
    """What of the runs lies before and behind a chunk."""
    first, last = chunk.start, chunk.start + len(chunk.token_ids)
    before = (Run(run.start, run.token_ids[: max(0, first - run.start)]) for run in runs)
    behind = (Run(max(run.start, last), run.token_ids[max(0, last - run.start) :]) for run in runs)
    return tuple(run for run in (*before, *behind) if run.token_ids)
