"""Blocks that read the earlier blocks whose keys are like those that their queries look for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from workers.attention.patterns.pooling import block_means
from workers.attention.plan import BlockGrid, BlockPlan, masked_plan


@dataclass(frozen=True)
class Routing:
    """Per kv head, a block of rows reads the cluster of earlier blocks nearest to its queries, itself and the block
    before it.

    Roy et al. 2021, "Efficient Content-Based Sparse Attention with Routing Transformers", for a frozen model: its
    centroids are learned, these are found by a few rounds of spherical k-means over mean keys. A future key must not
    move an earlier row's centroids, so each block of rows has a k-means of its own over the blocks before it (all
    of them in one batch: Q * C * K * D per round, about 4 % of dense attention at 8K). ``clusters``: at most so many;
    None for the rounded square root of the number of blocks before the rows. The first centroids are blocks, drawn by
    ``seed`` and place.

    Shapes: C clusters, K key blocks.
    """

    block_tokens: int
    clusters: int | None
    iterations: int
    seed: int

    def plan(self, grid: BlockGrid, q_THD: Tensor, k_SGD: Tensor, scale: float) -> BlockPlan:
        """As ``Pattern.plan``; differs by kv head, and depends on nothing behind a block of rows."""
        (_, H, D), G = q_THD.shape, k_SGD.shape[1]
        own = np.arange(grid.num_row_blocks) + grid.own(0)
        keys_GKD = normalize(block_means(k_SGD, grid.key_bounds), dim=-1).transpose(0, 1)
        rows = [bound - grid.row_bounds[0] for bound in grid.row_bounds]
        queries_GQD = block_means(q_THD, rows).reshape(len(own), G, H // G, D).mean(2).transpose(0, 1)
        seeds_QC, exists_QC = (torch.from_numpy(x).to(k_SGD.device) for x in self._first(own))
        before_QK = torch.from_numpy(np.arange(grid.num_key_blocks) < own[:, None]).to(k_SGD.device)
        allowed = [
            self._route(q, k, seeds_QC, exists_QC, before_QK) for q, k in zip(queries_GQD, keys_GKD, strict=True)
        ]
        allowed_GQK = torch.stack(allowed).cpu().numpy() | (np.arange(grid.num_key_blocks) == own[:, None] - 1)
        return masked_plan(grid, allowed_GQK)

    def _first(self, own: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """For each block of rows the blocks that its k-means starts from, and which of its clusters exist, [Q, C]."""
        wanted = [
            round(before**0.5) if self.clusters is None else min(self.clusters, before) for before in own.tolist()
        ]
        seeds_QC = np.zeros((len(own), max([1, *wanted])), dtype=np.int64)
        for row, before, count in zip(seeds_QC, own.tolist(), wanted, strict=True):
            generator = np.random.default_rng([self.seed % 2**63, before])
            row[:count] = generator.choice(before, count, replace=False) if count else []
        return seeds_QC, np.arange(seeds_QC.shape[1]) < np.array(wanted)[:, None]

    def _route(
        self, queries_QD: Tensor, keys_KD: Tensor, seeds_QC: Tensor, exists_QC: Tensor, before_QK: Tensor
    ) -> Tensor:
        """Of one kv head: which blocks lie in the cluster nearest to each block of rows, [Q, K] bool."""
        clusters_C = torch.arange(seeds_QC.shape[1], device=keys_KD.device)
        centroids_QCD = keys_KD[seeds_QC]
        for _ in range(self.iterations):
            cluster_QK = _nearest(keys_KD, centroids_QCD, exists_QC)
            member_QKC = (cluster_QK[..., None] == clusters_C) & before_QK[..., None]
            sums_QCD = member_QKC.to(keys_KD.dtype).transpose(1, 2) @ keys_KD
            # A cluster that lost all its blocks stays where it was.
            moved_QC1 = member_QKC.any(1)[..., None]
            centroids_QCD = torch.where(moved_QC1, normalize(sums_QCD, dim=-1), centroids_QCD)
        wanted_Q1 = _nearest(queries_QD[:, None], centroids_QCD, exists_QC)
        return (_nearest(keys_KD, centroids_QCD, exists_QC) == wanted_Q1) & before_QK


def _nearest(x_KD: Tensor, centroids_QCD: Tensor, exists_QC: Tensor) -> Tensor:
    """The centroid in whose direction each vector points most, [Q, K]; vectors are [K, D] for all Q, or [Q, K, D]."""
    likeness_QKC = x_KD @ centroids_QCD.transpose(1, 2)
    return likeness_QKC.masked_fill(~exists_QC[:, None], -torch.inf).argmax(-1)
