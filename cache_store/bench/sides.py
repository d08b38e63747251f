"""What the tiers' benchmark measures: an entry in each tier, and its bytes in that tier's raw medium.

Shapes: L layers, G kv heads, R rows, H columns of scores, B blocks, of SmolLM2-135M.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np
import obstore
import torch
from obstore.store import LocalStore

from cache_store.block import Entry, HeadPairs, KVBlock
from cache_store.codec import encode
from cache_store.identity import Identity
from cache_store.tiers.base import Tier
from cache_store.tiers.behind import WriteBehind
from cache_store.tiers.files import FilesTier
from cache_store.tiers.memory import MemoryTier
from cache_store.tiers.objects import ObjectsTier

LAYERS = 30

_HEADS, _HEAD_DIM, _CHUNK_TOKENS = 3, 64, 1024
_TOKEN_BYTES = LAYERS * _HEADS * (2 * _HEAD_DIM * torch.bfloat16.itemsize + torch.int32.itemsize)
_TOKENS_STEP = 8
_NEVER_FULL = 2**40
_PENDING_BYTES = 256 * 2**20  # what a job's objects tier lets wait unless told otherwise

IDENTITY = Identity(
    tenant="",
    weights="weights",
    tokenizer="tokenizer",
    dtype="torch.bfloat16",
    attention="cpu",
    rope="{}",
    layers=(0, LAYERS),
    heads=(_HEADS, _HEAD_DIM),
    reading="{}",
    scorer="{}",
    budget="",
    codec="model",
    question=None,
    chunk="chunk",
    context="",
)
"""Of an entry of that model; digests are words here."""

Array: TypeAlias = np.ndarray[Any, np.dtype[np.uint8]]


class Side(Protocol):
    """Where one entry's bytes can be kept."""

    def put(self) -> None:
        """Keep them."""
        ...

    def get(self) -> Sequence[Array]:
        """What was put."""
        ...

    def drop(self) -> None:
        """Keep nothing, if anything is kept."""
        ...


class Copies:
    """Copies of tensors."""

    def __init__(self, tensors: Sequence[torch.Tensor]) -> None:
        self._tensors = tensors
        self._copies: list[torch.Tensor] = []

    def put(self) -> None:
        """See ``Side``."""
        self._copies = [tensor.clone() for tensor in self._tensors]

    def get(self) -> Sequence[Array]:
        """See ``Side``."""
        return [bytes_of(tensor) for tensor in self._copies]

    def drop(self) -> None:
        """See ``Side``."""
        self._copies = []


class PlainFile:
    """A file."""

    def __init__(self, path: Path, content: bytes) -> None:
        self._path = path
        self._content = content

    def put(self) -> None:
        """See ``Side``."""
        staged = self._path.with_suffix(".tmp")
        with staged.open("wb") as file:
            file.write(self._content)
            file.flush()
            os.fsync(file.fileno())
        staged.replace(self._path)

    def get(self) -> Sequence[Array]:
        """See ``Side``."""
        return [np.frombuffer(self._path.read_bytes(), np.uint8)]

    def drop(self) -> None:
        """See ``Side``."""
        self._path.unlink(missing_ok=True)


class PlainObject:
    """An object in a local directory, below obstore."""

    def __init__(self, folder: Path, content: bytes) -> None:
        self._store = LocalStore(folder, mkdir=True)
        self._content = content

    def put(self) -> None:
        """See ``Side``."""
        obstore.put(self._store, "object", self._content, use_multipart=False)

    def get(self) -> Sequence[Array]:
        """See ``Side``."""
        return [np.frombuffer(memoryview(obstore.get(self._store, "object").bytes()), np.uint8)]

    def drop(self) -> None:
        """See ``Side``."""
        with contextlib.suppress(FileNotFoundError):
            obstore.delete(self._store, "object")


class PlainRayObject:
    """An object that this process puts into Ray's object store."""

    def __init__(self, ray: Any, tensors: Sequence[torch.Tensor]) -> None:
        self._ray = ray
        self._arrays = [bytes_of(tensor) for tensor in tensors]
        self._reference: Any = None

    def put(self) -> None:
        """See ``Side``."""
        self._reference = self._ray.put(self._arrays)

    def get(self) -> Sequence[Array]:
        """See ``Side``."""
        arrays: list[Array] = self._ray.get(self._reference)
        return arrays

    def drop(self) -> None:
        """See ``Side``."""
        self._reference = None


class InTier:
    """A tier with one entry, as a ``Side``."""

    def __init__(self, tier: Tier, block: KVBlock) -> None:
        self._tier = tier
        self._block = block

    def put(self) -> None:
        """See ``Side``; raises OSError where the tier does not keep it."""
        if self._tier.put(self._block):
            raise OSError(f"tier {self._tier.name}: keeps no {self._block.num_bytes:,} bytes: {self._tier.counters}")

    def get(self, layers: range | None = None) -> Sequence[Array]:
        """See ``Side``; raises OSError where the tier has lost it."""
        block = self._tier.get(self._block.key, layers)
        if block is None:
            raise OSError(f"tier {self._tier.name}: lost an entry: {self._tier.counters}")
        return [bytes_of(tensor) for tensor in block.tensors.values()]

    def drop(self) -> None:
        """See ``Side``."""
        self._tier.discard(self._block.key)


