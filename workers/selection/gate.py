"""A model's gate: small trained heads on hidden states that say how much attention each token will ever get.

One head per layer looks at what the layer's attention gets and predicts, per kv head, the log of the highest share
of attention that a token would get while the text is repeated: what the ``reconstruct`` scorer measures by reading
twice, at the cost of one small product. Invariants: a gate belongs to one fingerprint of weights and is refused for
any other; its digest is part of every store key; a prediction for a token depends on that token's hidden state alone,
so that a token is judged once, as it is read.

Shapes: C tokens, E width of the model, G kv heads, W inner width (0: linear), L layers.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from math import log
from pathlib import Path
from typing import Any

import numpy as np
import torch
from blake3 import blake3
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import silu

from workers.attention.plan import Picks
from workers.errors import ModelError
from workers.source import cache_directory

_ENTRY = "foveate_gate"


@dataclass(frozen=True)
class GateHead:
    """One layer's head, float32: a linear map of the standardised input, and where that helped (W > 0) one inner
    layer beside it."""

    mean_E: Tensor
    std_E: Tensor
    linear_EG: Tensor
    bias_G: Tensor
    inner_EW: Tensor
    inner_bias_W: Tensor
    outer_WG: Tensor

    def predict(self, hidden_CE: Tensor) -> Tensor:
        """Predicted log relevance, float32 [C, G], on the device of ``hidden_CE`` (any float dtype)."""
        here = self.to(hidden_CE.device)
        x_CE = (hidden_CE.float() - here.mean_E) / here.std_E
        log_CG = x_CE @ here.linear_EG + here.bias_G
        if len(here.outer_WG):
            log_CG = log_CG + silu(x_CE @ here.inner_EW + here.inner_bias_W) @ here.outer_WG
        return log_CG

    def to(self, device: torch.device) -> GateHead:
        """The same head on ``device``."""
        return GateHead(**{name: tensor.to(device) for name, tensor in self.tensors.items()})

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The parameters by name."""
        return {entry.name: getattr(self, entry.name) for entry in fields(self)}


@dataclass(frozen=True, eq=False)
class Gate:
    """Dynamic Context Pruning for a frozen model (Anagnostidis et al. 2023, "Dynamic Context Pruning for Efficient
    and Interpretable Autoregressive Transformers"): the paper trains the model to drop tokens; here the model stays
    as it is and only ``heads``, one per layer, learn what it will look back at. ``measured``: what training saw."""

    weights: str
    heads: tuple[GateHead, ...]
    measured: dict[str, Any] = field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, int]:
        """Layers and kv heads."""
        return len(self.heads), len(self.heads[0].bias_G)

    @property
    def digest(self) -> str:
        """Hex digest of what decides predictions."""
        hasher = blake3(self.weights.encode())
        for name, tensor in self._tensors().items():
            hasher.update(f"{name} {tuple(tensor.shape)}\n".encode())
            hasher.update(tensor.contiguous().numpy().tobytes())
        return hasher.hexdigest()

    def predict(self, layer: int, hidden_CE: Tensor) -> Tensor:
        """Log of the highest share of attention that each token is expected to get, float32 [C, G]. ``hidden_CE``:
        what the attention of ``layer`` gets, after its norm."""
        return self.heads[layer].predict(hidden_CE)

    def save(self, path: Path) -> None:
        """Write as safetensors, with weights, digest and measurements as JSON in its metadata; complete or not at
        all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        staged = path.with_suffix(".staged")
        record = {"weights": self.weights, "digest": self.digest, "measured": self.measured}
        save_file(
            {name: tensor.contiguous() for name, tensor in self._tensors().items()},
            staged,
            {_ENTRY: json.dumps(record, sort_keys=True)},
        )
        staged.replace(path)

    @classmethod
    def load(cls, path: Path, key: str = "file") -> Gate:
        """Read a gate's file. Raises ``ModelError`` naming ``key``, the file and what is wrong in it."""
        try:
            with safe_open(path, framework="pt") as file:
                record = json.loads((file.metadata() or {})[_ENTRY])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            layers = 1 + max(int(name.partition(".")[0]) for name in tensors)
            names = [entry.name for entry in fields(GateHead)]
            heads = tuple(GateHead(**{name: tensors[f"{layer}.{name}"] for name in names}) for layer in range(layers))
            gate = cls(str(record["weights"]), heads, dict(record["measured"]))
        except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
            raise ModelError(f"{key}: {path}: not a gate: {error}") from error
        if gate.digest != record.get("digest"):
            raise ModelError(f"{key}: {path}: not the gate that was written; run `foveate calibrate --gate` again")
        return gate

    def _tensors(self) -> dict[str, Tensor]:
        return {f"{layer}.{name}": t.cpu() for layer, head in enumerate(self.heads) for name, t in head.tensors.items()}


def gate_path(weights: str) -> Path:
    """Where training on this machine keeps the gate of these weights."""
    return cache_directory() / "gates" / f"{weights[:16]}.safetensors"


def find_gate(setting: str, weights: str, key: str = "keep.scorer.file") -> Gate:
    """The gate that ``key`` names: a file, or for ``auto`` the cached one. Raises ``ModelError`` where there is none
    yet (text to train on is the user's choice, so none is trained unasked), and for a gate of other weights."""
    path = gate_path(weights) if setting == "auto" else Path(setting)
    if setting == "auto" and not path.is_file():
        raise ModelError(
            f"{key}: auto: no gate is trained for this model (weights {weights[:16]}); run "
            "`foveate calibrate --gate --text FILE` for it first"
        )
    gate = Gate.load(path, key)
    if gate.weights != weights:
        raise ModelError(
            f"{key}: {path} belongs to weights {gate.weights[:16]}, but model.source has {weights[:16]}; "
            "run `foveate calibrate --gate` for this model"
        )
    return gate


def visible(predicted_log_CG: Tensor, row_bounds: Sequence[int], threshold: float, delay_tokens: int) -> Picks:
    """What is still read while tokens drop: which tokens before its own each block of rows (``row_bounds[i]`` to
    ``row_bounds[i + 1]``, of the chunk's C) reads for each kv head.

    A token that the gate puts under ``threshold`` (a share of attention) is gone for every block that begins more
    than ``delay_tokens`` behind it. Tokens before the chunk are not in question: they are always read.
    """
    assert row_bounds[0] == 0 and row_bounds[-1] == len(predicted_log_CG)
    stays_GC = (predicted_log_CG >= log(threshold)).T.cpu().numpy()
    rows = tuple(tuple(_readable(stays_C[:start], delay_tokens) for start in row_bounds[:-1]) for stays_C in stays_GC)
    return Picks(tuple(row_bounds), rows)


def _readable(stays_S: NDArray[np.bool_], delay_tokens: int) -> NDArray[np.int64]:
    """Which of the S tokens before a block it reads: those that stay, and the last ``delay_tokens``."""
    recent = max(0, len(stays_S) - delay_tokens)
    return np.concatenate([np.flatnonzero(stays_S[:recent]), np.arange(recent, len(stays_S))])
