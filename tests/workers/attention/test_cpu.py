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


@pytest.mark.parametrize("causal", [False, True])
def test_bfloat16_of_many_rows_is_as_exact_as_its_factors(causal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many rows are multiplied as float32: what comes out is the exact result, each part of it rounded once."""
    n, m, scale = cpu._CAST_ROWS + 8, 2 * cpu._CAST_KEYS, 0.25
    q, k, v = (torch.randn(rows, heads, 16).bfloat16() for rows, heads in ((n, 4), (m, 2), (m, 2)))
    monkeypatch.setattr(cpu, "_CASTS", True)
    cast = cpu.CpuBackend().attend(q, k, v, [0, n], [0, m], causal=causal, scale=scale)
    exact = cpu.CpuBackend().attend(q.float(), k.float(), v.float(), [0, n], [0, m], causal=causal, scale=scale)
    assert cast.out_THD.dtype == torch.bfloat16 and cast.lse_TH.dtype == torch.float32
    torch.testing.assert_close(cast.out_THD.float(), exact.out_THD, rtol=2**-7, atol=2e-3)
    torch.testing.assert_close(cast.lse_TH, exact.lse_TH, rtol=1e-5, atol=1e-5)


def test_onednn_multiplies_for_bfloat16_models_only() -> None:
    script = "import torch\nfrom workers.attention.cpu import let_onednn_multiply\n"
    script += "for dtype in (torch.float32, torch.bfloat16):\n    let_onednn_multiply(dtype)\n"
    script += "    print(torch.backends.mkldnn.matmul.fp32_precision)\n"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["none", "bf16"]
