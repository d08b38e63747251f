"""How the numbers of kept keys and values are held: as computed, rounded to a shorter float, or as 8-bit integers.

A codec is part of an entry's identity and is applied when the entry is made, before anybody answers from it, so that
an answer from the store is the answer from memory. ``int8`` is symmetric with one scale for each channel of each head
(LLM.int8, Dettmers et al. 2022, and KVQuant, Hooper et al. 2024, for why channels of un-rotated keys want scales of
their own). Invariants: packing a head depends on its own rows only; zeros stay zeros; nothing grows by being packed.

Shapes: N rows of pairs, E layers times kv heads, D head dimension, K rows that are wanted.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

PAIR_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
"""What pairs may be computed in."""
_FLOATS: Mapping[str, torch.dtype | None] = {
    "model": None,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
CODECS = (*_FLOATS, "int8")
_STEPS = 127


def bytes_per_number(codec: str, dtype: torch.dtype) -> int:
    """What one number of a key or value takes, of a model that computes in ``dtype``; scales are not counted."""
    return 1 if codec == "int8" else (_FLOATS[codec] or dtype).itemsize


class Packed(NamedTuple):
    """Keys or values as they are held: ``rows_ND`` in a float dtype or int8, ``scales_ED`` (float32) of the latter,
    else [0, D]."""

    rows_ND: Tensor
    scales_ED: Tensor


def pack(x_ND: Tensor, counts_E: Tensor, codec: str) -> Packed:
    """Rows, of which ``counts_E`` belong to each layer and head in order, as ``codec`` holds them.

    Raises ValueError for a value that float16 cannot hold: it would come back as infinity."""
    if codec != "int8":
        rows_ND = x_ND.to(_FLOATS[codec] or x_ND.dtype)
        if codec == "float16" and not bool(rows_ND.isfinite().all()):
            raise ValueError(f"float16 holds values up to 65,504; here is {float(x_ND.abs().max()):.3g}")
        return Packed(rows_ND, torch.empty(0, x_ND.shape[1]))
    entry_N = _entries(counts_E)
    greatest_ED = torch.zeros(len(counts_E), x_ND.shape[1])
    index_ND = entry_N[:, None].expand(x_ND.shape)
    greatest_ED.scatter_reduce_(0, index_ND, x_ND.abs().float(), "amax")
    scales_ED = greatest_ED / _STEPS
    steps_ND = x_ND.float() / scales_ED.clamp(min=torch.finfo(torch.float32).tiny)[entry_N]
    return Packed(steps_ND.round().to(torch.int8), scales_ED)


def unpack(packed: Packed, rows_K: Tensor, entries_K: Tensor) -> Tensor:
    """The wanted rows [K, D] as floats; ``entries_K``: which layer and head each belongs to."""
    rows_KD = packed.rows_ND[rows_K]
    if packed.rows_ND.dtype != torch.int8:
        return rows_KD
    return rows_KD * packed.scales_ED[entries_K]


def _entries(counts_E: Tensor) -> Tensor:
    """Per row, which layer and head it belongs to."""
    return torch.arange(len(counts_E)).repeat_interleave(counts_E.long())
