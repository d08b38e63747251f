"""One layer's queries, keys and values, and softmax attention under a mask in float64 to hold sparse calls against."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from tests.workers.attention.conftest import Sitting
from workers.attention.base import Partial, resolve
from workers.attention.plan import BlockGrid, BlockPlan

SCALE = 0.3


@dataclass(frozen=True)
class Layer:
    """T rows, the last of S keys: 4 heads over 2 kv heads."""

    q_THD: Tensor
    k_SGD: Tensor
    v_SGD: Tensor

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.q_THD, self.k_SGD, self.v_SGD

    @property
    def num_rows(self) -> int:
        return len(self.q_THD)

    @property
    def num_keys(self) -> int:
        return len(self.k_SGD)

    def grid(self, block_tokens: int = 16) -> BlockGrid:
        return BlockGrid.of(self.num_rows, self.num_keys, block_tokens)

    def poisoned(self, where_SG: Tensor) -> Layer:
        """NaN in these keys and values."""
        where = where_SG[..., None].to(self.k_SGD.device)
        return replace(
            self, k_SGD=self.k_SGD.masked_fill(where, torch.nan), v_SGD=self.v_SGD.masked_fill(where, torch.nan)
        )

    def changed_from(self, row: int) -> Layer:
        """Other queries, keys and values from a row on."""
        key = self.num_keys - self.num_rows + row
        other = make_layer(None, self.num_rows, self.num_keys, seed=77)
        return Layer(
            torch.cat([self.q_THD[:row], other.q_THD[row:].to(self.q_THD)]),
            torch.cat([self.k_SGD[:key], other.k_SGD[key:].to(self.k_SGD)]),
            torch.cat([self.v_SGD[:key], other.v_SGD[key:].to(self.v_SGD)]),
        )


class Recorder:
    """A backend that remembers the lengths of what reaches it."""

    name = "recorder"

    def __init__(self) -> None:
        self.calls: list[tuple[list[int], list[int]]] = []

    def attend(
        self,
        q_THD: Tensor,
        k_SGD: Tensor,
        v_SGD: Tensor,
        cu_q: Sequence[int],
        cu_k: Sequence[int],
        *,
        causal: bool,
        scale: float,
        window: int | None = None,
    ) -> Partial:
        self.calls.append((np.diff(cu_q).tolist(), np.diff(cu_k).tolist()))
        return resolve("cpu", q_THD.device).attend(q_THD, k_SGD, v_SGD, cu_q, cu_k, causal=causal, scale=scale)


def make_layer(sitting: Sitting | None, num_rows: int, num_keys: int, seed: int = 0) -> Layer:
    """Normal tensors in the sitting's dtype and on its device; float32 on the CPU without one."""
    generator = torch.Generator().manual_seed(seed)
    shapes = ((num_rows, 4, 16), (num_keys, 2, 16), (num_keys, 2, 16))
    tensors = [torch.randn(shape, generator=generator) for shape in shapes]
    return Layer(*(x if sitting is None else x.to(sitting.device, sitting.dtype) for x in tensors))


def allowed_by_plan(plan: BlockPlan, num_kv_heads: int) -> Tensor:
    """A plan as a mask [G, T, S], block by block, row by row."""
    bounds = list(pairwise(plan.grid.key_bounds))
    before, num_keys = plan.grid.row_bounds[0], plan.grid.key_bounds[-1]
    masks = torch.zeros(len(plan.reads), num_keys - before, num_keys, dtype=torch.bool)
    for mask, head in zip(masks, plan.reads, strict=True):
        for i, blocks in enumerate(head):
            for row in range(*bounds[plan.grid.own(i)]):
                for block in blocks.tolist():
                    mask[row - before, bounds[block][0] : min(bounds[block][1], row + 1)] = True
    return masks.expand(num_kv_heads, -1, -1)


def masked64(layer: Layer, allowed_GTS: Tensor) -> Partial:
    """Softmax over the allowed keys by its definition."""
    q, k, v = (x.cpu().double() for x in layer.tensors)
    group = q.shape[1] // k.shape[1]
    k, v, allowed = (
        k.repeat_interleave(group, 1),
        v.repeat_interleave(group, 1),
        allowed_GTS.repeat_interleave(group, 0),
    )
    logits_HTS = (torch.einsum("thd,shd->hts", q, k) * SCALE).masked_fill(~allowed, -torch.inf)
    return Partial(torch.einsum("hts,shd->thd", logits_HTS.softmax(-1), v), logits_HTS.logsumexp(-1).T)
