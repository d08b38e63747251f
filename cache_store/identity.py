"""The name of an entry: ``BlockKey``, the digest of the ``Identity`` that says everything which decides its bytes.

Invariants: every field, its name and its type reach the digest, so no two identities share a key and nothing that
matters can be left out; whoever reads an identity learns no tenant's salt.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields

import numpy as np
from blake3 import blake3

FORMAT_VERSION = 4

_HEX = re.compile(r"[0-9a-f]{64}")
_INT32 = np.iinfo(np.int32)


@dataclass(frozen=True)
class BlockKey:
    """The name of an entry: a 32-byte digest. Raises ValueError for anything else."""

    digest: bytes

    def __post_init__(self) -> None:
        if not isinstance(self.digest, bytes) or len(self.digest) != 32:
            raise ValueError(f"block key: {self.digest!r} is not 32 bytes")

    def __hash__(self) -> int:
        return hash(self.digest)  # the dataclass's own would make a tuple each time, and books hash a lot

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

    ``tenant``: as ``digest_tenant`` gives it. ``weights``, ``tokenizer``: fingerprints. ``attention``: name of the
    backend. ``rope``, ``reading`` (which earlier tokens a token reads, what is dropped on the way), ``scorer`` (with
    its profile's digest) and ``budget`` (with block and widening): canonical JSON. ``codec``: of the pairs (``pairs``).
    ``layers``: half-open range whose pairs are stored, (0, 0) for scores only. ``heads``: kv heads, head dimension.
    ``question``: digest of the question's tokens, None where the entry serves every question. ``chunk``: digest of its
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
    reading: str
    scorer: str
    budget: str
    codec: str
    question: str | None
    chunk: str
    context: str

    def key(self) -> BlockKey:
        """Digest of the format version and every field; TypeError for a value without canonical form."""
        named = tuple((field.name, getattr(self, field.name)) for field in fields(self))
        return BlockKey(blake3(_record(("foveate.block", FORMAT_VERSION, named))).digest())

    @property
    def record(self) -> dict[str, object]:
        """Every field by its name, as plain JSON values."""
        return asdict(self)

    @classmethod
    def from_record(cls, record: Mapping[str, object]) -> Identity:
        """What ``record`` gave; TypeError for other fields."""
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in record.items()})  # type: ignore[arg-type]


def digest_tenant(salt: str) -> str:
    """What names a tenant in keys and headers: whoever reads an entry must not learn the salt. Nobody stays nobody."""
    return blake3(salt.encode("utf-8", "surrogatepass")).hexdigest() if salt else ""


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
