"""The attention primitive: one ragged call that also returns its log-sum-exp, and an exact merge.

Everything the engine computes (a chunk's prefill, a probe over a chunk, ragged decoding over kept sets) is
``attend`` on some cut of the keys plus ``merge``. Suffixes: T query rows, S key rows, H query heads, G kv
heads, D head dimension; sequence i is the rows ``cu_q[i]:cu_q[i+1]`` over the keys ``cu_k[i]:cu_k[i+1]``.

Invariants: a row that saw no key has ``out`` 0 and ``lse`` -inf; ``merge(attend(A), attend(B))`` equals
``attend(A u B)``; ``merge`` never makes a NaN out of empty sides; what was asked for by name and cannot run
is a ``BackendUnavailable``, never another kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from workers.errors import BackendUnavailable

BackendName = Literal["auto", "cpu", "flash", "torch_flash"]


class Partial(NamedTuple):
    """Attention over some of the keys: enough to be merged with attention over the others.

    ``out_THD`` has the queries' dtype; ``lse_TH`` is float32, the log of the sum of exp(scale * q.k).
    """

    out_THD: Tensor
    lse_TH: Tensor


class Backend(Protocol):
    """One kernel behind the primitive."""

    @property
    def name(self) -> str:
        """The name it is asked for by in ``model.attention``."""
        ...

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
        """Softmax attention of every sequence over its own keys; head h reads kv head ``h // (H // G)``.

        ``causal`` is aligned bottom-right: row r of n queries over m keys reads the keys up to m - n + r; with a
        ``window`` of W keys only the last W of those, itself among them (W >= 1, causal calls only).
        ``cu_q`` and ``cu_k`` start at 0, never fall, and end at T and S; empty sequences are legal on both
        sides. Raises ValueError for shapes, offsets, windows or dtypes that the kernel does not take.
        """
        ...


def merge(a: Partial, b: Partial) -> Partial:
    """Attention over the union of two disjoint sets of keys (online softmax; weights in float32)."""
    lse_TH = torch.logaddexp(a.lse_TH, b.lse_TH)
    # b's share of the sum: exactly 0 or 1 where one side is empty. Where both are, the difference is NaN.
    weight_TH = torch.sigmoid(b.lse_TH - a.lse_TH).masked_fill(torch.isneginf(lse_TH), 0.0)
    out_THD = torch.lerp(a.out_THD.float(), b.out_THD.float(), weight_TH.unsqueeze(-1))
    return Partial(out_THD.to(a.out_THD.dtype), lse_TH)


def empty(q_THD: Tensor) -> Partial:
    """What queries that see no key get: out 0, lse -inf; also the neutral side of ``merge``."""
    lse_TH = torch.full(q_THD.shape[:2], float("-inf"), dtype=torch.float32, device=q_THD.device)
    return Partial(torch.zeros_like(q_THD, memory_format=torch.contiguous_format), lse_TH)


def check_call(q_THD: Tensor, k_SGD: Tensor, v_SGD: Tensor, cu_q: Sequence[int], cu_k: Sequence[int]) -> None:
    """Raise ValueError unless shapes, dtypes and offsets fit together; every backend calls this first.

    Kernels do not check offsets themselves: a wrong one reads foreign memory.
    """
    if q_THD.dim() != 3 or k_SGD.dim() != 3 or k_SGD.shape != v_SGD.shape:
        raise ValueError(f"q {tuple(q_THD.shape)}, k {tuple(k_SGD.shape)}, v {tuple(v_SGD.shape)}: want THD, SGD, SGD")
    if q_THD.shape[2] != k_SGD.shape[2] or k_SGD.shape[1] == 0 or q_THD.shape[1] % k_SGD.shape[1]:
        raise ValueError(
            f"q {tuple(q_THD.shape)} and k {tuple(k_SGD.shape)}: want the same head dimension, and a number "
            "of query heads that is a multiple of the number of kv heads"
        )
    if not q_THD.dtype == k_SGD.dtype == v_SGD.dtype:
        raise ValueError(f"q {q_THD.dtype}, k {k_SGD.dtype}, v {v_SGD.dtype}: want one dtype")
    if len(cu_q) != len(cu_k):
        raise ValueError(f"cu_q has {len(cu_q)} offsets and cu_k {len(cu_k)}: want as many of both")
    for name, offsets, rows in (("cu_q", cu_q, len(q_THD)), ("cu_k", cu_k, len(k_SGD))):
        if not offsets or offsets[0] != 0 or offsets[-1] != rows:
            raise ValueError(f"{name} is {list(offsets[:1])}..{list(offsets[-1:])}: want 0 first and {rows} last")
        if any(stop < start for start, stop in pairwise(offsets)):
            raise ValueError(f"{name} falls: {list(offsets)}; want offsets that never fall")


def check_window(window: int | None, *, causal: bool) -> None:
    """Raise ValueError unless the window is one that ``Backend.attend`` defines."""
    if window is not None and (window < 1 or not causal):
        raise ValueError(f"window {window} with causal={causal}: want 1 or more, in a causal call")


def _cpu(device: torch.device) -> Backend:
    from workers.attention.cpu import open_backend

    return open_backend(device)


def _flash(device: torch.device) -> Backend:
    from workers.attention.flash import open_backend

    return open_backend(device)


def _torch_flash(device: torch.device) -> Backend:
    from workers.attention.torch_flash import open_backend

    return open_backend(device)


# In the order in which ``auto`` tries them.
_BACKENDS: dict[str, Callable[[torch.device], Backend]] = {
    "flash": _flash,
    "torch_flash": _torch_flash,
    "cpu": _cpu,
}


def resolve(name: BackendName, device: torch.device) -> Backend:
    """The backend of that name on that device; ``auto`` is the first usable of flash, torch_flash, cpu.

    Raises BackendUnavailable if it cannot run, saying why.
    """
    if name != "auto":
        return _BACKENDS[name](device)
    for opener in _BACKENDS.values():
        try:
            return opener(device)
        except BackendUnavailable:
            continue
    reasons = "; ".join(f"{backend}: {reason}" for backend, reason in available(device).items())
    raise BackendUnavailable(f"no attention backend runs on {device}: {reasons}")


def available(device: torch.device) -> dict[str, str]:
    """Every backend's name with ``"usable"`` or the reason why not, in the order that ``auto`` tries."""
    reasons: dict[str, str] = {}
    for name, opener in _BACKENDS.items():
        try:
            opener(device)
            reasons[name] = "usable"
        except BackendUnavailable as error:
            reasons[name] = str(error)
    return reasons
