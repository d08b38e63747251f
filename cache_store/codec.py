"""A ``KVBlock`` as bytes and back: a safetensors file whose metadata says what it is, and proves it.

The metadata has one entry, ``foveate``: the blake3 of the rest (hex), then canonical JSON with the format version, the
whole identity, the cost, and checksums: one per tensor, of the pairs' tensors one per layer, so that a reader that
wants a few layers maps and proves those alone.

Invariants: ``decode(encode(block), block.key)`` is the block, bit for bit and dtype for dtype; any other
bytes raise ``UnreadableBlock``, never another block; nothing is ever unpickled.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from blake3 import blake3
from safetensors import SafetensorError, safe_open

from cache_store.block import TENSORS, KVBlock
from cache_store.errors import CorruptBlock, OtherVersion
from cache_store.identity import FORMAT_VERSION, BlockKey, Identity

_ENTRY = "foveate"
_SEAL_CHARS = 64
_BY_LAYER = ("positions_N", "keys_ND", "values_ND")
"""Tensors whose rows are those of the layers, one behind the other."""


@dataclass(frozen=True)
class Header:
    """What an entry says of itself: whose it is, and how many tokens must be read to compute it again."""

    identity: Identity
    cost: int
    checksums: Mapping[str, list[str]]


def encode(block: KVBlock) -> bytes:
    """The block as the bytes of a safetensors file; equal blocks give equal bytes."""
    # Cloned, because safetensors refuses views and tensors that share memory.
    tensors = {
        name: tensor.detach().clone(memory_format=torch.contiguous_format) for name, tensor in block.tensors.items()
    }
    record = json.dumps(
        {
            "format_version": FORMAT_VERSION,
            "identity": block.identity.record,
            "cost": block.cost,
            "checksums": _checksums(tensors),
        },
        sort_keys=True,
    )
    return safetensors.torch.save(tensors, {_ENTRY: _seal(record) + record})


def decode(data: bytes, expected_key: BlockKey) -> KVBlock:
    """The block that ``encode`` wrote, in memory of its own.

    Raises OtherVersion for an intact block of another format version, CorruptBlock for bytes that are not
    exactly what was written for ``expected_key``.
    """
    with _complaints(expected_key):
        tensors = safetensors.torch.load(data)
        header_size = int.from_bytes(data[:8], "little")
        metadata = json.loads(data[8 : 8 + header_size]).get("__metadata__")
        return _block(_header(metadata, expected_key), tensors)


def decode_file(path: Path, expected_key: BlockKey, layers: range | None = None) -> KVBlock:
    """The block in a file, its tensors mapped from it; with ``layers``, the pairs of these layers alone (heads of the
    others keep nothing), of which alone the file's pages are read. Raises as ``decode``, and OSError."""
    with _opened(path, expected_key) as file:
        header = _header(file.metadata(), expected_key)
        if layers is None:
            return _block(header, {name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118 (no mapping)
        return _block_of_layers(header, file, layers)


def read_header(path: Path, expected_key: BlockKey) -> Header:
    """What an entry's file says of itself; its tensors are not looked at. Raises as ``decode_file``."""
    with _opened(path, expected_key) as file:
        return _header(file.metadata(), expected_key)


@contextmanager
def _opened(path: Path, key: BlockKey) -> Iterator[Any]:
    """An entry's file, mapped. Opened twice: to safetensors every file that cannot be opened is one that is absent."""
    with _complaints(key), path.open("rb"), safe_open(path, framework="pt") as file:
        yield file


@contextmanager
def _complaints(key: BlockKey) -> Iterator[None]:
    """The many ways in which a parser says no become one."""
    try:
        yield
    except (OtherVersion, CorruptBlock, OSError):
        raise
    except (SafetensorError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise CorruptBlock(f"block {key.hex}: not an entry: {error}") from error


def _header(metadata: Any, expected_key: BlockKey) -> Header:
    """The metadata's record after its seal was checked."""
    sealed = (metadata or {}).get(_ENTRY, "")
    seal, text = sealed[:_SEAL_CHARS], sealed[_SEAL_CHARS:]
    if seal != _seal(text):
        raise CorruptBlock("the metadata is not what was written, or not ours")
    record: dict[str, Any] = json.loads(text)
    if record["format_version"] != FORMAT_VERSION:
        raise OtherVersion(f"block of format version {record['format_version']}; this one reads {FORMAT_VERSION}")
    identity = Identity.from_record(record["identity"])
    if identity.key() != expected_key:
        raise CorruptBlock(f"block of key {identity.key().hex}, where {expected_key.hex} was expected")
    return Header(identity, record["cost"], record["checksums"])


def _block(header: Header, tensors: Mapping[str, torch.Tensor]) -> KVBlock:
    _prove(header, tensors, _checksums(tensors))
    return KVBlock(header.identity, header.cost, **tensors)


def _block_of_layers(header: Header, file: Any, layers: range) -> KVBlock:
    """The pairs of a few layers, and everything that is small."""
    tensors = {name: file.get_tensor(name) for name in TENSORS if name not in _BY_LAYER}
    counts_LG = tensors["counts_LG"]
    bounds = _bounds(counts_LG)
    wanted = [layer for layer in range(len(counts_LG)) if layer in layers]
    found = _checksums(tensors)
    parts: dict[str, list[torch.Tensor]] = {name: [] for name in _BY_LAYER}
    for name in _BY_LAYER:
        rows = file.get_slice(name)
        found[name] = list(header.checksums[name])
        for layer in wanted:
            part = rows[slice(*bounds[layer : layer + 2]) if rows.get_shape()[0] else slice(0)].contiguous()
            found[name][layer] = _checksum(name, part)
            parts[name].append(part)
        parts[name] = parts[name] or [rows[0:0]]
    _prove(header, tensors, found)
    kept_LG = torch.zeros_like(counts_LG)
    kept_LG[wanted] = counts_LG[wanted]
    merged = {name: torch.cat(own) for name, own in parts.items()}
    return KVBlock(header.identity, header.cost, **{**tensors, **merged, "counts_LG": kept_LG})


def _prove(header: Header, tensors: Mapping[str, torch.Tensor], found: Mapping[str, list[str]]) -> None:
    if found != header.checksums:
        names = {*found, *header.checksums}
        wrong = sorted(name for name in names if found.get(name) != header.checksums.get(name))
        raise CorruptBlock(f"block {header.identity.key().hex}: checksum mismatch in {', '.join(wrong)}")


def _seal(text: str) -> str:
    return blake3(text.encode("utf-8", "surrogatepass")).hexdigest()


def _checksums(tensors: Mapping[str, torch.Tensor]) -> dict[str, list[str]]:
    """Of every tensor; of the pairs' tensors layer by layer, if there are any layers."""
    bounds = _bounds(tensors["counts_LG"]) if "counts_LG" in tensors else [0]
    found = {}
    for name, tensor in tensors.items():
        layered = name in _BY_LAYER and len(bounds) > 1
        parts = [tensor[start:stop] for start, stop in pairwise(bounds)] if layered else [tensor]
        found[name] = [_checksum(name, part) for part in parts]
    return found


def _bounds(counts_LG: torch.Tensor) -> list[int]:
    """Where each layer's rows begin, and where the last one's end."""
    return [0, *counts_LG.sum(dim=1).cumsum(dim=0).tolist()]


def _checksum(name: str, tensor: torch.Tensor) -> str:
    """Digest of a contiguous tensor and of what gives its bytes a meaning."""
    hasher = blake3(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
    hasher.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return hasher.hexdigest()
