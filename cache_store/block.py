"""What the store keeps: a ``KVBlock``, under the name that its ``Identity`` gives it.

Every layer and kv head keeps tokens of its own, so pairs are ragged: N rows in all. Suffixes: L layers, G kv
heads, E layers times kv heads, D head dimension, T tokens that one head keeps, N the sum of them over layers and heads;
R rows and H heads that a scorer reports, B blocks of the chunk.

Invariants: a token that a head drops costs no byte; everything that decides an entry's bytes is a field of
``Identity``, so two blocks of one key are interchangeable; a block is never written to after it was made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from itertools import accumulate
from typing import NamedTuple

import torch

from cache_store.identity import BlockKey, Identity
from cache_store.pairs import PAIR_DTYPES, Packed, pack, unpack


class HeadPairs(NamedTuple):
    """What one layer and kv head keeps: ascending positions, and keys (not rotated) and values at them."""

    positions_T: torch.Tensor
    keys_TD: torch.Tensor
    values_TD: torch.Tensor


@dataclass(frozen=True, eq=False)
class Entry:
    """An entry in the making: what it is, how many tokens its chunk has, how many were read for it, what the scorer
    said."""

    identity: Identity
    num_tokens: int
    cost: int
    scores_RHB: torch.Tensor


@dataclass(frozen=True, eq=False)
class KVBlock:
    """What one chunk left behind for one question, in host memory.

    ``num_tokens``: how many tokens of the document the chunk has. ``cost``: how many must be read to compute it again:
    more where they are read twice, or with a question. ``counts_LG``: int32, how many tokens each layer and kv
    head keeps; L may be 0 (scores only). The N rows of the others are theirs, layer by layer and in it head by head.
    ``positions_N``: int32, relative to the chunk's start, so that equal chunks of different documents share an entry;
    they rise within each head. ``keys_ND`` are not rotated; both they and ``values_ND`` ([0, D] in an index) are as the
    identity's codec holds them, with ``key_scales_ED`` and ``value_scales_ED`` where it is int8 (else [0, D]).
    ``scores_RHB``: float32, what the scorer said of each block. Readers must not write to any of them. Raises
    ValueError for shapes, dtypes, devices, counts or positions that do not fit.
    """

    identity: Identity
    num_tokens: int
    cost: int
    counts_LG: torch.Tensor
    positions_N: torch.Tensor
    keys_ND: torch.Tensor
    values_ND: torch.Tensor
    key_scales_ED: torch.Tensor
    value_scales_ED: torch.Tensor
    scores_RHB: torch.Tensor

    def __post_init__(self) -> None:
        keys, values = self.keys_ND, self.values_ND
        _require(self.counts_LG, "counts_LG", dims=2, dtypes=(torch.int32,))
        _require(self.positions_N, "positions_N", dims=1, dtypes=(torch.int32,))
        _require(keys, "keys_ND", dims=2, dtypes=(*PAIR_DTYPES, torch.int8))
        _require(values, "values_ND", dims=2, dtypes=(keys.dtype,))
        _require(self.scores_RHB, "scores_RHB", dims=3, dtypes=(torch.float32,))
        if bool((self.counts_LG < 0).any()):
            raise ValueError(f"counts_LG: {int(self.counts_LG.min())} tokens; allowed: 0 or more")
        if values.shape not in (keys.shape, (0, keys.shape[1])):
            raise ValueError(f"values_ND: {tuple(values.shape)} is not the shape of keys_ND: {tuple(keys.shape)}")
        for name, rows in (("positions_N", len(self.positions_N)), ("keys_ND", len(keys))):
            if rows != self._bounds[-1]:
                raise ValueError(f"{name}: {rows} rows, but counts_LG: {self._bounds[-1]}")
        entries = self.counts_LG.numel() if keys.dtype == torch.int8 else 0
        for name in ("key_scales_ED", "value_scales_ED"):
            scales = getattr(self, name)
            _require(scales, name, dims=2, dtypes=(torch.float32,))
            if scales.shape != (entries, keys.shape[1]):
                raise ValueError(f"{name}: {tuple(scales.shape)}; allowed here: {(entries, keys.shape[1])}")
        self._require_order()
        if len(self.positions_N):
            first, last = (int(position) for position in self.positions_N.aminmax())
            if first < 0 or last >= self.num_tokens:
                raise ValueError(f"positions_N: {first} to {last}, but num_tokens: {self.num_tokens}")

    @classmethod
    def of_heads(cls, entry: Entry, heads: Sequence[Sequence[HeadPairs]]) -> KVBlock:
        """The block of ``heads[layer][head]``, packed into host memory; no layers: scores only."""
        flat = [pairs for layer in heads for pairs in layer]
        if not flat:
            none = torch.empty(0, 0)
            return cls.of_rows(entry, none.int(), HeadPairs(none.int().flatten(), none, none))
        counts_LG = torch.tensor([[len(pairs.positions_T) for pairs in layer] for layer in heads], dtype=torch.int32)
        rows = HeadPairs(*(torch.cat(tensors) for tensors in zip(*flat, strict=True)))
        return cls.of_rows(entry, counts_LG, rows)

    def copy(self) -> KVBlock:
        """The same block in contiguous memory of its own."""
        owned = {
            name: tensor.detach().clone(memory_format=torch.contiguous_format) for name, tensor in self.tensors.items()
        }
        return KVBlock(self.identity, self.num_tokens, self.cost, **owned)

    @classmethod
    def of_rows(cls, entry: Entry, counts_LG: torch.Tensor, rows: HeadPairs) -> KVBlock:
        """The block of all heads' rows, one head behind the other, packed into host memory as its identity says."""
        positions_N, keys_ND, values_ND = (tensor.cpu() for tensor in rows)
        keys = pack(keys_ND, counts_LG.flatten(), entry.identity.codec)
        valued = counts_LG if len(values_ND) else torch.zeros_like(counts_LG)
        values = pack(values_ND, valued.flatten(), entry.identity.codec)
        return cls(
            entry.identity,
            entry.num_tokens,
            entry.cost,
            counts_LG,
            positions_N.int(),
            keys.rows_ND,
            values.rows_ND,
            keys.scales_ED,
            values.scales_ED,
            entry.scores_RHB.cpu(),
        )

    @cached_property
    def key(self) -> BlockKey:
        """The name of the entry."""
        return self.identity.key()

    def rows(self, layer: int, head: int) -> slice:
        """Where the pairs of a layer and kv head lie among the N."""
        num_layers, num_heads = self.counts_LG.shape
        if not (0 <= layer < num_layers and 0 <= head < num_heads):
            raise IndexError(f"layer {layer}, head {head}: the block has {num_layers} layers of {num_heads} kv heads")
        index = layer * num_heads + head
        return slice(self._bounds[index], self._bounds[index + 1])

    def positions(self, layer: int, head: int) -> torch.Tensor:
        """Positions that a layer and kv head keeps, [T] int32, a view."""
        return self.positions_N[self.rows(layer, head)]

    def keys(self, layer: int, head: int) -> torch.Tensor:
        """Un-rotated keys of a layer and kv head, [T, D], as floats."""
        return unpack(Packed(self.keys_ND, self.key_scales_ED), *self._index(layer, head))

    def values(self, layer: int, head: int) -> torch.Tensor:
        """Values of a layer and kv head, [T, D], as floats."""
        return unpack(Packed(self.values_ND, self.value_scales_ED), *self._index(layer, head))

    def pairs(self, rows_K: torch.Tensor, entries_K: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Un-rotated keys and values [K, D] of these of the N rows, as floats. ``entries_K``: which layer and head each
        is of, counted as the rows are."""
        return (
            unpack(Packed(self.keys_ND, self.key_scales_ED), rows_K, entries_K),
            unpack(Packed(self.values_ND, self.value_scales_ED), rows_K, entries_K),
        )

    def _index(self, layer: int, head: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The rows of a layer and kv head, and for each of them which one that is."""
        rows = torch.arange(self.rows(layer, head).start, self.rows(layer, head).stop)
        return rows, torch.full_like(rows, layer * self.counts_LG.shape[1] + head)

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """Every tensor by the name of its field."""
        return {name: getattr(self, name) for name in TENSORS}

    @property
    def num_bytes(self) -> int:
        """Bytes of the tensors' elements."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @cached_property
    def _bounds(self) -> tuple[int, ...]:
        """Where each head's rows begin, and where the last one's end."""
        return (0, *accumulate(self.counts_LG.flatten().tolist()))

    def _require_order(self) -> None:
        """Refuse positions that do not rise within a head; where one head ends and the next begins they may fall."""
        positions = self.positions_N
        stuck = positions[1:] <= positions[:-1]
        stuck[[border - 1 for border in self._bounds if 0 < border < len(positions)]] = False
        if bool(stuck.any()):
            row = int(stuck.nonzero()[0])
            raise ValueError(
                f"positions_N: {int(positions[row + 1])} comes after {int(positions[row])} in one head; "
                "allowed: positions that rise"
            )


TENSORS = tuple(field.name for field in fields(KVBlock) if field.name not in ("identity", "num_tokens", "cost"))
"""The names of a block's tensors."""


def _require(tensor: torch.Tensor, name: str, *, dims: int, dtypes: tuple[torch.dtype, ...]) -> None:
    """Refuse a tensor of a wrong rank, dtype or device, by name."""
    if tensor.ndim != dims:
        raise ValueError(f"{name}: has {tensor.ndim} dimensions; allowed: {dims}")
    if tensor.dtype not in dtypes:
        raise ValueError(f"{name}: is {tensor.dtype}; allowed: {', '.join(map(str, dtypes))}")
    if tensor.device.type != "cpu":
        raise ValueError(f"{name}: lies on {tensor.device}; allowed: cpu (blocks live in host memory)")
