"""The only file that touches transformers: a causal language model as packed rows of tokens.

A pass is one call of the model over T rows that may belong to many sequences. Which pairs each row reads
is decided by an ``AttentionPass`` that the caller hands in; it reaches every layer through transformers'
own front door (``AttentionInterface`` and extra keyword arguments), so that nothing of the model is
replaced. Invariants: keys arrive rotated at the positions the caller chose; no cache of transformers is
used; the model is never changed after loading, so that threads may share it.

Shapes: T rows, H query heads, G key-value heads, D head dimension, S keys, V vocabulary.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from jinja2 import TemplateError
from safetensors import SafetensorError
from torch import Tensor
from transformers import (
    AttentionInterface,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from workers.errors import ModelError

STATIC_ROPE = ("default", "linear", "llama3", "yarn")
"""RoPE types whose angles do not depend on how long the input is: the ones whose keys can be moved."""


_FIXED_DAY = "{% macro strftime_now(format) %}26 Jul 2024{% endmacro %}"
"""Goes before every chat template: there it is always the day that templates with a date themselves fall back on."""

BENDING = ("softcap", "s_aux", "sliding_window")
"""Arguments by which a model asks for more than plain causal attention. Ignoring them would be silently wrong."""


class AttentionPass(Protocol):
    """What the rows of one pass read. ``attend`` returns [T, H, D], or raises ``Enough`` to end the pass."""

    def attend(self, layer: int, q_THD: Tensor, k_TGD: Tensor, v_TGD: Tensor, scale: float) -> Tensor:
        """Attention output of one layer for all rows."""
        ...


class Enough(Exception):
    """Ends a pass inside the attention of a layer: nothing deeper is needed."""


def _attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    foveate: AttentionPass,
    **extra: Any,
) -> tuple[Tensor, None]:
    """transformers' attention signature ([1, heads, T, D] in, [1, T, H, D] out) onto ``AttentionPass``."""
    assert attention_mask is None and query.shape[0] == 1
    if bent := [name for name in BENDING if extra.get(name) is not None]:
        raise ModelError(f"its attention is bent by {', '.join(bent)}; allowed: plain softmax over all earlier tokens")
    q_THD, k_TGD, v_TGD = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    layer: int = module.layer_idx  # type: ignore[assignment]
    return foveate.attend(layer, q_THD, k_TGD, v_TGD, scaling)[None], None


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a model; ``window`` is the number of positions it was made for."""

    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    window: int

    def bytes_per_token(self, dtype: torch.dtype) -> int:
        """Bytes of the key-value pairs of one token in all layers."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * dtype.itemsize


def model_shape(directory: Path) -> ModelShape:
    """Read the sizes from a model's config, without its weights. Raises ``ModelError``."""
    try:
        config = AutoConfig.from_pretrained(directory)
    except (OSError, ValueError) as error:
        raise ModelError(f"model.source: {directory}: not a model that transformers knows: {error}") from error
    return _shape_of(config, directory)


def _shape_of(config: Any, directory: Path) -> ModelShape:
    text = config.get_text_config()
    try:
        return ModelShape(
            num_layers=text.num_hidden_layers,
            num_heads=text.num_attention_heads,
            num_kv_heads=getattr(text, "num_key_value_heads", None) or text.num_attention_heads,
            head_dim=getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads,
            window=text.max_position_embeddings,
        )
    except AttributeError as error:
        raise ModelError(f"model.source: {directory}: unsupported attention: {error}") from error


