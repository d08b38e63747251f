"""Small blocks for tests, and what it means for two of them to be the same: every bit, NaNs included."""

from __future__ import annotations

import math

import torch
from hypothesis import strategies as st

from cache_store.block import Entry, HeadPairs, KVBlock
from cache_store.codec import Header
from cache_store.identity import BlockKey, Identity
from cache_store.pairs import CODECS, PAIR_DTYPES


def make_identity(number: int, codec: str = "model") -> Identity:
    """One of many; ``number`` is its chunk."""
    return Identity(
        tenant="",
        weights="weights",
        tokenizer="tokenizer",
        dtype="torch.float32",
        attention="cpu",
        rope="{}",
        layers=(0, 2),
        heads=(2, 4),
        reading="{}",
        scorer="{}",
        budget="",
        codec=codec,
        question=None,
        chunk=str(number),
        context="",
    )


def make_key(number: int) -> BlockKey:
    """One of many keys."""
    return make_identity(number).key()


def make_block(
    key: int = 0,
    version: int = 0,
    *,
    layers: int = 2,
    tokens: int = 3,
    head_dim: int = 4,
    blocks: int = 2,
    dtype: torch.dtype = torch.float32,
    codec: str = "model",
    cost: int = 100,
) -> KVBlock:
    """A block of random bits (some of them NaN, but for a codec that computes), decided by ``key`` and ``version``;
    two kv heads, which keep ``tokens`` or up to two fewer: the same for every key and version."""
    generator = torch.Generator().manual_seed(key * 1000 + version)

    def bits(*shape: int, dtype: torch.dtype) -> torch.Tensor:
        num_bytes = math.prod(shape) * dtype.itemsize
        if codec != "model":
            return torch.randn(shape, generator=generator).to(dtype)
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
    scores_RHB = bits(1, 3, blocks, dtype=torch.float32)
    return KVBlock.of_heads(Entry(make_identity(key, codec), 4 * tokens + 1, cost, scores_RHB), heads)


def same(one: KVBlock | None, other: KVBlock | None) -> bool:
    """Whether two blocks have the same identity, numbers, shapes, dtypes and bits."""
    if one is None or other is None:
        return one is other
    return said_of(one) == said_of(other) and all(
        mine.dtype == theirs.dtype
        and mine.shape == theirs.shape
        and torch.equal(mine.contiguous().view(torch.uint8), theirs.contiguous().view(torch.uint8))
        for mine, theirs in zip(one.tensors.values(), other.tensors.values(), strict=True)
    )


def said_of(block: KVBlock | Header) -> tuple[Identity, int, int]:
    """What a block is, but for its tensors; of a header, of which block it is."""
    return block.identity, block.num_tokens, block.cost


any_block = st.builds(
    make_block,
    key=st.integers(0, 9),
    version=st.integers(0, 999),
    layers=st.integers(0, 2),
    tokens=st.integers(0, 5),
    head_dim=st.integers(1, 4),
    blocks=st.integers(0, 3),
    dtype=st.sampled_from(PAIR_DTYPES),
    codec=st.sampled_from(CODECS),
    cost=st.integers(1, 9000),
)
