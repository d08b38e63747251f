"""Layers that see a sliding window only, as Gemma 3 and Mistral have them: the last pairs before the rows, and they.

Everything that a pass reads stands at contiguous positions: segments one behind the other, then the rows. So a row
of a windowed layer reads the last pairs of the segments and its own rows in one causal call with a window. Where a
kv head kept less than the longest of its layer, positions have a gap before its pairs: what stands before the gap is
not read, so that nothing outside the window ever is.

Shapes: T rows, H query heads, G kv heads, R = H // G, D head dimension, N sequences.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from workers.attention.base import Backend, Partial
from workers.segments import Readable, fold, unfold


def attend_window(
    backend: Backend,
    layer: int,
    rows: tuple[Tensor, Tensor, Tensor],
    row_bounds: Sequence[int],
    segments: Sequence[Readable],
    window: int,
    scale: float,
) -> Partial:
    """Causal attention of each sequence's ``rows`` (q, k, v) over the ``window`` positions that end with each row."""
    q_THD, k_TGD, v_TGD = rows
    num_kv_heads = k_TGD.shape[1]
    keys: list[Tensor] = []
    values: list[Tensor] = []
    lengths: list[int] = []
    for head in range(num_kv_heads):
        for sequence, (start, stop) in enumerate(pairwise(row_bounds)):
            before = _last(segments, layer, head, sequence, window - 1)
            own = (k_TGD[start:stop, head], v_TGD[start:stop, head])
            lengths.append(sum(len(k) for k, _ in (*before, own)))
            keys += [k for k, _ in (*before, own)]
            values += [v for _, v in (*before, own)]
    num_rows = len(q_THD)
    cu_q = [head * num_rows + bound for head in range(num_kv_heads) for bound in row_bounds[:-1]]
    folded = backend.attend(
        fold(q_THD, num_kv_heads),
        torch.cat(keys)[:, None],
        torch.cat(values)[:, None],
        (*cu_q, num_kv_heads * num_rows),
        (0, *accumulate(lengths)),
        causal=True,
        scale=scale,
        window=window,
    )
    return unfold(folded, num_kv_heads)


def _last(
    segments: Sequence[Readable], layer: int, head: int, sequence: int, count: int
) -> list[tuple[Tensor, Tensor]]:
    """The last ``count`` pairs before the rows, in order, up to the first gap."""
    found: list[tuple[Tensor, Tensor]] = []
    for segment in reversed(segments):
        if count <= 0:
            break
        keys_SD, values_SD = segment.last(layer, head, sequence, count)
        found.insert(0, (keys_SD, values_SD))
        if len(keys_SD) < min(count, segment.num_positions(sequence)):
            break
        count -= segment.num_positions(sequence)
    return found
