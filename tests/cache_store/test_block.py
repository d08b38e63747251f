"""Keys: everything that decides an entry's bytes changes its name; blocks: what does not fit is refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import cache_store.identity
from cache_store.block import Entry, HeadPairs, KVBlock
from cache_store.codec import encode
from cache_store.identity import BlockKey, Identity, digest_tenant, digest_tokens
from cache_store.pairs import PAIR_DTYPES
from tests.cache_store.blocks import make_block, make_identity

IDENTITY = Identity(
    tenant="",
    weights="w",
    tokenizer="t",
    dtype="float32",
    attention="cpu",
    rope='{"theta":10000.0}',
    layers=(0, 3),
    heads=(2, 8),
    reading='{"pattern":"dense"}',
    scorer='{"kind":"probe"}',
    budget='{"kind":"uniform"}',
    codec="model",
    question=None,
    chunk="c",
    context="x",
)


def changes(value: Any) -> Sequence[Any]:
    """Other values of a field, all different."""
    if value is None:
        return ("", "None", "q")
    if isinstance(value, tuple):
        return ((value[0] + 1, value[1]), (value[0], value[1] + 1), (value[1], value[0]))
    return (value + "1", "2" + value, value + "\ud800", value + "\x00")


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Identity)])
def test_every_field_alone_changes_the_key(field: str) -> None:
    values = changes(getattr(IDENTITY, field))
    keys = {dataclasses.replace(IDENTITY, **{field: value}).key() for value in values}
    assert len(keys | {IDENTITY.key()}) == len(values) + 1


def test_equal_identities_have_equal_keys() -> None:
    assert dataclasses.replace(IDENTITY).key() == IDENTITY.key()


def test_values_do_not_run_into_each_other() -> None:
    one = dataclasses.replace(IDENTITY, tenant="ab", weights="c")
    other = dataclasses.replace(IDENTITY, tenant="a", weights="bc")
    swapped = dataclasses.replace(IDENTITY, tenant="c", weights="ab")
    assert len({one.key(), other.key(), swapped.key()}) == 3


def test_the_format_version_changes_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    before = IDENTITY.key()
    monkeypatch.setattr(cache_store.identity, "FORMAT_VERSION", cache_store.identity.FORMAT_VERSION + 1)
    assert IDENTITY.key() != before


def test_the_canonical_form_stays() -> None:
    """Stores outlive this process: whoever changes the form of a key raises FORMAT_VERSION, and this value."""
    assert IDENTITY.key().hex == "5f9d0d83ef539f2355cf658c76748436fc4473e14c5cf5abe148278e40fa8f65"


def test_an_identity_without_canonical_form_is_refused() -> None:
    with pytest.raises(TypeError, match=r"1\.5 is a float"):
        dataclasses.replace(IDENTITY, chunk=1.5).key()  # type: ignore[arg-type]


def test_hex_comes_back_as_the_same_key() -> None:
    key = IDENTITY.key()
    assert BlockKey.from_hex(key.hex) == key
    assert hash(BlockKey.from_hex(key.hex)) == hash(key)


@pytest.mark.parametrize("text", ["", "ab", "G" * 64, "A" * 64, "a" * 63, "a" * 65, "a" * 64 + "\n", " " + "a" * 63])
def test_what_is_not_a_key_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="block key"):
        BlockKey.from_hex(text)


@pytest.mark.parametrize("digest", [b"", b"a" * 31, "a" * 32])
def test_a_key_has_32_bytes(digest: Any) -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        BlockKey(digest)


runs = st.lists(st.lists(st.integers(-(2**31), 2**31 - 1), max_size=3), max_size=3)


@settings(deadline=None)
@given(runs, runs)
def test_runs_of_tokens_are_told_apart(one: list[list[int]], other: list[list[int]]) -> None:
    assert (digest_tokens(*one) == digest_tokens(*other)) == (one == other)


def test_a_border_between_runs_counts() -> None:
    assert len({digest_tokens(*run) for run in [((1, 2), (3,)), ((1,), (2, 3)), ((1, 2, 3),), ((1, 2, 3), ())]}) == 4


@pytest.mark.parametrize("token", [2**31, -(2**31) - 1])
def test_a_token_beyond_32_bits_is_refused(token: int) -> None:
    with pytest.raises(ValueError, match=str(token)):
        digest_tokens((1, token))


def test_a_tenant_is_named_without_its_salt() -> None:
    names = {digest_tenant(salt) for salt in ("", "a", "b")}
    assert len(names) == 3 and digest_tenant("") == ""
    assert all("secret" not in digest_tenant(salt) for salt in ("secret", "secret2"))


def test_num_bytes_counts_every_tensor() -> None:
    block = make_block(layers=2, tokens=3, head_dim=4, blocks=2, dtype=torch.bfloat16)
    assert block.counts_LG.tolist() == [[3, 2], [2, 1]]
    assert block.num_bytes == 4 * 4 + 4 * 8 + 2 * (8 * 4) * 2 + 4 * (1 * 3 * 2)


def pairs_of(block: KVBlock, layer: int, head: int) -> HeadPairs:
    return HeadPairs(block.positions(layer, head), block.keys(layer, head), block.values(layer, head))


@pytest.mark.parametrize("dtype", PAIR_DTYPES)
@pytest.mark.parametrize(("layer", "head"), [(0, 0), (1, 1)])
def test_what_a_head_drops_is_what_the_bytes_shrink_by(layer: int, head: int, dtype: torch.dtype) -> None:
    """A position, a key and a value for each token dropped, in memory and in the file behind its header."""
    whole = make_block(tokens=40, head_dim=8, dtype=dtype)
    heads = [[pairs_of(whole, 0, 0), pairs_of(whole, 0, 1)], [pairs_of(whole, 1, 0), pairs_of(whole, 1, 1)]]
    entry = Entry(whole.identity, whole.num_tokens, whole.cost, whole.scores_RHB)
    for kept in (30, 1, 0):
        heads[layer][head] = HeadPairs(*(tensor[:kept] for tensor in heads[layer][head]))
        less = KVBlock.of_heads(entry, heads)
        dropped = int(whole.counts_LG[layer, head]) - kept
        assert whole.num_bytes - less.num_bytes == dropped * (4 + 2 * 8 * dtype.itemsize)
        content = encode(less)
        assert len(content) - 8 - int.from_bytes(content[:8], "little") == less.num_bytes


counts = st.integers(1, 3).flatmap(lambda heads: st.lists(st.lists(st.integers(0, 4), min_size=heads, max_size=heads)))


@settings(deadline=None)
@given(counts)
def test_every_head_reads_back_its_own_rows(counts: list[list[int]]) -> None:
    def pairs(layer: int, head: int, count: int) -> HeadPairs:
        mark = float(10 * layer + head)
        return HeadPairs(
            torch.arange(count, dtype=torch.int32), torch.full((count, 2), mark), torch.full((count, 2), -mark)
        )

    heads = [[pairs(layer, head, count) for head, count in enumerate(row)] for layer, row in enumerate(counts)]
    block = KVBlock.of_heads(Entry(make_identity(0), 4, 4, torch.zeros(1, 1, 1)), heads)
    assert block.counts_LG.tolist() == counts
    assert len(block.positions_N) == len(block.keys_ND) == len(block.values_ND) == sum(map(sum, counts))
    for layer, row in enumerate(heads):
        for head, kept in enumerate(row):
            assert all(map(torch.equal, pairs_of(block, layer, head), kept))


@pytest.mark.parametrize(("layer", "head"), [(2, 0), (0, 2), (-1, 0), (0, -1)])
def test_a_head_that_a_block_does_not_have_is_refused(layer: int, head: int) -> None:
    with pytest.raises(IndexError, match=f"layer {layer}, head {head}: the block has 2 layers of 2 kv heads"):
        make_block().rows(layer, head)


def test_scores_alone_are_a_block() -> None:
    block = KVBlock.of_heads(Entry(make_identity(0), 1, 1, torch.ones(1, 3, 2)), [])
    assert block.counts_LG.shape[0] == 0 and len(block.positions_N) == len(block.keys_ND) == 0
    assert block.num_bytes == 4 * 6


# ``make_block()`` keeps [[3, 2], [2, 1]] tokens of 13: N is 8.
@pytest.mark.parametrize(
    ("field", "tensor"),
    [
        ("counts_LG", torch.tensor([[3, 2], [2, 1]])),
        ("counts_LG", torch.tensor([3, 2, 2, 1], dtype=torch.int32)),
        ("counts_LG", torch.tensor([[4, 2], [2, -1]], dtype=torch.int32)),
        ("counts_LG", torch.tensor([[3, 2], [2, 2]], dtype=torch.int32)),
        ("positions_N", torch.zeros(8, dtype=torch.int64)),
        ("positions_N", torch.arange(9, dtype=torch.int32)),
        ("positions_N", torch.arange(8, dtype=torch.int32)[:, None]),
        ("positions_N", torch.tensor([0, 2, 1, 0, 1, 0, 1, 0], dtype=torch.int32)),
        ("positions_N", torch.tensor([0, 1, 2, 0, 1, 3, 3, 0], dtype=torch.int32)),
        ("positions_N", torch.tensor([0, 1, 12, 0, 1, 3, 13, 0], dtype=torch.int32)),
        ("positions_N", torch.tensor([-1, 1, 2, 0, 1, 3, 4, 0], dtype=torch.int32)),
        ("keys_ND", torch.zeros(8, 5)),
        ("keys_ND", torch.zeros(7, 4)),
        ("keys_ND", torch.zeros(8, 4, dtype=torch.float64)),
        ("values_ND", torch.zeros(8, 4, dtype=torch.bfloat16)),
        ("values_ND", torch.zeros(8, 4, 1)),
        ("values_ND", torch.zeros(7, 4)),
        ("key_scales_ED", torch.ones(4, 4)),
        ("value_scales_ED", torch.ones(0, 5)),
        ("scores_RHB", torch.zeros(1, 3, 2, dtype=torch.float16)),
        ("scores_RHB", torch.zeros(1, 3, 2, device="meta")),
    ],
)
def test_a_tensor_that_does_not_fit_is_refused_by_name(field: str, tensor: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=field):
        dataclasses.replace(make_block(), **{field: tensor})  # type: ignore[arg-type]


def test_positions_start_again_with_every_head() -> None:
    positions = torch.tensor([5, 6, 7, 0, 7, 7, 8, 1], dtype=torch.int32)
    block = dataclasses.replace(make_block(), positions_N=positions)
    assert [block.positions(*place).tolist() for place in product((0, 1), repeat=2)] == [[5, 6, 7], [0, 7], [7, 8], [1]]


def test_a_block_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        make_block().scores_RHB = torch.zeros(1, 3, 2)  # type: ignore[misc]
    assert {field.name for field in dataclasses.fields(KVBlock)} == {
        "identity",
        "num_tokens",
        "cost",
        *make_block().tensors,
    }
