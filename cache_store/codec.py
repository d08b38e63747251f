"""A ``KVBlock`` as bytes and back: a safetensors file whose metadata says what it is, and proves it.

The metadata has one entry, ``foveate``: the blake3 of the rest (hex), then canonical JSON with the format version, the
whole identity, the chunk's tokens, their cost, and checksums: one per tensor, of the pairs' tensors one per layer, so
that a reader that wants a few layers reads and proves those alone.

Invariants: ``decode(encode(block), block.key)`` is the block, bit for bit and dtype for dtype; any other
bytes raise ``UnreadableBlock``, never another block; nothing is ever unpickled, and nothing is mapped: what another
program or a bad sector does to a mapped file later on ends the process, where a read fails or had ended.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

import safetensors.torch
import torch
from blake3 import blake3
from safetensors import SafetensorError

from cache_store.block import TENSORS, KVBlock
from cache_store.errors import CorruptBlock, OtherVersion
from cache_store.identity import FORMAT_VERSION, BlockKey, Identity

_ENTRY = "foveate"
_SEAL_CHARS = 64
_BY_LAYER = ("positions_N", "keys_ND", "values_ND")
"""Tensors whose rows are those of the layers, one behind the other."""
_DTYPES = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F64": torch.float64,
    "I32": torch.int32,
    "I8": torch.int8,
}
"""A block's dtypes by safetensors' names."""


@dataclass(frozen=True)
class Header:
    """What an entry says of itself: as ``KVBlock``, but for its tensors."""

    identity: Identity
    num_tokens: int
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
            "num_tokens": block.num_tokens,
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
        return _block(parse_header(data, len(data), expected_key), safetensors.torch.load(data))


def decode_file(path: Path, expected_key: BlockKey, layers: range | None = None) -> KVBlock:
    """The block in a file; with ``layers``, the pairs of these layers alone (heads of the others keep nothing), of
    which alone bytes are read. Raises as ``decode``, and OSError."""
    with _complaints(expected_key), path.open("rb") as file:
        if layers is None:
            return decode(file.read(), expected_key)
        num_bytes = os.fstat(file.fileno()).st_size
        head = file.read(8)
        head += file.read(max(0, min(header_end(head), num_bytes) - 8))  # no more than there is, whatever it says
        header, table = _parsed(head, num_bytes, expected_key)
        return _block_of_layers(header, _Rows(file, len(head), table), layers)


def header_end(head: bytes) -> int:
    """How many bytes of an entry its header takes, which these are the first of; 8 tell."""
    return 8 + int.from_bytes(head[:8], "little")


def parse_header(head: bytes, num_bytes: int, expected_key: BlockKey) -> Header:
    """What an entry of ``num_bytes`` says of itself in its first bytes, ``header_end`` of them or more. Raises as
    ``decode``, but for what only the tensors tell."""
    with _complaints(expected_key):
        return _parsed(head, num_bytes, expected_key)[0]


def _parsed(head: bytes, num_bytes: int, expected_key: BlockKey) -> tuple[Header, dict[str, Any]]:
    """What an entry says of itself, and where its tensors lie, as safetensors has it."""
    end = header_end(head)
    if len(head) < end:
        raise CorruptBlock("not an entry: cut short in its header")
    table: dict[str, Any] = json.loads(head[8:end])
    metadata = table.pop("__metadata__", None)
    whole = end + max((tensor["data_offsets"][1] for tensor in table.values()), default=0)
    if num_bytes != whole:
        raise CorruptBlock(f"not an entry: {num_bytes:,} bytes, where its header speaks of {whole:,}")
    return _header(metadata, expected_key), table


@dataclass(frozen=True)
class _Rows:
    """Rows of the tensors in an open entry, read when they are asked for. ``end``: of its header."""

    file: BinaryIO
    end: int
    table: Mapping[str, Any]

    def of(self, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """Rows of a tensor from ``start`` on, by default all."""
        entry = self.table[name]
        (rows, *shape), dtype = entry["shape"], _DTYPES[entry["dtype"]]
        count = max(0, (rows if stop is None else min(stop, rows)) - start)
        row_bytes = math.prod(shape) * dtype.itemsize
        first, last = entry["data_offsets"]
        if last - first != rows * row_bytes:
            raise CorruptBlock(f"{name} has not the bytes that its shape needs")
        content = bytearray(count * row_bytes)
        self.file.seek(self.end + first + start * row_bytes)
        if self.file.readinto(content) < len(content):  # type: ignore[attr-defined]
            raise CorruptBlock("cut short while it was read")
        flat = torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype)
        return flat.reshape(count, *shape)


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
        raise OtherVersion(record["format_version"], FORMAT_VERSION)
    identity = Identity.from_record(record["identity"])
    if identity.key() != expected_key:
        raise CorruptBlock(f"block of key {identity.key().hex}, where {expected_key.hex} was expected")
    return Header(identity, record["num_tokens"], record["cost"], record["checksums"])


def _block(header: Header, tensors: Mapping[str, torch.Tensor]) -> KVBlock:
    _prove(header, tensors, _checksums(tensors))
    return KVBlock(header.identity, header.num_tokens, header.cost, **tensors)


def _block_of_layers(header: Header, rows: _Rows, layers: range) -> KVBlock:
    """The pairs of a few layers, and everything that is small."""
    tensors = {name: rows.of(name) for name in TENSORS if name not in _BY_LAYER}
    counts_LG = tensors["counts_LG"]
    bounds = _bounds(counts_LG)
    wanted = [layer for layer in range(len(counts_LG)) if layer in layers]
    found = _checksums(tensors)
    for name in _BY_LAYER:
        parts = [rows.of(name, *bounds[layer : layer + 2]) for layer in wanted]
        found[name] = list(header.checksums[name])
        for layer, part in zip(wanted, parts, strict=True):
            found[name][layer] = _checksum(name, part)
        tensors[name] = torch.cat(parts) if parts else rows.of(name, 0, 0)
    _prove(header, tensors, found)
    kept_LG = torch.zeros_like(counts_LG)
    kept_LG[wanted] = counts_LG[wanted]
    return KVBlock(header.identity, header.num_tokens, header.cost, **{**tensors, "counts_LG": kept_LG})


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
