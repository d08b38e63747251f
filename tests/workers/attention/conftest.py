"""Every backend that this machine can run, in every dtype it takes: the laws are sat by all of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch

from tests.workers.attention import flash_on_cpu
from workers.attention import flash, torch_flash
from workers.attention.base import Backend, available, resolve

BACKENDS = ("cpu", "flash", "torch_flash")
HALF = (torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Sitting:
    """A backend at its examination. ``out`` and ``lse``: largest allowed difference from float64."""

    backend: Backend
    device: torch.device
    dtype: torch.dtype

    @property
    def out(self) -> float:
        return {torch.float32: 5e-6, torch.float16: 5e-3, torch.bfloat16: 4e-2}[self.dtype]

    @property
    def lse(self) -> float:
        return 1e-5 if self.dtype == torch.float32 else 1e-3


def _candidates() -> Iterator[tuple[str, str, torch.dtype]]:
    yield "cpu", "cpu", torch.float32
    for name in BACKENDS:
        yield from ((name, "cpu", dtype) for dtype in HALF)
    if torch.cuda.is_available():
        usable = available(torch.device("cuda"))
        yield from ((name, "cuda", dtype) for name in usable if usable[name] == "usable" for dtype in HALF)


@pytest.fixture(scope="session", params=_candidates(), ids=lambda sat: f"{sat[0]}-{sat[1]}-{str(sat[2])[6:]}")
def sitting(request: pytest.FixtureRequest) -> Sitting:
    name, device_type, dtype = request.param
    device = torch.device(device_type)
    if device_type == "cuda" or name == "cpu":
        return Sitting(resolve(name, device), device, dtype)
    flash_on_cpu.install()
    return Sitting({"flash": flash, "torch_flash": torch_flash}[name].load(), device, dtype)
