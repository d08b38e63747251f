"""Which backend a name gives, and what is said where it gives none."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch

from tests.workers.attention import flash_on_cpu
from tests.workers.attention.conftest import Sitting
from tests.workers.attention.ragged import Shape, assert_close, make, softmax64
from workers.attention import base, flash, torch_flash
from workers.attention.base import available, resolve
from workers.errors import BackendUnavailable

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", ["cpu", "auto"])
def test_the_cpu_gets_the_cpu_backend(name: Any) -> None:
    assert resolve(name, CPU).name == "cpu"


@pytest.mark.parametrize("name", ["flash", "torch_flash"])
def test_a_backend_asked_for_by_name_says_which_device_it_needs(name: Any) -> None:
    with pytest.raises(BackendUnavailable, match=r"needs a CUDA device .*8\.0.*not cpu"):
        resolve(name, CPU)


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without CUDA")
@pytest.mark.parametrize("name", ["flash", "torch_flash"])
def test_a_cuda_device_that_is_not_there_is_said_so(name: Any) -> None:
    with pytest.raises(BackendUnavailable, match="torch finds none"):
        resolve(name, torch.device("cuda"))


def test_flash_without_the_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flash_attn", None)
    with pytest.raises(BackendUnavailable, match=r"pip install .*foveate\[cuda\]"):
        flash.load()


def test_torch_flash_on_an_old_torch_says_which_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.nn.attention.varlen", None)
    with pytest.raises(BackendUnavailable, match=r"install torch>=2\.11"):
        torch_flash.load()


def test_every_backend_has_its_reason() -> None:
    reasons = available(CPU)
    assert list(reasons) == ["flash", "torch_flash", "cpu"]
    assert reasons["cpu"] == "usable"
    assert "CUDA device" in reasons["flash"] and "CUDA device" in reasons["torch_flash"]


def test_auto_with_no_usable_backend_gives_every_reason() -> None:
    with pytest.raises(BackendUnavailable, match=r"on meta: flash: .*; torch_flash: .*; cpu: .*model\.device"):
        resolve("auto", torch.device("meta"))


@pytest.mark.parametrize("usable", ["flash", "torch_flash"])
def test_auto_takes_the_first_usable_backend(usable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    flash_on_cpu.install()
    backend = {"flash": flash, "torch_flash": torch_flash}[usable].load()
    monkeypatch.setitem(base._BACKENDS, usable, lambda device: backend)
    assert resolve("auto", CPU) is backend
    assert available(CPU)[usable] == "usable"


def test_varlen_attn_of_torch_2_11_is_called_as_it_wants() -> None:
    """It has no ``enable_gqa``, and takes fewer kv heads as they are."""
    from torch.nn.attention.varlen import AuxRequest, varlen_attn

    def of_2_11(
        query: Any,
        key: Any,
        value: Any,
        cu_seq_q: Any,
        cu_seq_k: Any,
        max_q: int,
        max_k: int,
        *,
        return_aux: Any = None,
        scale: float | None = None,
        window_size: tuple[int, int] = (-1, -1),
    ) -> Any:
        return varlen_attn(
            query,
            key,
            value,
            cu_seq_q,
            cu_seq_k,
            max_q,
            max_k,
            return_aux=return_aux,
            scale=scale,
            window_size=window_size,
            enable_gqa=True,
        )

    flash_on_cpu.install()
    sitting = Sitting(torch_flash.over(of_2_11, AuxRequest(lse=True)), CPU, torch.bfloat16)
    ragged = make(Shape(((3, 9), (4, 2))), sitting)
    assert_close(ragged.attend(sitting, causal=True), softmax64(ragged, causal=True), sitting)


def test_varlen_attn_of_torch_2_10_is_refused() -> None:
    def of_2_10(
        query: Any,
        key: Any,
        value: Any,
        cu_seq_q: Any,
        cu_seq_k: Any,
        max_q: int,
        max_k: int,
        is_causal: bool = False,
        return_aux: Any = None,
    ) -> Any:
        raise AssertionError("never called")

    with pytest.raises(BackendUnavailable, match=r"takes no scale, window_size: install torch>=2\.11"):
        torch_flash.over(of_2_10, None)
