"""Random ragged calls, and the textbook's softmax attention in float64 to hold them against."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from hypothesis import strategies as st
from torch import Tensor

from tests.workers.attention.conftest import Sitting
from workers.attention.base import Partial


@dataclass(frozen=True)
class Shape:
    """``lengths``: (queries, keys) of each sequence."""

    lengths: tuple[tuple[int, int], ...]
    heads: tuple[int, int] = (6, 2)
    head_dim: int = 16


@dataclass(frozen=True)
class Ragged:
    """The tensors of one call, in a backend's dtype and on its device."""

    q_THD: Tensor
    k_SGD: Tensor
    v_SGD: Tensor
    cu_q: Sequence[int]
    cu_k: Sequence[int]
    scale: float

    def attend(self, sitting: Sitting, *, causal: bool, window: int | None = None) -> Partial:
        return sitting.backend.attend(
            self.q_THD, self.k_SGD, self.v_SGD, self.cu_q, self.cu_k, causal=causal, scale=self.scale, window=window
        )

    def keys(self, pieces: Sequence[slice], cu_k: Sequence[int]) -> Ragged:
        """The same queries over some of the keys."""
        k, v = (torch.cat([x[piece] for piece in pieces]) for x in (self.k_SGD, self.v_SGD))
        return Ragged(self.q_THD, k, v, self.cu_q, cu_k, self.scale)

    def sequence(self, index: int) -> Ragged:
        """One sequence as a call of its own."""
        (q0, q1), (k0, k1) = self.cu_q[index : index + 2], self.cu_k[index : index + 2]
        q, k, v = self.q_THD[q0:q1], self.k_SGD[k0:k1], self.v_SGD[k0:k1]
        return Ragged(q, k, v, [0, q1 - q0], [0, k1 - k0], self.scale)


def make(shape: Shape, sitting: Sitting, seed: int = 0) -> Ragged:
    """Normal queries, keys and values; a scale that is not the default, so that forgetting it shows."""
    (H, G), D = shape.heads, shape.head_dim
    cu_q = [0, *accumulate(n for n, _ in shape.lengths)]
    cu_k = [0, *accumulate(m for _, m in shape.lengths)]
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (
        torch.randn(rows, heads, D, generator=generator).to(sitting.device, sitting.dtype)
        for rows, heads in ((cu_q[-1], H), (cu_k[-1], G), (cu_k[-1], G))
    )
    return Ragged(q, k, v, cu_q, cu_k, scale=0.3)


def softmax64(ragged: Ragged, *, causal: bool, window: int | None = None) -> Partial:
    """Attention by its definition, a row and a head at a time; both results in float64 on the CPU."""
    q, k, v = (x.cpu().double() for x in (ragged.q_THD, ragged.k_SGD, ragged.v_SGD))
    group = q.shape[1] // k.shape[1]
    out, lse = torch.zeros_like(q), torch.full(q.shape[:2], -torch.inf, dtype=torch.float64)
    for (q0, q1), (k0, k1) in zip(pairwise(ragged.cu_q), pairwise(ragged.cu_k), strict=True):
        for row in range(q0, q1):
            stop = k1 - (q1 - 1 - row) if causal else k1
            if stop <= k0:
                continue
            start = k0 if window is None else max(k0, stop - window)
            for head in range(q.shape[1]):
                logits = k[start:stop, head // group] @ q[row, head] * ragged.scale
                out[row, head] = logits.softmax(0) @ v[start:stop, head // group]
                lse[row, head] = logits.logsumexp(0)
    return Partial(out, lse)


def assert_close(got: Partial, want: Partial, sitting: Sitting, slack: float = 1.0) -> None:
    """Within the sitting's tolerance; -inf only equals -inf, and NaN equals nothing."""
    assert got.lse_TH.dtype == torch.float32
    assert got.out_THD.dtype == sitting.dtype
    torch.testing.assert_close(
        got.out_THD.cpu().double(), want.out_THD.cpu().double(), rtol=0, atol=slack * sitting.out
    )
    torch.testing.assert_close(got.lse_TH.cpu().double(), want.lse_TH.cpu().double(), rtol=0, atol=slack * sitting.lse)


def shapes() -> st.SearchStrategy[Shape]:
    """Up to five sequences of up to 24 queries and 24 keys, either of which may be none."""
    length = st.integers(0, 24) | st.integers(0, 1)
    return st.builds(
        Shape,
        lengths=st.lists(st.tuples(length, length), min_size=1, max_size=5).map(tuple),
        heads=st.sampled_from([(4, 2), (3, 1), (2, 2), (9, 3)]),
        head_dim=st.sampled_from([8, 24]),
    )
