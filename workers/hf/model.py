"""A causal language model as packed rows of tokens.

A pass is one call of the model over T rows that may belong to many sequences. Which pairs each row reads is decided
by a ``Pass`` that the caller hands in (see ``seam``). Invariants: keys arrive rotated at the positions the caller
chose; no cache of transformers is used; the model is never changed after loading, so that threads may share it; what
a model was loaded as is what it does: rotation, windows and hidden states are tried out at load.

Shapes: T rows, H query heads, G key-value heads, D head dimension, S keys, E width, V vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import AttentionInterface, AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from workers.errors import ModelError
from workers.hf.rotation import Rotation
from workers.hf.seam import Enough, Pass, Run, attention, hook_layers
from workers.hf.shape import shape_of


class LanguageModel:
    """A loaded model; see the module for what a pass is."""

    def __init__(self, directory: Path, *, dtype: torch.dtype, device: torch.device, is_spread: bool = False) -> None:
        """Load and check the model. ``is_spread``: its layers go to all visible GPUs, as they fit (accelerate's
        ``device_map="auto"``), and what a pass sees is on ``device``, the first of them. Raises ``ModelError`` for one
        that Foveate cannot read with."""
        AttentionInterface.register("foveate", attention)
        transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        try:
            self._model: Any = AutoModelForCausalLM.from_pretrained(
                directory,
                dtype=dtype,
                device_map="auto" if is_spread else None,
                use_safetensors=True,
                trust_remote_code=False,
            )
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise ModelError(f"model.source: {directory}: cannot be loaded: {error}") from error
        self._model.eval()  # type: ignore[no-untyped-call]
        if not is_spread:
            torch.nn.Module.to(self._model, device)
        text = self._model.config.get_text_config()
        name = f"model.source: {directory} ({text.model_type})"
        self.shape = shape_of(self._model.config, directory)
        self.width: int = text.hidden_size
        self.dtype = dtype
        self.device = device
        self._rotation = Rotation.of(self._model, device, name)
        self._prepare(name)
        self.rope = json.dumps(text.rope_parameters, sort_keys=True, default=str)
        self.stop_ids = _stop_ids(self._model)

    @torch.inference_mode()
    def run(
        self, token_ids: Sequence[int], positions: Sequence[int], reading: Pass, logits_of: Sequence[int] = ()
    ) -> Tensor | None:
        """One pass over ``token_ids`` at ``positions`` (both length T). Returns float32 logits [len(logits_of), V]
        of the named rows, or None when the pass ended early (``Enough``)."""
        ids = torch.tensor([token_ids], dtype=torch.long, device=self.device)
        places = torch.tensor([positions], dtype=torch.long, device=self.device)
        wanted = torch.tensor(logits_of, dtype=torch.long, device=self.device)
        run = Run(reading, len(wanted) > 0, self.device)
        try:
            output = self._model(
                input_ids=ids, position_ids=places, use_cache=False, logits_to_keep=wanted, foveate=run
            )
        except Enough:
            return None
        logits_NV: Tensor = output.logits[0].float()
        return logits_NV

    def rotate(self, keys_SGD: Tensor, positions_S: Tensor, layer: int) -> Tensor:
        """Un-rotated keys [S, G, D] of one layer moved to ``positions_S``, in the model's dtype."""
        return self._rotation.rotate(keys_SGD, positions_S, layer).to(self.dtype)

    def unrotate(self, keys_SGD: Tensor, positions_S: Tensor, layer: int) -> Tensor:
        """The inverse of ``rotate``, computed in float32 and returned in the dtype of ``keys_SGD``."""
        return self._rotation.unrotate(keys_SGD, positions_S, layer).to(keys_SGD.dtype)

    def _prepare(self, name: str) -> None:
        """Put our attention in, then behaviour over belief: let a few tokens through and look at every layer."""
        if not getattr(self._model, "_supports_attention_backend", False):
            raise ModelError(f"{name}: its attention cannot be replaced through transformers' AttentionInterface")
        if getattr(self._model.config.get_text_config(), "use_bidirectional_attention", False):
            raise ModelError(
                f"{name}: its rows read later ones (use_bidirectional_attention); allowed: causal attention"
            )
        self._model.set_attn_implementation("foveate")
        trial = _Trial()
        places = torch.tensor([0, 1, self.shape.window // 2])
        try:
            hook_layers(self._model)
            self.run([1] * len(places), places.tolist(), trial)
        except ModelError as error:
            raise ModelError(f"{name}: {error}") from error
        if trial.windows != list(self.shape.windows):
            raise ModelError(
                f"{name}: its layers read windows of {trial.windows}, not {[*self.shape.windows]} as it says"
            )
        if trial.widths != [self.width] * self.shape.num_layers:
            raise ModelError(
                f"{name}: what its attention layers are given cannot be seen; allowed: hidden states first"
            )
        self._check_rotation(trial.keys, places, name)

    def _check_rotation(self, keys: list[Tensor], places: Tensor, name: str) -> None:
        """One token at several positions, attending to nothing, has the same hidden state everywhere, so in every
        layer its keys must be the same before RoPE."""
        tolerance = 1e-3 if self.dtype == torch.float32 else 5e-2
        for layer, keys_TGD in enumerate(keys):
            depths = {self.shape.head_dim, self._rotation.angles(places, layer)[0].shape[-1], keys_TGD.shape[-1]}
            still = self.unrotate(keys_TGD.float(), places, layer) if len(depths) == 1 else None
            if still is None or not torch.allclose(
                still, still[:1].expand_as(still), atol=tolerance * still.abs().max().item()
            ):
                raise ModelError(
                    f"{name}: the keys of its layer {layer} are not rotated by position (RoPE) the way that kept "
                    "pairs need; allowed: decoder models with full rotary embeddings and plain, multi-query or "
                    "grouped-query attention"
                )


class _Trial(Pass):
    """Reads nothing, and notes what every layer asks for."""

    wants_hidden = True

    def __init__(self) -> None:
        self.keys: list[Tensor] = []
        self.windows: list[int | None] = []
        self.widths: list[int] = []

    def hidden(self, layer: int, hidden_TE: Tensor) -> None:
        self.widths.append(hidden_TE.shape[-1])

    def attend(
        self, layer: int, q_THD: Tensor, k_TGD: Tensor, v_TGD: Tensor, scale: float, *, window: int | None
    ) -> Tensor:
        self.keys.append(k_TGD)
        self.windows.append(window)
        return torch.zeros_like(q_THD)


def _stop_ids(model: Any) -> frozenset[int]:
    """Tokens that end an answer, as the model's generation config lists them."""
    listed = model.generation_config.eos_token_id
    return frozenset([listed] if isinstance(listed, int) else listed or ())