class LanguageModel:
    """A loaded model on one device; see the module for what a pass is."""

    def __init__(self, directory: Path, *, dtype: torch.dtype, device: torch.device) -> None:
        """Load and check the model. Raises ``ModelError`` for one that Foveate cannot read with."""
        AttentionInterface.register("foveate", _attention)
        transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        try:
            self._model: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype)
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise ModelError(f"model.source: {directory}: cannot be loaded: {error}") from error
        self._model.eval()  # type: ignore[no-untyped-call]
        torch.nn.Module.to(self._model, device)
        self.shape = _shape_of(self._model.config, directory)
        self.dtype = dtype
        self.device = device
        self._rotary = _supported_rotary(self._model, directory)
        self._model.set_attn_implementation("foveate")
        self._check_rotation(directory)
        self.rope = json.dumps(self._model.config.get_text_config().rope_parameters, sort_keys=True, default=str)
        self.stop_ids = _stop_ids(self._model)

    @torch.inference_mode()
    def run(
        self,
        token_ids: Sequence[int],
        positions: Sequence[int],
        attention: AttentionPass,
        logits_of: Sequence[int] = (),
    ) -> Tensor | None:
        """One pass over ``token_ids`` at ``positions`` (both length T). Returns float32 logits [len(logits_of), V]
        of the named rows, or None when the pass ended early (``Enough``)."""
        ids = torch.tensor([token_ids], dtype=torch.long, device=self.device)
        places = torch.tensor([positions], dtype=torch.long, device=self.device)
        wanted = torch.tensor(logits_of, dtype=torch.long, device=self.device)
        try:
            output = self._model(
                input_ids=ids, position_ids=places, use_cache=False, logits_to_keep=wanted, foveate=attention
            )
        except Enough:
            return None
        logits_NV: Tensor = output.logits[0].float()
        return logits_NV

    def rotate(self, keys_SGD: Tensor, positions_S: Tensor) -> Tensor:
        """Un-rotated keys [S, G, D] moved to ``positions_S``, in the model's dtype (Su et al. 2021, RoPE)."""
        cos, sin = self._angles(positions_S)
        keys = keys_SGD.to(self.device, torch.float32)
        return (keys * cos + _rotate_half(keys) * sin).to(self.dtype)

    def unrotate(self, keys_SGD: Tensor, positions_S: Tensor) -> Tensor:
        """The inverse of ``rotate``, computed in float32 and returned in the dtype of ``keys_SGD``."""
        cos, sin = self._angles(positions_S)
        keys = keys_SGD.float()
        # cos^2 + sin^2 is 1, or the square of the attention scaling that some RoPE types (yarn) fold in.
        return ((keys * cos - _rotate_half(keys) * sin) / (cos.square() + sin.square())).to(keys_SGD.dtype)

    @torch.inference_mode()
    def _angles(self, positions_S: Tensor) -> tuple[Tensor, Tensor]:
        like = torch.empty(0, dtype=torch.float32, device=self.device)
        cos, sin = self._rotary(like, positions_S.to(self.device, torch.long)[None])
        return cos[0, :, None, :], sin[0, :, None, :]

    def _check_rotation(self, directory: Path) -> None:
        """Behaviour over belief: one token at several positions, attending to nothing, has the same hidden state
        everywhere, so in every layer its keys must be the same before RoPE."""
        seen: list[Tensor] = []

        class Keys:
            def attend(self, layer: int, q_THD: Tensor, k_TGD: Tensor, v_TGD: Tensor, scale: float) -> Tensor:
                seen.append(k_TGD)
                return torch.zeros_like(q_THD)

        places = torch.tensor([0, 1, self.shape.window // 2])
        try:
            self.run([1, 1, 1], places.tolist(), Keys())
        except ModelError as error:
            raise ModelError(f"model.source: {directory}: {error}") from error
        dims = {self.shape.head_dim, self._angles(places)[0].shape[-1], *(tensor.shape[-1] for tensor in seen)}
        tolerance = 1e-3 if self.dtype == torch.float32 else 5e-2
        still = [self.unrotate(keys.float(), places) for keys in seen] if len(dims) == 1 else []
        if len(still) != self.shape.num_layers or not all(
            torch.allclose(keys, keys[:1].expand_as(keys), atol=tolerance * keys.abs().max().item()) for keys in still
        ):
            raise ModelError(
                f"model.source: {directory}: its keys are not rotated by position (RoPE) the way that kept "
                "pairs need; allowed: decoder models with full rotary embeddings and plain, multi-query or "
                "grouped-query attention"
            )


def _rotate_half(x: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)


def _supported_rotary(model: Any, directory: Path) -> Any:
    """The model's rotary module, after refusing what the method cannot carry."""
    config = model.config.get_text_config()
    rotary = getattr(model.base_model, "rotary_emb", None)
    name = f"model.source: {directory} ({config.model_type})"
    if rotary is None:
        raise ModelError(f"{name}: the model has no rotary position embeddings (RoPE); kept pairs cannot be moved")
    kind = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    if kind not in STATIC_ROPE:
        raise ModelError(f"{name}: RoPE type {kind!r} is not supported; allowed: {', '.join(STATIC_ROPE)}")
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if kinds != {"full_attention"} or getattr(config, "sliding_window", None):
        raise ModelError(f"{name}: attention layers of kind {sorted(kinds)} are not supported; allowed: full attention")
    if not getattr(model, "_supports_attention_backend", False):
        raise ModelError(f"{name}: its attention cannot be replaced through transformers' AttentionInterface")
    return rotary


def _stop_ids(model: Any) -> frozenset[int]:
    """Tokens that end an answer, as the model's generation config lists them."""
    listed = model.generation_config.eos_token_id
    return frozenset([listed] if isinstance(listed, int) else listed or ())


class Tokenizer:
    """A fast tokenizer that never reads control tokens out of a document's text."""

    def __init__(self, directory: Path) -> None:
        """Load the tokenizer of a model directory. Raises ``ModelError``."""
        try:
            self._tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(directory)
        except (OSError, ValueError, KeyError) as error:
            raise ModelError(f"model.source: {directory}: no tokenizer there: {error}") from error
        if not self._tokenizer.is_fast:
            raise ModelError(f"model.source: {directory}: its tokenizer gives no character offsets (not a fast one)")

    def encode(self, text: str) -> list[int]:
        """Token ids of plain text: nothing is added, and text that looks like a control token (one that the
        tokenizer lists as special) stays text."""
        ids: list[int] = self._tokenizer(
            text, add_special_tokens=False, split_special_tokens=True, verbose=False
        ).input_ids
        return ids

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Like ``encode``, with each token's half-open character range in ``text``."""
        coded = self._tokenizer(
            text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True, verbose=False
        )
        return coded["input_ids"], coded["offset_mapping"]

    def encode_frame(self, text: str, *, opening: bool = False) -> list[int]:
        """Token ids of our own words around a document: control tokens count, ``opening`` adds a start token."""
        ids: list[int] = self._tokenizer(text, add_special_tokens=opening, verbose=False).input_ids
        return ids

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of generated tokens, without control tokens."""
        return str(self._tokenizer.decode(list(token_ids), skip_special_tokens=True))

    def render_chat(self, system: str | None, user: str) -> str | None:
        """The conversation as the model's chat template writes it, up to the answer; None without a template."""
        if not self._tokenizer.chat_template:
            return None
        messages = [{"role": "system", "content": system}] if system is not None else []
        messages.append({"role": "user", "content": user})
        # Some templates write today's date into the system prompt: answers would depend on the day of the run.
        template = _FIXED_DAY + self._tokenizer.get_chat_template()
        try:
            rendered = self._tokenizer.apply_chat_template(
                messages, chat_template=template, tokenize=False, add_generation_prompt=True
            )
        except TemplateError as error:
            raise ModelError(f"prompt: the model's chat template refuses this conversation: {error}") from error
        return str(rendered)

    @property
    def stop_ids(self) -> frozenset[int]:
        """The tokenizer's own end token, where it has one."""
        end = self._tokenizer.eos_token_id
        return frozenset() if end is None else frozenset([int(end)])


def convert_gguf(gguf: Path, directory: Path) -> None:
    """Write a GGUF file as a safetensors model directory, de-quantized to float32. Raises ``ModelError``."""
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent,
            gguf_file=gguf.name,
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.float32,
        )
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    except (OSError, ValueError, KeyError, struct.error) as error:
        raise ModelError(f"model.source: {gguf}: cannot be read as GGUF: {error}") from error
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
