"""What numbers are measured on, in one line for pages and rows."""

from __future__ import annotations

import platform

import torch

from configs.schema import Model
from workers.loading import resolve_runtime


def describe_machine(model: Model) -> str:
    """Device, dtype, attention kernel and torch, as ``model`` makes use of this machine."""
    runtime = resolve_runtime(model)
    device = torch.device(runtime.device)
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = f"{platform.machine()} ({torch.backends.cpu.get_cpu_capability()})"
    return f"{name}, {runtime.dtype}, attention {runtime.attention}, torch {torch.__version__}"
