"""A ``KVBlock`` as bytes and back: a safetensors file whose metadata says whose it is, and proves it.

The metadata has one entry, ``foveate``: the blake3 of the rest (hex), then canonical JSON with the format
version, the key, and a checksum per tensor over its name, dtype, shape and bytes.

Invariants: ``decode(encode(block), block.key)`` is the block, bit for bit and dtype for dtype; any other
bytes raise ``UnreadableBlock``, never another block; nothing is ever unpickled.
"""

from __future__ import annotations

import json
from typing import Any

import safetensors.torch
import torch
from blake3 import blake3
from safetensors import SafetensorError

from cache_store.block import FORMAT_VERSION, BlockKey, KVBlock
from cache_store.errors import CorruptBlock, OtherVersion

_ENTRY = "foveate"
_SEAL_CHARS = 64


def encode(block: KVBlock) -> bytes:
    """The block as the bytes of a safetensors file; equal blocks give equal bytes."""
    # Cloned, because safetensors refuses views and tensors that share memory.
    tensors = {
        name: tensor.detach().clone(memory_format=torch.contiguous_format) for name, tensor in block.tensors.items()
    }
    record = json.dumps(
        {
            "format_version": FORMAT_VERSION,
            "key": block.key.hex,
            "checksums": {name: _checksum(name, tensor) for name, tensor in tensors.items()},
        },
        sort_keys=True,
    )
    return safetensors.torch.save(tensors, {_ENTRY: _seal(record) + record})


def decode(data: bytes, expected_key: BlockKey) -> KVBlock:
    """The block that ``encode`` wrote, in memory of its own.

    Raises OtherVersion for an intact block of another format version, CorruptBlock for bytes that are not
    exactly what was written for ``expected_key``.
    """
    tensors = _tensors(data)
    record = _sealed_record(data)
    if record["format_version"] != FORMAT_VERSION:
        raise OtherVersion(f"block of format version {record['format_version']}; this one reads {FORMAT_VERSION}")
    if record["key"] != expected_key.hex:
        raise CorruptBlock(f"block of key {record['key']}, where {expected_key.hex} was expected")
    found = {name: _checksum(name, tensor) for name, tensor in tensors.items()}
    if found != record["checksums"]:
        wrong = sorted(name for name, _ in found.items() ^ record["checksums"].items())
        raise CorruptBlock(f"block {expected_key.hex}: checksum mismatch in {', '.join(dict.fromkeys(wrong))}")
    try:
        return KVBlock(expected_key, **tensors)
    except (TypeError, ValueError) as error:
        raise CorruptBlock(f"block {expected_key.hex}: {error}") from error


def _tensors(data: bytes) -> dict[str, torch.Tensor]:
    """Every tensor of a safetensors file; its parser's many ways to say no become one."""
    try:
        return safetensors.torch.load(data)
    except (SafetensorError, AssertionError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise CorruptBlock(f"not a safetensors file: {error}") from error


def _sealed_record(data: bytes) -> dict[str, Any]:
    """The metadata's JSON after its seal was checked. ``data`` has passed safetensors' own parser."""
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    sealed = (header.get("__metadata__") or {}).get(_ENTRY, "")
    seal, text = sealed[:_SEAL_CHARS], sealed[_SEAL_CHARS:]
    if seal != _seal(text):
        raise CorruptBlock("the metadata is not what was written, or not ours")
    record: dict[str, Any] = json.loads(text)
    return record


def _seal(text: str) -> str:
    return blake3(text.encode("utf-8", "surrogatepass")).hexdigest()


def _checksum(name: str, tensor: torch.Tensor) -> str:
    """Digest of a contiguous tensor and of what gives its bytes a meaning."""
    hasher = blake3(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
    hasher.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return hasher.hexdigest()
