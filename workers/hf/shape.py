"""The sizes of a model, from its config alone, and what each of its layers may read.

Invariants: a layer reads all earlier tokens or a window of them; any other kind of attention is refused here, by
name, before weights are loaded.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from workers.errors import ModelError

FULL, SLIDING = "full_attention", "sliding_attention"


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a model; ``window`` is the number of positions it was made for. ``windows``: per layer, how many keys a
    row reads at most, the last ones up to itself; None: all of them."""

    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    window: int
    windows: tuple[int | None, ...]

    @property
    def full_layers(self) -> tuple[int, ...]:
        """The layers that read all earlier tokens: the only ones that can look over a whole chunk."""
        return tuple(layer for layer, window in enumerate(self.windows) if window is None)

    def bytes_per_token(self, dtype: torch.dtype) -> int:
        """Bytes of the key-value pairs of one token in all layers."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * dtype.itemsize


def model_shape(directory: Path) -> ModelShape:
    """Read the sizes from a model's config, without its weights. Raises ``ModelError``."""
    try:
        config = AutoConfig.from_pretrained(directory, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ModelError(f"model.source: {directory}: not a model that transformers knows: {error}") from error
    return shape_of(config, directory)


def shape_of(config: Any, directory: Path) -> ModelShape:
    """The sizes that a config of transformers states. Raises ``ModelError``."""
    text = config.get_text_config()
    name = f"model.source: {directory} ({text.model_type})"
    try:
        kinds = layer_kinds(text)
        if unknown := sorted({*kinds} - {FULL, SLIDING}):
            raise ModelError(
                f"{name}: attention layers of kind {unknown} are not supported; allowed: {FULL}, {SLIDING}"
            )
        return ModelShape(
            num_layers=text.num_hidden_layers,
            num_heads=text.num_attention_heads,
            num_kv_heads=getattr(text, "num_key_value_heads", None) or text.num_attention_heads,
            head_dim=getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads,
            window=text.max_position_embeddings,
            windows=tuple(text.sliding_window if kind == SLIDING else None for kind in kinds),
        )
    except AttributeError as error:
        raise ModelError(f"{name}: unsupported attention: {error}") from error


def layer_kinds(text: Any) -> tuple[str, ...]:
    """The kind of each layer. Models of one kind only (Mistral) say it by whether they have a window."""
    kinds = getattr(text, "layer_types", None)
    if kinds is None:
        kinds = [SLIDING if getattr(text, "sliding_window", None) else FULL] * text.num_hidden_layers
    return tuple(kinds)
