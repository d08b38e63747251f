"""Layers that read a sliding window only, as Gemma 3 and Mistral have them: the last positions up to each row.

Everything that a pass reads has its place in one row of positions: segment behind segment, then what the rows read of
their own sequence. Where a kv head has fewer pairs than its segment has positions, there is a gap before them. So it
is known how far before a row each pair lies, and a windowed layer reads what one pass over everything would read:
neither more nor, across a gap, less. Whatever thins out what other layers read (patterns, gates, pages) leaves the
windows alone: they are short already.

Rows read themselves in one causal call with a window. Of a segment whose last ``reach`` positions are in the first
row's window, row r reads the last ``reach - r``: fewer with every row. Seen from behind, with rows and keys in opposite
order, these are the steps of a causal call; rows whose window holds all the pairs there are read them in full.

Shapes: N sequences, T rows, H query heads, G kv heads, R = H // G, D head dimension, S pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from workers.attention.base import Backend, Partial, merge
from workers.segments import Readable, fold, unfold


class OwnRows(NamedTuple):
    """Pairs that rows read of their own sequences, [S, G, D]: sequence n's are ``bounds[n]:bounds[n + 1]``, at
    positions one behind the other, of which its rows are the last."""

    k_SGD: Tensor
    v_SGD: Tensor
    bounds: Sequence[int]


class _Run(NamedTuple):
    """How the rows of a sequence meet a segment's ``pairs`` of one kv head, keys and values [S, D]: ``whole`` rows read
    all of them, then ``cut`` rows ever less, then ``blind`` rows nothing."""

    pairs: tuple[Tensor, Tensor]
    whole: int
    cut: int
    blind: int

    @classmethod
    def of(cls, pairs: tuple[Tensor, Tensor], num_rows: int, reach: int) -> _Run:
        """Row r of ``num_rows`` reads the last ``reach - r`` of at most ``reach`` pairs."""
        num_pairs = len(pairs[0])
        if not num_pairs:
            return cls(pairs, 0, 0, num_rows)
        whole = min(num_rows, reach - num_pairs + 1)
        cut = min(num_rows, reach) - whole
        return cls(pairs, whole, cut, num_rows - whole - cut)

    @property
    def from_behind(self) -> tuple[Tensor, Tensor]:
        """What cut rows read, last pair first: all but the first pair."""
        keys_SD, values_SD = self.pairs if self.cut else self.nothing
        return keys_SD[1:].flip(0), values_SD[1:].flip(0)

    @property
    def nothing(self) -> tuple[Tensor, Tensor]:
        """No pairs."""
        keys_SD, values_SD = self.pairs
        return keys_SD[:0], values_SD[:0]


@dataclass(frozen=True)
class WindowReader:
    """What the rows of a pass (in sequences, by ``row_bounds``) read in layers with a window."""

    backend: Backend
    row_bounds: tuple[int, ...]
    segments: tuple[Readable, ...]

    def attend(self, layer: int, q_THD: Tensor, own: OwnRows, window: int, scale: float) -> Partial:
        """Each row over the ``window`` positions that end with it."""
        k_SGD, v_SGD, bounds = own
        partial = self.backend.attend(
            q_THD, k_SGD, v_SGD, self.row_bounds, bounds, causal=True, scale=scale, window=window
        )
        own_N, rows_N = ([stop - start for start, stop in pairwise(b)] for b in (bounds, self.row_bounds))
        # Who has no rows in this pass reaches nothing: its pairs need not be gathered.
        reach_N = [window - 1 - (own - rows) if rows else 0 for own, rows in zip(own_N, rows_N, strict=True)]
        for segment in reversed(self.segments):
            if max(reach_N, default=0) <= 0:
                break
            runs = [
                _Run.of(segment.last(layer, head, n, max(0, reach)), rows_N[n], reach)
                for head in range(k_SGD.shape[1])
                for n, reach in enumerate(reach_N)
            ]
            partial = merge(partial, self._behind(runs, q_THD, k_SGD.shape[1], scale))
            reach_N = [reach - segment.num_positions(n) for n, reach in enumerate(reach_N)]
        return partial

    def _behind(self, runs: Sequence[_Run], q_THD: Tensor, num_kv_heads: int, scale: float) -> Partial:
        """Rows over the runs of one segment, which lie kv head by kv head and in it sequence by sequence."""
        folded = fold(q_THD, num_kv_heads)
        rows = [count for run in runs for count in (run.whole, run.cut + run.blind)]
        pairs = [part for run in runs for part in (run.pairs, run.nothing)]
        partial = self._over(folded, rows, pairs, causal=False, scale=scale)
        if any(run.cut for run in runs):
            rows = [count for run in reversed(runs) for count in (run.blind, run.cut, run.whole)]
            pairs = [part for run in reversed(runs) for part in (run.nothing, run.from_behind, run.nothing)]
            steps = self._over(folded.flip(0), rows, pairs, causal=True, scale=scale)
            partial = merge(partial, Partial(steps.out_THD.flip(0), steps.lse_TH.flip(0)))
        return unfold(partial, num_kv_heads)

    def _over(
        self, q_THD: Tensor, rows: Sequence[int], pairs: Sequence[tuple[Tensor, Tensor]], *, causal: bool, scale: float
    ) -> Partial:
        """So many rows each over pairs of their own."""
        keys, values = (torch.cat(tensors)[:, None] for tensors in zip(*pairs, strict=True))
        cu_q, cu_k = (0, *accumulate(rows)), (0, *accumulate(len(keys_SD) for keys_SD, _ in pairs))
        return self.backend.attend(q_THD, keys, values, cu_q, cu_k, causal=causal, scale=scale)
