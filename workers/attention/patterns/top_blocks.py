"""The blocks with the highest estimated attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from workers.attention.patterns.pooling import tiles
from workers.attention.plan import BlockGrid, BlockPlan, masked_plan


@dataclass(frozen=True)
class TopBlocks:
    """Per kv head, a block of rows reads itself, the first block, and the best others: as few as hold ``mass`` of
    its estimated attention together, at least ``min_blocks`` in all.

    The estimate is that of Xu et al. 2025, "XAttention: Block Sparse Attention with Antidiagonal Scoring": of every
    tile of 16 by 16 logits only the antidiagonal is computed, which crosses every vertical and slanting line of the
    attention map, and its mean is the tile's logit. The choice by cumulative mass, per head and block of rows, is that
    of Lai et al. 2025, "FlexPrefill: A Context-Aware Sparse Attention Mechanism for Efficient Long-Sequence
    Inference". The heads that share a kv head share its blocks, by their mean probability. Over carried kept sets
    this is InfLLM's lookup (Xiao et al. 2024, "InfLLM: Training-Free Long-Context Extrapolation for LLMs with an
    Efficient Context Memory").

    Shapes: m tiles of rows, M tiles of keys, K key blocks, R heads of a kv head, E = 16 * D.
    """

    block_tokens: int
    mass: float
    min_blocks: int
    tile_tokens: ClassVar[int] = 16

    def plan(self, grid: BlockGrid, q_THD: Tensor, k_SGD: Tensor, scale: float) -> BlockPlan:
        """As ``Pattern.plan``; differs by kv head, and depends on nothing behind a block of rows."""
        (T, H, D), G = q_THD.shape, k_SGD.shape[1]
        own = np.arange(grid.num_row_blocks) + grid.own(0)
        share_GQK = self._estimate(grid, q_THD.reshape(T, G, H // G, D), k_SGD, scale).cpu().numpy().astype(np.float64)
        blocks = np.arange(grid.num_key_blocks)
        always_QK = (blocks == own[:, None]) | (blocks == 0)
        rank_GQK = np.where(always_QK, np.inf, share_GQK)
        order_GQK = np.argsort(-rank_GQK, axis=-1, kind="stable")
        ranked_GQK = np.take_along_axis(share_GQK, order_GQK, -1)
        enough_GQK = ranked_GQK.cumsum(-1) - ranked_GQK >= self.mass
        taken_GQK = ~enough_GQK | (blocks < max(self.min_blocks, 2))
        allowed_GQK = np.zeros_like(taken_GQK)
        np.put_along_axis(allowed_GQK, order_GQK, taken_GQK, -1)
        return masked_plan(grid, allowed_GQK)

    def _estimate(self, grid: BlockGrid, q_TGRD: Tensor, k_SGD: Tensor, scale: float) -> Tensor:
        """Estimated share of each key block in the attention of each block of rows, [G, Q, K] float32."""
        key_rows, key_tiles = tiles(grid.key_bounds, self.tile_tokens)
        rows, row_tiles = tiles([bound - grid.row_bounds[0] for bound in grid.row_bounds], self.tile_tokens)
        # The last row of a tile meets the first key of a tile, and so on: their products are an antidiagonal.
        q_mLGRD = q_TGRD[_index(rows[:, ::-1], q_TGRD)].float() * (scale / self.tile_tokens)
        k_MLGD = k_SGD[_index(key_rows, k_SGD)].float()
        shares = []
        for g in range(k_SGD.shape[1]):
            q_RmE, k_EM = q_mLGRD[:, :, g].permute(2, 0, 1, 3).flatten(2), k_MLGD[:, :, g].flatten(1).T
            shares.append(self._shares(q_RmE, k_EM, key_tiles, row_tiles))
        return torch.stack(shares)

    def _shares(self, q_RmE: Tensor, k_EM: Tensor, key_tiles: tuple[int, ...], row_tiles: tuple[int, ...]) -> Tensor:
        """Of one kv head, [Q, K]: probabilities of tiles, summed over a key block, averaged over rows and heads."""
        share_QK = k_EM.new_zeros(len(row_tiles) - 1, len(key_tiles) - 1)
        before, step = key_tiles[-1] - row_tiles[-1], 16
        for first in range(0, len(share_QK), step):
            part = row_tiles[first : first + step + 1]
            low, high, stop = part[0], part[-1], before + part[-1]
            blocks = len(share_QK[0]) - len(share_QK) + first + len(part) - 1
            later_mM = torch.ones(high - low, stop, dtype=torch.bool, device=k_EM.device).triu(before + low + 1)
            p_RmM = (q_RmE[:, low:high] @ k_EM[:, :stop]).masked_fill(later_mM, -torch.inf).softmax(-1)
            p_mK = _sums(p_RmM.mean(0), key_tiles[: blocks + 1])
            p_KQ = _sums(p_mK.T, [bound - low for bound in part])
            share_QK[first : first + step, :blocks] = p_KQ.T / _index(np.diff(part), k_EM)[:, None]
        return share_QK


def _index(values: NDArray[np.int64], like: Tensor) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values)).to(like.device)


def _sums(x_NM: Tensor, bounds: tuple[int, ...] | list[int]) -> Tensor:
    """Sums of columns ``bounds[i]:bounds[i + 1]``, by differences of running sums in float64."""
    running = torch.nn.functional.pad(x_NM.double().cumsum(1), (1, 0))
    return running[:, list(bounds)].diff(dim=1).to(x_NM.dtype)
