"""Block-sparse attention: which blocks of keys each block of rows reads, and its execution as one ragged call.

A chunk's T rows are the last T of S keys; the S - T keys before them are what the chunk reads besides itself
(carried pairs). Keys before the rows and the rows themselves are cut into blocks separately, so that a block of
rows is a block of keys. Invariants: a block of rows always reads itself, causally, and only blocks before it;
blocks that are not in the plan are never touched; a plan that allows everything equals dense attention.

``attend_plan`` and ``attend_picks`` execute: the keys of every block of rows, gathered, are one sequence of a ragged
causal call, whose bottom-right alignment makes everything before the own block fully visible.

Shapes: T rows, S keys, H query heads, G kv heads, D head dimension, Q blocks of rows; P key lists, 1 where all kv
heads read alike, else G.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from workers.attention.base import Backend, Partial, empty
from workers.packs import packs

Rows = NDArray[np.int64]

# Bytes of keys that one call gathers (values take as much again). On a CPU more would leave the allocator's warm
# memory, whose page faults then cost more than the copy; a GPU wants few and large launches.
_GATHER_BYTES = {"cpu": 2**24, "cuda": 2**28}


@dataclass(frozen=True)
class BlockGrid:
    """How S keys, the last T of which are rows, are cut. ``key_bounds``: borders of all key blocks, from 0 to S;
    the last ``num_row_blocks`` of them are the blocks of rows."""

    key_bounds: tuple[int, ...]
    num_row_blocks: int

    @classmethod
    def of(cls, num_rows: int, num_keys: int, block_tokens: int) -> BlockGrid:
        """Blocks of ``block_tokens``; the last before the rows, and the last of the rows, may be shorter."""
        assert 0 <= num_rows <= num_keys and block_tokens > 0
        before = num_keys - num_rows
        borders = (*range(0, before, block_tokens), *range(before, num_keys, block_tokens), num_keys)
        return cls(borders, -(-num_rows // block_tokens))

    @property
    def num_key_blocks(self) -> int:
        """Blocks of keys, rows included."""
        return len(self.key_bounds) - 1

    @property
    def row_bounds(self) -> tuple[int, ...]:
        """Borders of the blocks of rows, as keys: from S - T to S."""
        return self.key_bounds[-self.num_row_blocks - 1 :]

    def own(self, row_block: int) -> int:
        """The key block that a block of rows is."""
        return self.num_key_blocks - self.num_row_blocks + row_block

    def window(self, row_block: int, tokens: int) -> range:
        """Key blocks that hold any of the ``tokens`` keys before a block of rows."""
        own = self.own(row_block)
        first = np.searchsorted(self.key_bounds, self.key_bounds[own] - tokens, side="right") - 1
        return range(max(0, int(first)), own)

    def front(self, tokens: int) -> range:
        """Key blocks that hold any of the first ``tokens`` keys."""
        return range(int(np.searchsorted(self.key_bounds[:-1], tokens, side="left")))


@dataclass(frozen=True)
class BlockPlan:
    """``reads[g][i]``: ascending key blocks that row block i reads for kv head g, its own block last. One entry
    where all kv heads read alike."""

    grid: BlockGrid
    reads: tuple[tuple[Rows, ...], ...]

    @property
    def blocks_read(self) -> int:
        """Pairs of a row block and a key block that are computed, on average over kv heads, rounded."""
        return round(sum(len(blocks) for head in self.reads for blocks in head) / len(self.reads))

    @property
    def blocks_dense(self) -> int:
        """The same for dense causal attention."""
        return sum(self.grid.own(i) + 1 for i in range(self.grid.num_row_blocks))


class Pattern(Protocol):
    """Which blocks may be read? One frozen dataclass per method of the literature."""

    @property
    def block_tokens(self) -> int:
        """Tokens of a block."""
        ...

    def plan(self, grid: BlockGrid, q_THD: Tensor, k_SGD: Tensor, scale: float) -> BlockPlan:
        """The plan for these rows and keys (rotated). Patterns that do not look at them ignore them. Deterministic."""
        ...


def full_plan(grid: BlockGrid, reads: Sequence[Sequence[int]] | None = None) -> BlockPlan:
    """A plan that all heads share: ``reads`` per row block (any order, own block added), or everything before it."""
    lists = reads if reads is not None else [range(grid.own(i)) for i in range(grid.num_row_blocks)]
    heads = tuple(
        np.array(sorted({*(block for block in blocks if block < grid.own(i)), grid.own(i)}), dtype=np.int64)
        for i, blocks in enumerate(lists)
    )
    return BlockPlan(grid, (heads,))


def masked_plan(grid: BlockGrid, allowed_GQK: NDArray[np.bool_]) -> BlockPlan:
    """A plan for each kv head: where ``allowed_GQK`` holds, for blocks before the rows; own blocks are added."""
    own = np.arange(grid.num_row_blocks) + grid.own(0)
    blocks = np.arange(grid.num_key_blocks)
    reads_GQK = (allowed_GQK & (blocks < own[:, None])) | (blocks == own[:, None])
    return BlockPlan(grid, tuple(tuple(np.flatnonzero(reads_K) for reads_K in reads_QK) for reads_QK in reads_GQK))


@dataclass(frozen=True)
class Picks:
    """The same as a plan, by keys: block i of the rows is ``row_bounds[i]:row_bounds[i + 1]`` (of T, from 0), and
    ``rows[p][i]`` are the ascending keys before it that it reads besides itself, for kv head p (one entry where all
    kv heads read alike)."""

    row_bounds: tuple[int, ...]
    rows: tuple[tuple[Rows, ...], ...]

    @classmethod
    def of(cls, plan: BlockPlan) -> Picks:
        """The keys of a plan's blocks."""
        bounds = plan.grid.row_bounds
        starts, lengths = np.array(plan.grid.key_bounds[:-1]), np.diff(plan.grid.key_bounds)
        return cls(
            tuple(bound - bounds[0] for bound in bounds),
            tuple(tuple(_spread(starts[blocks[:-1]], lengths[blocks[:-1]]) for blocks in head) for head in plan.reads),
        )


