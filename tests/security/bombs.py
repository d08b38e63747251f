"""Files that make a folder when they are unpickled, in every dress in which a pickle travels."""

from __future__ import annotations

import io
import os
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch


@dataclass(frozen=True)
class Bomb:
    """Going off makes the folder ``mark``."""

    mark: Path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return os.mkdir, (str(self.mark),)

    @property
    def went_off(self) -> bool:
        return self.mark.exists()


def plain(bomb: Bomb) -> bytes:
    """As ``pickle.load`` reads it."""
    return pickle.dumps(bomb)


def of_torch(bomb: Bomb) -> bytes:
    """As ``torch.load`` reads it."""
    buffer = io.BytesIO()
    torch.save({"keys": bomb}, buffer)
    return buffer.getvalue()


def of_numpy(bomb: Bomb) -> bytes:
    """As ``numpy.load`` reads it."""
    buffer = io.BytesIO()
    np.save(buffer, np.array([bomb], dtype=object), allow_pickle=True)
    return buffer.getvalue()


def of_yaml(bomb: Bomb) -> bytes:
    """As an unsafe YAML loader reads it."""
    return f"!!python/object/apply:os.mkdir [{str(bomb.mark)!r}]\n".encode()


def in_parquet(table: pa.Table, bomb: Bomb) -> bytes:
    """``table`` as a Parquet file each of whose columns says that a pickle knows its type, as pyarrow before 14.0.1
    believed."""
    claim = {b"ARROW:extension:name": b"arrow.py_extension_type", b"ARROW:extension:metadata": pickle.dumps(bomb)}
    schema = pa.schema([field.with_metadata(claim) for field in table.schema])
    buffer = io.BytesIO()
    pq.write_table(table.cast(schema), buffer)
    return buffer.getvalue()


BOMBS: dict[str, Callable[[Bomb], bytes]] = {
    "pickle": plain, "torch": of_torch, "numpy": of_numpy, "yaml": of_yaml
}  # fmt: skip
CARELESS: dict[str, Callable[[bytes], Any]] = {
    "pickle": pickle.loads,
    "torch": lambda content: torch.load(io.BytesIO(content), weights_only=False),
    "numpy": lambda content: np.load(io.BytesIO(content), allow_pickle=True),
}
"""Readers that they work on."""
