"""Blocks of rows as tensors, for patterns that look at content: their means, and their tiles.

Invariant: sums run over one block's rows only and in a fixed order, so a result depends on no other block and is
the same on every run (no atomic additions). Shapes: N rows, X heads, D head dimension, B blocks, M tiles.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def tiles(bounds: Sequence[int], length: int) -> tuple[NDArray[np.int64], tuple[int, ...]]:
    """Blocks, given as bounds from 0, cut into tiles of ``length`` rows: rows [M, length] and blocks as bounds of M.

    A block's last tile repeats its last row until it is full.
    """
    starts = np.array(bounds[:-1], dtype=np.int64)
    stops = np.array(bounds[1:], dtype=np.int64)
    counts = -(-(stops - starts) // length)
    tile_bounds = np.concatenate(([0], counts.cumsum()))
    place = np.arange(tile_bounds[-1]) - np.repeat(tile_bounds[:-1], counts)
    rows = np.repeat(starts, counts)[:, None] + place[:, None] * length + np.arange(length)
    return np.minimum(rows, np.repeat(stops, counts)[:, None] - 1), tuple(tile_bounds.tolist())


def block_means(x_NXD: Tensor, bounds: Sequence[int]) -> Tensor:
    """Mean row of each block, [B, X, D] float32; bounds run from 0 to N."""
    lengths = np.diff(bounds)
    if not len(lengths):
        return x_NXD.new_zeros(0, *x_NXD.shape[1:], dtype=torch.float32)
    rows_BL, _ = tiles(bounds, int(lengths.max()))
    inside_BL = np.arange(rows_BL.shape[1]) < lengths[:, None]
    weights_BL = torch.from_numpy(inside_BL / lengths[:, None]).to(x_NXD.device, torch.float32)
    blocks_BLXD = x_NXD[torch.from_numpy(rows_BL).to(x_NXD.device)].float()
    return torch.einsum("bl,blxd->bxd", weights_BL, blocks_BLXD)