def _spread(starts: Rows, lengths: Rows) -> Rows:
    """The runs ``start:start + length``, one behind the other."""
    stops = lengths.cumsum()
    return np.repeat(starts + lengths - stops, lengths) + np.arange(lengths.sum())


def attend_plan(
    backend: Backend, q_THD: Tensor, k_SGD: Tensor, v_SGD: Tensor, plan: BlockPlan, scale: float
) -> Partial:
    """Causal attention of T rows, the last of S keys, over the blocks that the plan allows; see ``attend_picks``."""
    return attend_picks(backend, q_THD, k_SGD, v_SGD, Picks.of(plan), scale)


def attend_picks(backend: Backend, q_THD: Tensor, k_SGD: Tensor, v_SGD: Tensor, picks: Picks, scale: float) -> Partial:
    """Causal attention of T rows, the last of S keys, over the picked keys before their block and over the block.

    Exact, and ready to be merged with attention over keys that are not among the S. Only picked keys are copied or
    read. One ragged call, or a few where what they gather together would not fit ``_GATHER_BYTES``. Contiguous runs
    are gathered too: on a CPU the copy is 2 % of the call, on a GPU slicing would cost the single launch.
    """
    (num_rows, num_heads, depth), num_keys, P = q_THD.shape, k_SGD.shape[0], len(picks.rows)
    assert P in (1, k_SGD.shape[1]) and picks.row_bounds[-1] == num_rows <= num_keys
    if not num_rows:
        return empty(q_THD)
    # A (key list, block of rows) is a sequence. Folding lists into rows makes both cases one.
    q, k, v = (x.reshape(len(x), P, -1, depth).transpose(0, 1).flatten(0, 1) for x in (q_THD, k_SGD, v_SGD))
    sequences = list(_sequences(picks, num_keys))
    lengths = np.diff(picks.row_bounds).tolist() * P
    row_bytes = k[0].numel() * k.element_size()
    parts, first_row = [], 0
    for first, stop in pairwise(packs([len(rows) * row_bytes for rows in sequences], _GATHER_BYTES[k.device.type])):
        gathered = torch.from_numpy(np.concatenate(sequences[first:stop])).to(k.device)
        cu_q = [0, *accumulate(lengths[first:stop])]
        cu_k = [0, *accumulate(map(len, sequences[first:stop]))]
        keys, values = (x.flatten(1).index_select(0, gathered).view(-1, *x.shape[1:]) for x in (k, v))
        rows = q[first_row : first_row + cu_q[-1]]
        parts.append(backend.attend(rows, keys, values, cu_q, cu_k, causal=True, scale=scale))
        first_row += cu_q[-1]
    out = torch.cat([part.out_THD for part in parts]).view(P, num_rows, -1, depth)
    lse = torch.cat([part.lse_TH for part in parts]).reshape(P, num_rows, -1)
    return Partial(out.transpose(0, 1).reshape(num_rows, num_heads, depth), lse.transpose(0, 1).flatten(1))


def _sequences(picks: Picks, num_keys: int) -> Iterator[Rows]:
    """For each key list and block of rows the keys that it reads, own block last, in keys folded to P * S."""
    before = num_keys - picks.row_bounds[-1]
    own = [np.arange(before + start, before + stop) for start, stop in pairwise(picks.row_bounds)]
    for index, head in enumerate(picks.rows):
        for earlier, block in zip(head, own, strict=True):
            assert not len(earlier) or (earlier[0] >= 0 and earlier[-1] < block[0]), "picks lie before their block"
            yield np.concatenate((earlier, block)) + index * num_keys
