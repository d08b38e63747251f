"""Which models are read with, which are refused and how; what the tokenizer promises."""

from __future__ import annotations

import shutil
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    SmolLM3Config,
    SmolLM3ForCausalLM,
)

from workers.errors import ModelError
from workers.hf import LanguageModel, Tokenizer, model_shape, shape

SMALL = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}


def load(directory: Path, dtype: torch.dtype = torch.float32) -> LanguageModel:
    return LanguageModel(directory, dtype=dtype, device=torch.device("cpu"))


def test_a_model_without_rotary_positions_is_refused(tmp_path: Path) -> None:
    GPT2LMHeadModel(GPT2Config(vocab_size=300, n_embd=32, n_layer=2, n_head=4, n_positions=64)).save_pretrained(
        tmp_path
    )
    with pytest.raises(ModelError, match=r"model\.source: .*gpt2.*no rotary position embeddings \(RoPE\)"):
        load(tmp_path)


def test_layers_that_read_in_chunks_are_refused(tmp_path: Path) -> None:
    config = Qwen3Config(**SMALL, head_dim=8, layer_types=["full_attention", "chunked_attention"])
    Qwen3ForCausalLM(config).save_pretrained(tmp_path)
    for attempt in (model_shape, load):
        with pytest.raises(
            ModelError, match=r"\(qwen3\): .*kind \['chunked_attention'\].*allowed: full_attention, sliding_attention"
        ):
            attempt(tmp_path)


def test_a_window_that_is_the_same_in_all_layers_is_read(tmp_path: Path) -> None:
    MistralForCausalLM(MistralConfig(**SMALL, sliding_window=64)).save_pretrained(tmp_path)
    assert load(tmp_path).shape.windows == (64, 64)


def test_a_model_that_reads_ahead_is_refused(tmp_path: Path) -> None:
    config = Gemma3TextConfig(**SMALL, head_dim=8, use_bidirectional_attention=True)
    Gemma3ForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"\(gemma3_text\): its rows read later ones"):
        load(tmp_path)


