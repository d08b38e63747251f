"""FlashAttention-2's ragged kernel on a CPU, beneath the real Python fronts of flash-attn and of torch.

``install`` registers one strict stand-in for ``mha_varlen_fwd`` (the C++ entry that both packages build) as
the CPU implementation of their operators: everything above it, argument names, padding, order of results, is
the packages' own code. The stand-in refuses what the C++ refuses with TORCH_CHECK, and also what the kernel
would silently misread: offsets that do not fit, lengths above the stated maximum, an empty launch, and the
"one query in every sequence" that it assumes when ``max_seqlen_q`` is 1 and heads are grouped.
"""

from __future__ import annotations

import functools
import math
import sys
import types
from itertools import pairwise

import torch
from torch import Tensor


def mha_varlen_fwd(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_q: Tensor,
    cu_k: Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float,
    causal: bool,
    window: tuple[int, int],
) -> tuple[Tensor, Tensor]:
    """out [T, H, D] in q's dtype and lse [H, T] float32: +inf and out 0 where a row sees no key."""
    _check_tensors(q, k, v)
    _check_offsets(cu_q, len(q), max_q, "q")
    _check_offsets(cu_k, len(k), max_k, "k")
    _require(cu_q.numel() == cu_k.numel(), "as many sequences of queries as of keys")
    left, right = window
    if max_q == 1:
        causal = False
    if causal:
        right = 0
    if max_q == 1 and q.shape[1] > k.shape[1] and left < 0 and right < 0:
        _require(len(q) == cu_q.numel() - 1, "grouped heads and max_seqlen_q 1: one query in every sequence")
    out = torch.full_like(q, math.nan, memory_format=torch.contiguous_format)
    lse = torch.full((q.shape[1], q.shape[0]), math.nan, dtype=torch.float32)
    for (q0, q1), (k0, k1) in zip(pairwise(cu_q.tolist()), pairwise(cu_k.tolist()), strict=True):
        out[q0:q1], lse[:, q0:q1] = _one_sequence(q[q0:q1], k[k0:k1], v[k0:k1], scale, left, right)
    return out, lse


def _one_sequence(q: Tensor, k: Tensor, v: Tensor, scale: float, left: int, right: int) -> tuple[Tensor, Tensor]:
    group = q.shape[1] // k.shape[1]
    key, value = (x.double().repeat_interleave(group, 1) for x in (k, v))
    logits = torch.einsum("nhd,mhd->hnm", q.double(), key) * scale
    # The kernel's mask: a row's own column is row + seqlen_k - seqlen_q, which aligns it bottom-right.
    column = torch.arange(len(k))[None] - (torch.arange(len(q))[:, None] + len(k) - len(q))
    hidden = ((column > right) & (right >= 0)) | ((column < -left) & (left >= 0))
    logits = logits.masked_fill(hidden, -math.inf)
    lse = logits.logsumexp(-1)
    weights = torch.exp(logits - lse.masked_fill(lse == -math.inf, 0.0).unsqueeze(-1))
    out = torch.einsum("hnm,mhd->nhd", weights, value)
    return out.to(q.dtype), lse.masked_fill(lse == -math.inf, math.inf).float()


def _check_tensors(q: Tensor, k: Tensor, v: Tensor) -> None:
    _require(q.dtype in (torch.float16, torch.bfloat16), f"float16 or bfloat16, not {q.dtype}")
    _require(q.dtype == k.dtype == v.dtype, "one dtype")
    _require(q.dim() == 3 and k.dim() == 3 and k.shape == v.shape, "q [T, H, D], k and v [S, G, D]")
    _require(all(x.stride(-1) == 1 for x in (q, k, v)), "a contiguous last dimension")
    _require(q.shape[2] == k.shape[2] and q.shape[2] % 8 == 0 and q.shape[2] <= 256, "D: 8, 16, ... 256")
    _require(q.shape[1] % k.shape[1] == 0, "H divided by G")


