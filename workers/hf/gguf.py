"""From llama.cpp's file format to a model directory, once."""

from __future__ import annotations

import struct
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
from transformers.utils import logging as transformers_logging

from workers.errors import ModelError


def convert_gguf(gguf: Path, directory: Path) -> None:
    """Write a GGUF file as a safetensors model directory, de-quantized to float32. Raises ``ModelError``."""
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent,
            gguf_file=gguf.name,
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.float32,
            trust_remote_code=False,
        )
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, trust_remote_code=False)
    except (OSError, ValueError, KeyError, struct.error) as error:
        raise ModelError(f"model.source: {gguf}: cannot be read as GGUF: {error}") from error
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