def test_windows_that_the_layers_do_not_ask_for_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A config that says one thing, and a model that does another."""
    MistralForCausalLM(MistralConfig(**SMALL, sliding_window=64)).save_pretrained(tmp_path)
    monkeypatch.setattr(shape, "layer_kinds", lambda text: ("full_attention", "sliding_attention"))
    with pytest.raises(ModelError, match=r"read windows of \[64, 64\], not \[None, 64\]"):
        load(tmp_path)


def test_rotation_of_a_part_of_each_head_is_refused(tmp_path: Path) -> None:
    config = PhiConfig(**SMALL, partial_rotary_factor=0.5)
    PhiForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="full rotary embeddings"):
        load(tmp_path)


def test_a_model_with_rope_in_some_layers_only_is_refused(tmp_path: Path) -> None:
    config = SmolLM3Config(**{**SMALL, "num_hidden_layers": 4}, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    assert 0 in config.no_rope_layers
    SmolLM3ForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="not rotated by position"):
        load(tmp_path)


def test_attention_that_is_more_than_softmax_is_refused_and_not_ignored(tmp_path: Path) -> None:
    full = {"layer_types": ["full_attention"] * 2, "sliding_window": None, "head_dim": 8}
    Gemma2ForCausalLM(Gemma2Config(**SMALL, **full, attn_logit_softcapping=30.0)).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"model\.source: .*bent by softcap"):
        load(tmp_path)


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_rope_that_depends_on_the_length_is_refused(tmp_path: Path, kind: str) -> None:
    rope = {"rope_type": kind, "rope_theta": 10_000.0, "factor": 2.0}
    if kind == "longrope":
        rope |= {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4, "original_max_position_embeddings": 64}
    LlamaForCausalLM(LlamaConfig(**SMALL, rope_parameters=rope)).save_pretrained(tmp_path)
    with pytest.raises(
        ModelError, match=f"RoPE type '{kind}' is not supported; allowed: default, linear, llama3, yarn"
    ):
        load(tmp_path)


def test_rope_is_looked_at_in_layers_of_every_kind(tmp_path: Path) -> None:
    fixed = {"rope_type": "default", "rope_theta": 10_000.0}
    rope = {"sliding_attention": fixed, "full_attention": fixed | {"rope_type": "dynamic", "factor": 2.0}}
    config = Gemma3TextConfig(**(SMALL | {"num_hidden_layers": 6}), head_dim=8, rope_parameters=rope)
    Gemma3ForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"\(gemma3_text\): RoPE type 'dynamic' is not supported"):
        load(tmp_path)


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "default", "rope_theta": 500_000.0},
        {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 2.0},
        {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0, "original_max_position_embeddings": 32},
        {
            "rope_type": "llama3",
            "rope_theta": 500_000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    ],
    ids=lambda rope: str(rope["rope_type"]),
)
def test_keys_of_every_static_rope_can_be_moved(tmp_path: Path, rope: dict[str, object]) -> None:
    LlamaForCausalLM(LlamaConfig(**SMALL, rope_parameters=rope)).save_pretrained(tmp_path)
    model = load(tmp_path)
    keys, places = torch.randn(20, 2, 8), torch.arange(20) * 5
    moved = model.rotate(keys, places, layer=0)
    scale = moved.norm() / keys.norm()  # yarn scales attention inside the rotation
    torch.testing.assert_close(model.unrotate(moved, places, layer=0), keys, atol=1e-5, rtol=1e-5)
    assert scale > 0.99


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_tiny_model_loads_in_either_precision(tiny_model: Path, dtype: torch.dtype) -> None:
    model = load(tiny_model, dtype)
    assert model.shape == model_shape(tiny_model)
    assert model.shape.bytes_per_token(dtype) == 2 * 3 * 2 * 8 * dtype.itemsize


def test_an_empty_directory_is_no_model(tmp_path: Path) -> None:
    for attempt in (lambda: load(tmp_path), lambda: model_shape(tmp_path), lambda: Tokenizer(tmp_path)):
        with pytest.raises(ModelError, match=r"model\.source: "):
            attempt()


@pytest.mark.parametrize("text", ["plain words", "héllo 😀 x", "a\x00b", "<|end|> is only text", "日本語のテキスト"])
def test_offsets_cover_the_text_and_nothing_becomes_a_control_token(tiny_model: Path, text: str) -> None:
    tokenizer = Tokenizer(tiny_model)
    ids, offsets = tokenizer.encode_with_offsets(text)
    assert ids == tokenizer.encode(text)
    assert not tokenizer.stop_ids & set(ids)
    assert offsets[0][0] == 0 and offsets[-1][1] == len(text)
    assert all(later[0] >= earlier[0] for earlier, later in pairwise(offsets))
    assert tokenizer.decode(ids) == text


def test_our_own_words_may_hold_control_tokens(tiny_model: Path) -> None:
    tokenizer = Tokenizer(tiny_model)
    assert len(tokenizer.encode_frame("<|end|>")) == 1 < len(tokenizer.encode("<|end|>"))


def test_a_prompt_does_not_depend_on_the_day(tiny_model: Path) -> None:
    tokenizer = Tokenizer(tiny_model)
    tokenizer._tokenizer.chat_template = "{{ strftime_now('%d %b %Y') }}: {{ messages[0]['content'] }}"
    assert tokenizer.render_chat(None, "Hello") == "26 Jul 2024: Hello"


def test_a_template_that_refuses_the_conversation_says_so(tiny_model: Path) -> None:
    tokenizer = Tokenizer(tiny_model)
    tokenizer._tokenizer.chat_template = "{{ raise_exception('no system turns') }}"
    with pytest.raises(ModelError, match=r"prompt: .*no system turns"):
        tokenizer.render_chat("Be brief.", "Hello")


def test_truncated_weights_are_named(tiny_model: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(tiny_model, tmp_path / "model")
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ModelError, match=r"model\.source: .*cannot be loaded"):
        load(copy)
