"""A model whose layers lie on two devices, on a machine with one: tensors that have a device and no content.

torch's fake tensors refuse any operation over two devices, as GPUs would (here they are called cpu:0 and cpu:1, since a
torch without CUDA can name no others). What they cannot show is a number.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import dispatch_model
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from workers.errors import ModelError
from workers.hf import LanguageModel, Pass
from workers.hf.seam import Run

HOME, OTHER = torch.device("cpu:0"), torch.device("cpu:1")
PLACES = {
    "model.embed_tokens": HOME,
    "model.layers.0": HOME,
    "model.layers.1": OTHER,
    "model.layers.2": OTHER,
    "model.norm": OTHER,
    "model.rotary_emb": OTHER,
    "lm_head": OTHER,
}


class Seen(Pass):
    """Notes on which device everything is that a pass is given."""

    wants_hidden = True

    def __init__(self) -> None:
        self.devices: list[torch.device] = []

    def hidden(self, layer: int, hidden_TE: Tensor) -> None:
        self.devices.append(hidden_TE.device)

    def attend(
        self, layer: int, q_THD: Tensor, k_TGD: Tensor, v_TGD: Tensor, scale: float, *, window: int | None
    ) -> Tensor:
        self.devices += [q_THD.device, k_TGD.device, v_TGD.device]
        return torch.zeros_like(q_THD)


@pytest.fixture
def spread(tiny_model: Path) -> Iterator[LanguageModel]:
    """The tiny model, with nothing in it any more, over two imagined devices as accelerate spreads one."""
    loaded = LanguageModel(tiny_model, dtype=torch.float32, device=torch.device("cpu"))
    model: Any = loaded._model
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        for name, module in model.named_modules():
            device = next((at for part, at in PLACES.items() if f"{name}.".startswith(f"{part}.")), HOME)
            for key, weight in module.named_parameters(recurse=False):
                module._parameters[key] = torch.nn.Parameter(mode.from_tensor(weight.data).to(device), False)
            for key, buffer in module.named_buffers(recurse=False):
                module._buffers[key] = mode.from_tensor(buffer).to(device)
        dispatch_model(model, PLACES, main_device=HOME, force_hooks=True)
        loaded.device = HOME
        yield loaded


def call(spread: LanguageModel, reading: Pass, rows: Tensor | None = None) -> Tensor:
    ids = torch.zeros(1, 4, dtype=torch.long, device=HOME)
    run = Run(reading, wants_logits=True, home=HOME, rows=rows)
    found = spread._model(input_ids=ids, position_ids=ids, use_cache=False, logits_to_keep=1, foveate=run)
    logits: Tensor = found.logits
    return logits


def test_a_pass_sees_all_layers_on_one_device_and_logits_come_back_there(spread: LanguageModel) -> None:
    seen = Seen()
    assert call(spread, seen).device == HOME
    assert seen.devices == [HOME] * 4 * 3


def test_rows_are_chosen_wherever_a_layer_is(spread: LanguageModel) -> None:
    assert call(spread, Seen(), torch.zeros(4, dtype=torch.long, device=HOME)).shape[:2] == (1, 1)


def test_keys_are_turned_at_home_although_the_angles_are_computed_elsewhere(spread: LanguageModel) -> None:
    spread._rotation = spread._rotation.__class__(spread._rotation.table, spread._rotation.kinds, HOME)
    keys_SGD = torch.zeros(4, 2, 8, device=HOME)
    places_S = torch.zeros(4, dtype=torch.long)
    assert spread.unrotate(keys_SGD, places_S, 1).device == HOME
    assert spread.rotate(keys_SGD, places_S, 1).device == HOME


def test_the_guard_is_real(spread: LanguageModel) -> None:
    """An operation over both devices is what these tests would see."""
    with pytest.raises(RuntimeError, match="same device"):
        torch.zeros(2, device=HOME) + torch.zeros(2, device=OTHER)


def test_several_gpus_on_a_machine_without_are_refused(tiny_model: Path) -> None:
    from configs.schema import Model
    from workers.loading import load_model
    from workers.source import locate

    source = locate(str(tiny_model))
    with pytest.raises(ModelError, match="several GPUs"):
        load_model(Model(source=str(tiny_model)), source, None, is_spread=True)  # type: ignore[arg-type]
