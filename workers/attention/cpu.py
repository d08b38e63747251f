"""Attention on the CPU: torch's own flash kernel, which is fast, exact and returns its log-sum-exp.

Suffixes as in ``base``; R = H // G query heads share one kv head, a call takes n rows over m keys. The kernel
takes [N, heads, rows, D] views, so nothing is copied on the way in.

Invariants: the kernel is never called with zero rows on either side (it divides by them: SIGFPE ends the
process); its ``is_causal`` is aligned top-left, so it is only used on as many queries as keys, where both
alignments agree; keys outside a window are not read, but for the few beside a piece of rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from workers.attention.base import Backend, Partial, check_call, check_window, empty, merge
from workers.errors import BackendUnavailable

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)

_operator = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu

# Above this many rows folding no longer pays for the copy of the queries that it needs.
_FOLD_ROWS = 16

# From as many rows and keys on, bfloat16 is multiplied faster as float32 by oneDNN (see ``let_onednn_multiply``): 1.3
# to 1.9 times here, casts included. Below, the kernel works on 32 rows at a time, and oneDNN's cost per call shows.
_CAST_ROWS, _CAST_KEYS = 192, 256

# A window is read by pieces of this many rows, each over its rows' window in full: few rows waste the least (a window
# of 512 costs 1.3 times its keys at 32 rows, 2.2 at 512), and the kernel works on 32 rows at a time anyway.
_PIECE_ROWS = 32


# With AMX the kernel multiplies bfloat16 in tiles of its own; without, it is left to a library that is slow at it.
_CASTS = not torch.cpu.get_capabilities().get("amx_bf16", False)


def let_onednn_multiply(dtype: torch.dtype) -> None:
    """Have float32 products made by oneDNN, for a model of this dtype, in this process from now on.

    torch leaves them to its BLAS, MKL, which on AMD processors reaches a third of what they can do. The one switch is
    the precision "bf16", which lets oneDNN round factors to bfloat16 where that is faster: nothing is lost where they
    come from a bfloat16 model. A float32 model keeps what it has.
    """
    if dtype == torch.bfloat16:
        torch.backends.mkldnn.matmul.fp32_precision = "bf16"  # type: ignore[attr-defined]


class CpuBackend:
    """``aten._scaled_dot_product_flash_attention_for_cpu``, one or two calls for each sequence."""

    name = "cpu"

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
        """See ``Backend.attend``. Takes float32, bfloat16 and float16; sums are float32 in all of them."""
        check_call(q_THD, k_SGD, v_SGD, cu_q, cu_k)
        check_window(window, causal=causal)
        if q_THD.dtype not in _DTYPES:
            raise ValueError(f"q is {q_THD.dtype}: the cpu backend takes float32, bfloat16 or float16")
        total = empty(q_THD)
        for (q_start, q_stop), (k_start, k_stop) in zip(pairwise(cu_q), pairwise(cu_k), strict=True):
            q, k, v = q_THD[q_start:q_stop], k_SGD[k_start:k_stop], v_SGD[k_start:k_stop]
            if causal:
                # Of n queries over m keys the first n - m see nothing; they keep out 0 and lse -inf.
                blind = max(0, len(q) - len(k))
                q, q_start = q[blind:], q_start + blind
            if len(q) and len(k):
                if window is not None and window < len(k):
                    part = _windowed(q, k, v, window, scale)
                else:
                    part = _causal(q, k, v, scale) if causal else _full(q, k, v, scale)
                total.out_THD[q_start:q_stop] = part.out_THD
                total.lse_TH[q_start:q_stop] = part.lse_TH
        return total


def _causal(q_nHD: Tensor, k_mGD: Tensor, v_mGD: Tensor, scale: float) -> Partial:
    """Bottom-right causal attention of n <= m rows: the past in full, the last n keys causally."""
    past = len(k_mGD) - len(q_nHD)
    if len(q_nHD) == 1:
        return _full(q_nHD, k_mGD, v_mGD, scale)
    own = _kernel(q_nHD, k_mGD[past:], v_mGD[past:], True, scale)
    return merge(_full(q_nHD, k_mGD[:past], v_mGD[:past], scale), own) if past else own


def _windowed(q_nHD: Tensor, k_mGD: Tensor, v_mGD: Tensor, window: int, scale: float) -> Partial:
    """Causal attention of n <= m rows over their last ``window`` < m keys: rows whose window is still cut short by
    the first key, then whole pieces of rows at once, then the rows that fill no piece."""
    n, first = len(q_nHD), len(k_mGD) - len(q_nHD)
    parts = []
    start = max(0, window - first)
    if start:
        parts.append(_causal(q_nHD[:start], k_mGD[:window], v_mGD[:window], scale))
    whole = n - (n - start) % _PIECE_ROWS
    for begin, stop, rows in ((start, whole, _PIECE_ROWS), (whole, n, n - whole)):
        if begin < stop:
            seen = slice(first + begin + 1 - window, first + stop)
            parts.append(_pieces(q_nHD[begin:stop], k_mGD[seen], v_mGD[seen], rows, scale))
    return Partial(torch.cat([part.out_THD for part in parts]), torch.cat([part.lse_TH for part in parts]))


def _pieces(q_nHD: Tensor, k_mGD: Tensor, v_mGD: Tensor, rows: int, scale: float) -> Partial:
    """Row r reads the keys r to m - n + r, in one call over pieces of ``rows`` rows (n is a multiple): overlapping
    views of the keys, and one mask for all pieces."""
    if len(q_nHD) == 1:
        return _full(q_nHD, k_mGD, v_mGD, scale)
    width = len(k_mGD) - len(q_nHD) + rows
    seen = torch.ones(rows, width, dtype=torch.bool).triu().tril(width - rows)
    mask = torch.zeros(rows, width, dtype=q_nHD.dtype).masked_fill(~seen, float("-inf"))
    q_NHrD = _dense(q_nHD).reshape(-1, rows, *q_nHD.shape[1:]).transpose(1, 2)
    k_NGwD, v_NGwD = (_dense(x).unfold(0, width, rows).transpose(2, 3) for x in (k_mGD, v_mGD))
    out, lse = _operator(q_NHrD, k_NGwD, v_NGwD, 0.0, False, attn_mask=mask, scale=scale)
    return Partial(out.transpose(1, 2).flatten(0, 1), lse.transpose(1, 2).flatten(0, 1))


def _full(q_nHD: Tensor, k_mGD: Tensor, v_mGD: Tensor, scale: float) -> Partial:
    """Every row over every key; a few rows with the R heads that share a kv head folded into rows.

    The kernel takes fewer kv heads than heads as they are, but then reads every key R times for few rows
    each. Folded, one row over 1,000 keys is up to 18 times faster in bfloat16 and 1.3 in float32.
    """
    (n, _, D), G = q_nHD.shape, k_mGD.shape[1]
    if n > _FOLD_ROWS:
        return _kernel(q_nHD, k_mGD, v_mGD, False, scale)
    q_nrGD = q_nHD.reshape(n, G, -1, D).transpose(1, 2).reshape(-1, G, D)
    out_nrGD, lse_nrG = _kernel(q_nrGD, k_mGD, v_mGD, False, scale)
    return Partial(
        out_nrGD.reshape(n, -1, G, D).transpose(1, 2).flatten(1, 2),
        lse_nrG.reshape(n, -1, G).transpose(1, 2).flatten(1, 2),
    )


def _kernel(q_nHD: Tensor, k_mGD: Tensor, v_mGD: Tensor, is_causal: bool, scale: float) -> Partial:
    """One call of the operator on one sequence."""
    dtype = q_nHD.dtype
    q, k, v = (_dense(x).transpose(0, 1)[None] for x in (q_nHD, k_mGD, v_mGD))
    if dtype == torch.bfloat16 and len(q_nHD) >= _CAST_ROWS and len(k_mGD) >= _CAST_KEYS and _CASTS:
        q, k, v = q.float(), k.float(), v.float()
    out, lse = _operator(q, k, v, 0.0, is_causal, scale=scale)
    return Partial(out[0].transpose(0, 1).to(dtype), lse[0].transpose(0, 1))


def _dense(x: Tensor) -> Tensor:
    """The operator reads strided views, but neighbours in D must be neighbours in memory."""
    return x if x.stride(-1) == 1 else x.contiguous()


def open_backend(device: torch.device) -> Backend:
    """The CPU backend; raises BackendUnavailable for tensors on any other device."""
    if device.type != "cpu":
        raise BackendUnavailable(f"needs tensors on the cpu, not on {device}: set model.device to cpu")
    return CpuBackend()
