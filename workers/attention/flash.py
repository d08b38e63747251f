"""Attention by the flash-attn package (FlashAttention-2): Ampere and newer, float16 and bfloat16.

The only file that imports ``flash_attn``, and only when it is asked for. Its causal and
window masks are aligned bottom-right, as ours are, so a chunk after a past needs no merge.
"""

from __future__ import annotations

import torch
from torch import Tensor

from workers.attention.base import Backend
from workers.attention.varlen import VarlenBackend, VarlenCall, require_ampere
from workers.errors import BackendUnavailable


def open_backend(device: torch.device) -> Backend:
    """The flash-attn backend; raises BackendUnavailable where the device or the package does not fit."""
    require_ampere(device)
    return load()


def load() -> VarlenBackend:
    """The backend over the installed package, whatever the device; raises BackendUnavailable without it."""
    try:
        from flash_attn import flash_attn_varlen_func
    except ImportError as error:
        raise BackendUnavailable(
            f"flash-attn cannot be imported ({error}): pip install --no-build-isolation 'foveate[cuda]'"
        ) from error

    def launch(call: VarlenCall) -> tuple[Tensor, Tensor]:
        out_THD, lse_HT, _ = flash_attn_varlen_func(
            call.q_THD,
            call.k_SGD,
            call.v_SGD,
            call.cu_q,
            call.cu_k,
            call.max_q,
            call.max_k,
            softmax_scale=call.scale,
            causal=call.reach[1] == 0,
            window_size=call.reach,
            return_attn_probs=True,
        )
        return out_THD, lse_HT

    return VarlenBackend("flash", launch)
