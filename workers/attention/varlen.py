"""What both fronts of FlashAttention-2's ragged kernel share: its contract, its ways with empty sequences.

Suffixes as in ``base``. Invariants: the kernel is never launched without queries or keys; it gets int32
offsets on its own device, float16 or bfloat16 rows, and upper bounds of the lengths; its +inf, for a row
that saw no key, leaves here as -inf.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import torch
from torch import Tensor

from workers.attention.base import Partial, check_call, check_window, empty
from workers.errors import BackendUnavailable

_DTYPES = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class VarlenCall:
    """One launch. ``max_q`` and ``max_k`` bound the sequences' lengths. ``reach``: how many keys before and after its
    own a row reads, aligned bottom-right, -1 for all of them: (-1, 0) is causal, (W - 1, 0) a window of W keys."""

    q_THD: Tensor
    k_SGD: Tensor
    v_SGD: Tensor
    cu_q: Tensor
    cu_k: Tensor
    max_q: int
    max_k: int
    reach: tuple[int, int]
    scale: float


@dataclass(frozen=True)
class VarlenBackend:
    """A ``Backend`` over a front of the kernel: ``launch`` returns out [T, H, D] and lse [H, T]."""

    name: str
    launch: Callable[[VarlenCall], tuple[Tensor, Tensor]]

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
        """See ``Backend.attend``. Takes float16 and bfloat16, head dimensions 8, 16, ... 256."""
        check_call(q_THD, k_SGD, v_SGD, cu_q, cu_k)
        check_window(window, causal=causal)
        self._check_kernel(q_THD)
        if not len(q_THD) or not len(k_SGD):
            return empty(q_THD)
        q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q_THD, k_SGD, v_SGD))
        max_q, max_k = _longest(cu_q), _longest(cu_k)
        if max_q == 1 and len(q_THD) < len(cu_q) - 1:
            # For max_q == 1 the kernel takes every sequence to have exactly one query; some here have none.
            max_q = 2
        out_THD, lse_HT = self.launch(
            VarlenCall(
                q,
                k,
                v,
                _offsets(tuple(cu_q), q.device),
                _offsets(tuple(cu_k), q.device),
                max_q,
                max_k,
                _reach(causal, window, max_q, max_k),
                scale,
            )
        )
        assert lse_HT.shape == (q.shape[1], q.shape[0]), f"{self.name}: lse {tuple(lse_HT.shape)}, want [H, T]"
        return Partial(out_THD, lse_HT.masked_fill(lse_HT == math.inf, -math.inf).T)

    def _check_kernel(self, q_THD: Tensor) -> None:
        """Raise ValueError for a dtype or head dimension that FlashAttention-2 does not have."""
        if q_THD.dtype not in _DTYPES:
            raise ValueError(
                f"q is {q_THD.dtype}: the {self.name} backend takes float16 or bfloat16; set model.dtype "
                "to one of them, or model.attention and model.device to cpu"
            )
        if q_THD.shape[2] % 8 or q_THD.shape[2] > 256:
            raise ValueError(f"head dimension {q_THD.shape[2]}: the {self.name} backend takes multiples of 8 up to 256")


def require_ampere(device: torch.device) -> None:
    """Raise BackendUnavailable unless FlashAttention-2's kernels run on this device."""
    if device.type != "cuda":
        raise BackendUnavailable(f"needs a CUDA device of compute capability 8.0 (Ampere) or newer, not {device}")
    if not torch.cuda.is_available():
        raise BackendUnavailable("needs a CUDA device, and torch finds none: install a CUDA build of torch, a driver")
    major, minor = torch.cuda.get_device_capability(device)
    if major < 8:
        raise BackendUnavailable(f"needs compute capability 8.0 (Ampere) or newer; {device} has {major}.{minor}")


def _reach(causal: bool, window: int | None, max_q: int, max_k: int) -> tuple[int, int]:
    """``VarlenCall.reach``, as little as it can be: a window that holds every key is none, and one query sees all keys
    whether causal or not, but only a call that is not causal splits them."""
    if window is not None and window < max_k:
        return (window - 1, 0)
    return (-1, 0) if causal and max_q > 1 else (-1, -1)


def _longest(offsets: Sequence[int]) -> int:
    return max(stop - start for start, stop in pairwise(offsets))


@lru_cache(maxsize=64)
def _offsets(offsets: tuple[int, ...], device: torch.device) -> Tensor:
    """Offsets as the kernel reads them; kept, because every layer of a step asks for the same ones."""
    with torch.inference_mode(False):
        return torch.tensor(offsets, dtype=torch.int32, device=device)
