"""Tiny random models and a byte tokenizer, saved as any Hugging Face model directory is.

Real code paths, no download: a few layers of a real architecture, a real fast tokenizer (one token per
UTF-8 byte) with a chat template. Deterministic: the same seed gives the same weights.
"""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL = ["<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]


def save_tiny_model(
    directory: Path, *, window: int = 2048, layers: int = 3, seed: int = 0, chat_template: bool = True
) -> Path:
    """Write model and tokenizer into ``directory``: ``window`` positions, GQA with 4 heads over 2 kv heads."""
    words = _byte_tokenizer(window, chat_template)
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=window,
        eos_token_id=words.eos_token_id,
        bos_token_id=None,
        pad_token_id=words.pad_token_id,
        tie_word_embeddings=True,
    )
    torch.manual_seed(seed)
    LlamaForCausalLM(config).save_pretrained(directory)
    words.save_pretrained(directory)
    return directory


def save_tiny_gemma3(directory: Path, *, window: int = 64, sliding: int = 16, seed: int = 0) -> Path:
    """Write a model of Gemma 3's kind: ``window`` positions, 4 layers, all but the third reading ``sliding`` keys and
    rotated by angles of their own, norms on queries and keys, 4 heads over one kv head. No chat template (a base
    model)."""
    words = _byte_tokenizer(window, chat_template=False)
    local, everywhere = ("sliding_attention", 10_000.0), ("full_attention", 1_000_000.0)
    config = Gemma3TextConfig(
        vocab_size=len(words),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=16,
        query_pre_attn_scalar=16,
        max_position_embeddings=window,
        sliding_window=sliding,
        layer_types=[local[0], local[0], everywhere[0], local[0]],
        rope_parameters={kind: {"rope_type": "default", "rope_theta": theta} for kind, theta in (local, everywhere)},
        eos_token_id=words.eos_token_id,
        bos_token_id=None,
        pad_token_id=words.pad_token_id,
    )
    torch.manual_seed(seed)
    model = Gemma3ForCausalLM(config)
    # At first all norms are the same: different ones show which norm was forgotten.
    for name, parameter in model.named_parameters():
        if name.endswith("norm.weight"):
            torch.nn.init.normal_(parameter, std=0.5)
    model.save_pretrained(directory)
    words.save_pretrained(directory)
    return directory


def _byte_tokenizer(window: int, chat_template: bool) -> PreTrainedTokenizerFast:
    """One token per UTF-8 byte, and the control tokens of a chat."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: index for index, symbol in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|end|>", model_max_length=window
    )
    fast.add_special_tokens({"additional_special_tokens": SPECIAL[1:]})
    fast.chat_template = CHAT_TEMPLATE if chat_template else None
    return fast
