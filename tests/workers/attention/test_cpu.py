"""What only the CPU backend promises: that torch's kernel cannot kill the process, and what a window costs."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from workers.attention import cpu

SCRIPT = """
import torch
from workers.attention.cpu import CpuBackend
q, k = torch.ones({n}, 2, 8), torch.ones({m}, 1, 8)
partial = CpuBackend().attend(q, k, k, [0, {n}], [0, {m}], causal=False, scale=1.0)
print("lived", tuple(partial.out_THD.shape), flush=True)
view = lambda x: x.transpose(0, 1)[None]
torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(view(q), view(k), view(k))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the signal is Linux's")
@pytest.mark.parametrize(("n", "m"), [(0, 3), (3, 0)], ids=["no-queries", "no-keys"])
def test_the_guard_saves_the_process(n: int, m: int) -> None:
    """The backend lives where the bare operator, called next, divides by zero."""
    done = subprocess.run([sys.executable, "-c", SCRIPT.format(n=n, m=m)], capture_output=True, text=True)
    assert done.stdout == f"lived ({n}, 2, 8)\n"
    assert done.returncode == -signal.SIGFPE


@pytest.mark.parametrize("window", [16, 100])
def test_keys_outside_a_window_cost_nothing(window: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted are pairs of a row and a key that the operator is given; dense attention is given m of each row."""
    operator, pairs = cpu._operator, 0

    def counted(q: Tensor, k: Tensor, *rest: object, **named: object) -> object:
        nonlocal pairs
        pairs += q.shape[0] * q.shape[2] * k.shape[2]
        return operator(q, k, *rest, **named)

    monkeypatch.setattr(cpu, "_operator", counted)
    n, m = 500, 900
    q, k = torch.randn(n, 4, 8), torch.randn(m, 1, 8)
    cpu.CpuBackend().attend(q, k, k, [0, n], [0, m], causal=True, scale=1.0, window=window)
    assert n * window <= pairs <= n * (window + cpu._PIECE_ROWS)
