"""What the store keeps, and under which name: ``KVBlock`` under ``BlockKey``, the digest of an ``Identity``.

Suffixes: T kept tokens of a chunk, L layers, G kv heads, D head dimension; R scored probe rows, H retrieval
heads, B blocks of the chunk.

Invariants: everything that decides an entry's bytes is a field of ``Identity``, so two blocks of one key are
interchangeable; every field, its name and its type reach the digest; a block is never written to after it was
made.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from blake3 import blake3

FORMAT_VERSION = 1

PAIR_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_HEX = re.compile(r"[0-9a-f]{64}")
_INT32 = np.iinfo(np.int32)


@dataclass(frozen=True)
class BlockKey:
    """The name of an entry: a 32-byte digest. Raises ValueError for anything else."""

    digest: bytes

    def __post_init__(self) -> None:
        if not isinstance(self.digest, bytes) or len(self.digest) != 32:
            raise ValueError(f"block key: {self.digest!r} is not 32 bytes")

    @property
    def hex(self) -> str:
        """The key as 64 lower-case hexadecimal digits."""
        return self.digest.hex()

    @classmethod
    def from_hex(cls, text: str) -> BlockKey:
        """The key that ``hex`` wrote; raises ValueError unless ``text`` is 64 lower-case hex digits."""
        if _HEX.fullmatch(text) is None:
            raise ValueError(f"block key: {text!r} is not 64 lower-case hexadecimal digits")
        return cls(bytes.fromhex(text))

    def __repr__(self) -> str:
        return f"BlockKey({self.hex[:12]}...)"


@dataclass(frozen=True)
class Identity:
    """Everything that decides an entry's bytes.

    ``weights``, ``tokenizer``: fingerprints. ``attention``: name of the backend. ``rope``, ``scorer`` (with
    its profile's digest) and ``budget`` (with block and widening): canonical JSON. ``layers``: half-open
    range whose pairs are stored, (0, 0) for scores only. ``heads``: kv heads, head dimension. ``question``:
    digest of the question's tokens, None where the entry serves every question. ``chunk``: digest of its
    tokens. ``context``: digest of what the chunk was read after (anchor tokens, carried kept sets).
    """

    tenant: str
    weights: str
    tokenizer: str
    dtype: str
    attention: str
    rope: str
    layers: tuple[int, int]
    heads: tuple[int, int]
    scorer: str
    budget: str
    question: str | None
    chunk: str
    context: str

    def key(self) -> BlockKey:
        """Digest of the format version and every field; TypeError for a value without canonical form."""
        named = tuple((field.name, getattr(self, field.name)) for field in fields(self))
        return BlockKey(blake3(_record(("foveate.block", FORMAT_VERSION, named))).digest())


@dataclass(frozen=True, eq=False)
class KVBlock:
    """What one chunk left behind for one question, in host memory.

    ``positions_T``: int32 positions of the kept tokens relative to the chunk's start, so that equal chunks
    of different documents share an entry. ``keys_LGTD`` are not rotated; both they and ``values_LGTD`` are
    float32, bfloat16 or float16, and L may be 0 (scores only). ``lse_RHB``: float32 log-sum-exp of probe rows
    by retrieval heads over each block. Readers must not write to any of them. Raises ValueError for shapes,
    dtypes or devices that do not fit.
    """

    key: BlockKey
    positions_T: torch.Tensor
    keys_LGTD: torch.Tensor
    values_LGTD: torch.Tensor
    lse_RHB: torch.Tensor

    def __post_init__(self) -> None:
        keys, values = self.keys_LGTD, self.values_LGTD
        _require(self.positions_T, "positions_T", dims=1, dtypes=(torch.int32,))
        _require(keys, "keys_LGTD", dims=4, dtypes=PAIR_DTYPES)
        _require(values, "values_LGTD", dims=4, dtypes=(keys.dtype,))
        _require(self.lse_RHB, "lse_RHB", dims=3, dtypes=(torch.float32,))
        if values.shape != keys.shape:
            raise ValueError(f"values_LGTD: {tuple(values.shape)} is not the shape of keys_LGTD: {tuple(keys.shape)}")
        if keys.shape[2] != self.positions_T.shape[0]:
            raise ValueError(f"keys_LGTD: {keys.shape[2]} tokens, but positions_T: {self.positions_T.shape[0]}")

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """Every tensor by the name of its field."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "key"}

    @property
    def num_bytes(self) -> int:
        """Bytes of the tensors' elements."""
        return sum(tensor.nbytes for tensor in self.tensors.values())


def digest_tokens(*runs: Sequence[int]) -> str:
    """Digest of runs of token ids as hex; where a run ends counts. ValueError for an id outside int32."""
    hasher = blake3()
    for run in runs:
        ids = np.asarray(run, dtype=np.int64)
        outside = ids[(ids < _INT32.min) | (ids > _INT32.max)]
        if outside.size:
            raise ValueError(f"token id {outside[0]} does not fit into 32 bits")
        hasher.update(len(ids).to_bytes(8, "little"))
        hasher.update(ids.astype("<i4").tobytes())
    return hasher.hexdigest()


def _record(value: object) -> bytes:
    """Canonical bytes of a value: its type's tag, its length, its body. No two values share them."""
    match value:
        case None:
            tag, body = b"n", b""
        case str():
            tag, body = b"s", value.encode("utf-8", "surrogatepass")
        case int():
            tag, body = b"i", str(value).encode()
        case tuple():
            tag, body = b"t", b"".join(map(_record, value))
        case _:
            raise TypeError(
                f"identity: {value!r} is a {type(value).__name__}; allowed: str, int, None, tuples of these"
            )
    return tag + len(body).to_bytes(8, "little") + body


def _require(tensor: torch.Tensor, name: str, *, dims: int, dtypes: tuple[torch.dtype, ...]) -> None:
    """Refuse a tensor of a wrong rank, dtype or device, by name."""
    if tensor.ndim != dims:
        raise ValueError(f"{name}: has {tensor.ndim} dimensions; allowed: {dims}")
    if tensor.dtype not in dtypes:
        raise ValueError(f"{name}: is {tensor.dtype}; allowed: {', '.join(map(str, dtypes))}")
    if tensor.device.type != "cpu":
        raise ValueError(f"{name}: lies on {tensor.device}; allowed: cpu (blocks live in host memory)")
