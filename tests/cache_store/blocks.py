"""Small blocks for tests, and what it means for two of them to be the same: every bit, NaNs included."""

from __future__ import annotations

import math

import torch
from blake3 import blake3
from hypothesis import strategies as st

from cache_store.block import PAIR_DTYPES, BlockKey, HeadPairs, KVBlock


def make_key(number: int) -> BlockKey:
    """One of many keys."""
    return BlockKey(blake3(str(number).encode()).digest())


def make_block(
    key: int = 0,
    version: int = 0,
    *,
    layers: int = 2,
    tokens: int = 3,
    head_dim: int = 4,
    blocks: int = 2,
    dtype: torch.dtype = torch.float32,
) -> KVBlock:
    """A block of random bits (some of them NaN), decided by ``key`` and ``version``; two kv heads, which keep
    ``tokens`` or up to two fewer: the same for every key and version."""
    generator = torch.Generator().manual_seed(key * 1000 + version)

    def bits(*shape: int, dtype: torch.dtype) -> torch.Tensor:
        num_bytes = math.prod(shape) * dtype.itemsize
        flat = torch.randint(256, (num_bytes,), dtype=torch.uint8, generator=generator)
        return flat.view(dtype).reshape(shape)

    counts = [[max(0, tokens - (layer + head) % 3) for head in range(2)] for layer in range(layers)]
    heads = [
        [
            HeadPairs(
                torch.randperm(4 * count, generator=generator)[:count].sort().values,
                bits(count, head_dim, dtype=dtype),
                bits(count, head_dim, dtype=dtype),
            )
            for count in layer
        ]
        for layer in counts
    ]
    return KVBlock.of_heads(make_key(key), heads, bits(1, 3, blocks, dtype=torch.float32))


def same(one: KVBlock | None, other: KVBlock | None) -> bool:
    """Whether two blocks have the same key, shapes, dtypes and bits."""
    if one is None or other is None:
        return one is other
    return one.key == other.key and all(
        mine.dtype == theirs.dtype
        and mine.shape == theirs.shape
        and torch.equal(mine.contiguous().view(torch.uint8), theirs.contiguous().view(torch.uint8))
        for mine, theirs in zip(one.tensors.values(), other.tensors.values(), strict=True)
    )


any_block = st.builds(
    make_block,
    key=st.integers(0, 9),
    version=st.integers(0, 999),
    layers=st.integers(0, 2),
    tokens=st.integers(0, 5),
    head_dim=st.integers(1, 4),
    blocks=st.integers(0, 3),
    dtype=st.sampled_from(PAIR_DTYPES),
)
