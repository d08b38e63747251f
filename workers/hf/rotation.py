"""Rotary positions: keys moved to a position and back, by the angles of their own layer.

RoPE is Su et al. 2021, "RoFormer: Enhanced Transformer with Rotary Position Embedding". Models with windowed
layers may rotate those by other angles than the rest (Gemma 3), so whoever moves a key says in which layer it
lives. Invariants: angles depend on position and layer only, never on how long the input is; computed in float32.

Shapes: S keys, G key-value heads, D head dimension.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from workers.errors import ModelError
from workers.hf.shape import layer_kinds

STATIC_ROPE = ("default", "linear", "llama3", "yarn")
"""RoPE types whose angles do not depend on how long the input is: the ones whose keys can be moved."""


@dataclass(frozen=True)
class Rotation:
    """``table``: the model's rotary module. ``kinds``: per layer, the kind that the module is asked for; empty where
    one table serves all layers."""

    table: Any
    kinds: tuple[str, ...]
    device: torch.device

    @classmethod
    def of(cls, model: Any, device: torch.device, name: str) -> Rotation:
        """The rotation of a loaded model. Raises ``ModelError``, which begins with ``name``, where keys cannot move."""
        table = getattr(model.base_model, "rotary_emb", None)
        if table is None:
            raise ModelError(f"{name}: the model has no rotary position embeddings (RoPE); kept pairs cannot be moved")
        text = model.config.get_text_config()
        for rope_type in rope_types(text):
            if rope_type not in STATIC_ROPE:
                raise ModelError(f"{name}: RoPE type {rope_type!r} is not supported; allowed: {', '.join(STATIC_ROPE)}")
        by_kind = "layer_type" in inspect.signature(table.forward).parameters
        return cls(table, layer_kinds(text) if by_kind else (), device)

    @torch.inference_mode()
    def angles(self, positions_S: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines [S, 1, D], float32."""
        like = torch.empty(0, dtype=torch.float32, device=self.device)
        kind = (self.kinds[layer],) if self.kinds else ()
        cos, sin = self.table(like, positions_S.to(self.device, torch.long)[None], *kind)
        return cos[0, :, None, :].to(self.device), sin[0, :, None, :].to(self.device)

    def rotate(self, keys_SGD: Tensor, positions_S: Tensor, layer: int) -> Tensor:
        """Un-rotated keys moved to their positions, float32."""
        cos, sin = self.angles(positions_S, layer)
        keys = keys_SGD.to(self.device, torch.float32)
        return keys * cos + _quarter_turn(keys) * sin

    def unrotate(self, keys_SGD: Tensor, positions_S: Tensor, layer: int) -> Tensor:
        """The inverse of ``rotate``, float32."""
        cos, sin = self.angles(positions_S, layer)
        keys = keys_SGD.float()
        # cos^2 + sin^2 is 1, or the square of the attention scaling that some RoPE types (yarn) fold in.
        return (keys * cos - _quarter_turn(keys) * sin) / (cos.square() + sin.square())


def rope_types(text: Any) -> set[str | None]:
    """The RoPE types of a config, which states one, or one for each kind of layer; None: a kind without RoPE."""
    stated: Mapping[str, Any] = getattr(text, "rope_parameters", None) or {}
    kinds = {*layer_kinds(text)}
    tables = [stated[kind] for kind in kinds] if kinds <= stated.keys() else [stated]
    return {None if table is None else table.get("rope_type", "default") for table in tables}


def _quarter_turn(x: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)