def _check_offsets(offsets: Tensor, rows: int, longest: int, side: str) -> None:
    _require(offsets.dtype == torch.int32 and offsets.dim() == 1, f"cu_seqlens_{side}: int32 [N + 1]")
    _require(offsets.is_contiguous() and offsets.numel() > 1, f"cu_seqlens_{side}: contiguous, a sequence")
    lengths = offsets.diff()
    _require(int(offsets[0]) == 0 and int(offsets[-1]) == rows, f"cu_seqlens_{side}: 0 to {rows}")
    _require(int(lengths.min()) >= 0, f"cu_seqlens_{side} never falls")
    _require(0 < int(lengths.max()) <= longest, f"max_seqlen_{side} {longest} bounds {int(lengths.max())}")


def _require(holds: bool, contract: str) -> None:
    if not holds:
        raise RuntimeError(f"FlashAttention-2 takes: {contract}")


@functools.cache
def install() -> None:
    """Give both packages' operators a CPU implementation, once for this process.

    flash-attn without its compiled part (as ``make setup`` installs it) gets an empty module in its place.
    """
    try:
        import flash_attn_2_cuda  # noqa: F401
    except ImportError:
        sys.modules["flash_attn_2_cuda"] = types.ModuleType("flash_attn_2_cuda")
    try:
        import flash_attn  # noqa: F401  (its import defines the operators)
    except ImportError as error:
        raise ImportError("the tests need flash-attn's Python part: run make setup") from error
    torch.library.impl("flash_attn::_flash_attn_varlen_forward", "CPU")(_flash_attn_front)
    torch.library.impl("aten::_flash_attention_forward", "CPU")(_aten_front)


def _flash_attn_front(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float,
    softmax_scale: float,
    causal: bool,
    window_size_left: int = -1,
    window_size_right: int = -1,
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    return_softmax: bool = False,
    block_table: Tensor | None = None,
    leftpad_k: Tensor | None = None,
    seqused_k: Tensor | None = None,
    zero_tensors: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``flash_attn::_flash_attn_varlen_forward`` -> out, lse, probabilities (empty), random state."""
    unused = (alibi_slopes, block_table, leftpad_k, seqused_k)
    _require(dropout_p == 0 and softcap == 0 and not return_softmax and not zero_tensors, "no dropout, no softcap")
    _require(all(extra is None for extra in unused), "no alibi, pages, padding")
    out, lse = mha_varlen_fwd(
        q,
        k,
        v,
        cu_seqlens_q,
        cu_seqlens_k,
        max_seqlen_q,
        max_seqlen_k,
        scale=softmax_scale,
        causal=causal,
        window=(window_size_left, window_size_right),
    )
    return out, lse, q.new_empty(0), torch.empty(2, dtype=torch.int64)


def _aten_front(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cum_seq_q: Tensor | None,
    cum_seq_k: Tensor | None,
    max_q: int,
    max_k: int,
    dropout_p: float,
    is_causal: bool,
    return_debug_mask: bool,
    *,
    scale: float | None = None,
    window_size_left: int | None = None,
    window_size_right: int | None = None,
    **unused: object,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """``aten::_flash_attention_forward`` -> out, lse, random state, unused, debug mask."""
    _require(dropout_p == 0 and not return_debug_mask and cum_seq_q is not None and cum_seq_k is not None, "varlen")
    _require(all(extra is None for extra in unused.values()), "no alibi, pages, padding")
    assert cum_seq_q is not None and cum_seq_k is not None
    out, lse = mha_varlen_fwd(
        query,
        key,
        value,
        cum_seq_q,
        cum_seq_k,
        max_q,
        max_k,
        scale=query.shape[-1] ** -0.5 if scale is None else scale,
        causal=is_causal,
        window=(
            -1 if window_size_left is None else window_size_left,
            -1 if window_size_right is None else window_size_right,
        ),
    )
    nothing = query.new_empty(0)
    return out, lse, torch.empty(2, dtype=torch.uint64), nothing, nothing
