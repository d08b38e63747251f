"""Attention by torch's own build of FlashAttention-2: Ampere and newer, float16 and bfloat16.

Needs no extra package. Its masks, asked for as keys before and after, are aligned bottom-right, as ours are.
The public function's parameters changed between torch 2.10 and 2.12, so it is asked what it takes.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from workers.attention.base import Backend
from workers.attention.varlen import VarlenBackend, VarlenCall, require_ampere
from workers.errors import BackendUnavailable


def open_backend(device: torch.device) -> Backend:
    """torch's varlen backend; raises BackendUnavailable where the device or torch itself does not fit."""
    require_ampere(device)
    if torch.version.hip or not torch.backends.cuda.is_flash_attention_available():
        raise BackendUnavailable(f"torch {torch.__version__} has no FlashAttention-2: install a CUDA build of torch")
    return load()


def load() -> VarlenBackend:
    """The backend over the installed torch on any device; raises BackendUnavailable if it is too old."""
    try:
        from torch.nn.attention.varlen import AuxRequest, varlen_attn
    except ImportError as error:
        raise BackendUnavailable(
            f"torch {torch.__version__} has no torch.nn.attention.varlen: install torch>=2.11"
        ) from error
    return over(varlen_attn, AuxRequest(lse=True))


def over(varlen_attn: Callable[..., Any], with_lse: object) -> VarlenBackend:
    """The backend over one version of ``varlen_attn``; raises BackendUnavailable if it is too old."""
    takes = inspect.signature(varlen_attn).parameters
    missing = [name for name in ("scale", "window_size", "return_aux") if name not in takes]
    if missing:
        raise BackendUnavailable(
            f"varlen_attn of torch {torch.__version__} takes no {', '.join(missing)}: install torch>=2.11"
        )
    # Before torch 2.12 fewer kv heads than heads were simply taken; since then one has to say so.
    grouped = {"enable_gqa": True} if "enable_gqa" in takes else {}

    def launch(call: VarlenCall) -> tuple[Tensor, Tensor]:
        out_THD, lse_HT = varlen_attn(
            call.q_THD,
            call.k_SGD,
            call.v_SGD,
            call.cu_q,
            call.cu_k,
            call.max_q,
            call.max_k,
            return_aux=with_lse,
            scale=call.scale,
            window_size=call.reach,
            **grouped,
        )
        return out_THD, lse_HT

    return VarlenBackend("torch_flash", launch)