class Sides(NamedTuple):
    """A tier with an entry, and its raw medium with the same bytes. ``settle``: waits for what a put left to others,
    None where it leaves nothing; ``by_layer``: whether the tier can read a few layers alone; ``gets``: whether getting
    is its own affair."""

    tier: InTier
    raw: Side
    settle: Callable[[], object] | None = None
    by_layer: bool = False
    gets: bool = True


class Place(NamedTuple):
    """Where tiers are opened: an empty folder, what the largest entry takes, and what is to end with the benchmark."""

    folder: Path
    max_entry_bytes: int
    ends: ExitStack


def _memory(block: KVBlock, place: Place) -> Sides:
    return Sides(InTier(MemoryTier(_NEVER_FULL), block), Copies(list(block.tensors.values())))


def _files(block: KVBlock, place: Place) -> Sides:
    tier = FilesTier(place.folder / "tier", _NEVER_FULL)
    return Sides(InTier(tier, block), PlainFile(place.folder / "raw", encode(block)), by_layer=True)


def _objects(block: KVBlock, place: Place) -> Sides:
    tier = ObjectsTier((place.folder / "tier").as_uri(), _NEVER_FULL)
    return Sides(InTier(tier, block), PlainObject(place.folder / "raw", encode(block)))


def _objects_behind(block: KVBlock, place: Place) -> Sides:
    tier = WriteBehind(ObjectsTier((place.folder / "tier").as_uri(), _NEVER_FULL), _PENDING_BYTES)
    raw = PlainObject(place.folder / "raw", encode(block))
    return Sides(InTier(tier, block), raw, settle=tier.flush, gets=False)


def _ray(block: KVBlock, place: Place) -> Sides:
    import ray  # here, so that the other tiers can be measured without it

    from cache_store.tiers.object_store import RayTier

    if not ray.is_initialized():
        place.ends.enter_context(_ray_on_this_machine(max(2**28, 16 * place.max_entry_bytes)))
    tier = RayTier(_NEVER_FULL)
    tier.put(make_entry(0, "float32"))  # which stays: the actor that copies would end with a node's last entry
    entry = InTier(tier, block)
    return Sides(entry, PlainRayObject(ray, list(block.tensors.values())), settle=entry.get)


OPENERS: Mapping[str, Callable[[KVBlock, Place], Sides]] = {
    "memory": _memory,
    "files": _files,
    "objects": _objects,
    "objects behind": _objects_behind,
    "ray": _ray,
}


@contextlib.contextmanager
def _ray_on_this_machine(object_store_bytes: int) -> Iterator[None]:
    """A Ray of one node, with nothing left behind."""
    import ray

    from cache_store.tiers.object_store import open_ledger

    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # not $TMPDIR: paths of its sockets must be short
    try:
        ray.init(
            address="local",
            num_cpus=1,
            object_store_memory=object_store_bytes,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            _temp_dir=folder,
        )
        ledger = open_ledger()  # held: it would end with one tier, and not be there yet for the next
        yield
        del ledger
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


def bytes_of(tensor: torch.Tensor) -> Array:
    """The bytes of a contiguous tensor, in place."""
    array: Array = tensor.reshape(-1).view(torch.uint8).numpy()
    return array


def make_entry(max_bytes: int, codec: str = "model") -> KVBlock:
    """An entry as the module's docstring describes it, whose bfloat16 pairs are of ``max_bytes`` at most, of eight
    tokens at least."""
    tokens = max(1, max_bytes // _TOKEN_BYTES // _TOKENS_STEP) * _TOKENS_STEP
    chunk_tokens = max(_CHUNK_TOKENS, tokens)
    entries = LAYERS * _HEADS
    generator = torch.Generator().manual_seed(tokens)
    rows_shape = (entries * tokens, _HEAD_DIM)
    rows = HeadPairs(
        (torch.arange(tokens) * chunk_tokens // tokens).repeat(entries),
        torch.randn(rows_shape, generator=generator).to(torch.bfloat16),
        torch.randn(rows_shape, generator=generator).to(torch.bfloat16),
    )
    counts_LG = torch.full((LAYERS, _HEADS), tokens, dtype=torch.int32)
    scores_RHB = torch.rand(1, 1, chunk_tokens // _TOKENS_STEP, generator=generator)
    entry = Entry(replace(IDENTITY, budget=str(tokens), codec=codec), chunk_tokens, chunk_tokens, scores_RHB)
    return KVBlock.of_rows(entry, counts_LG, rows)
