"""Keys: everything that decides an entry's bytes changes its name; blocks: what does not fit is refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import cache_store.block
from cache_store.block import BlockKey, Identity, KVBlock, digest_tokens
from tests.cache_store.blocks import make_block

IDENTITY = Identity(
    tenant="",
    weights="w",
    tokenizer="t",
    dtype="float32",
    attention="cpu",
    rope='{"theta":10000.0}',
    layers=(0, 3),
    heads=(2, 8),
    scorer='{"kind":"probe"}',
    budget='{"kind":"uniform"}',
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
    monkeypatch.setattr(cache_store.block, "FORMAT_VERSION", cache_store.block.FORMAT_VERSION + 1)
    assert IDENTITY.key() != before


def test_the_canonical_form_stays() -> None:
    """Stores outlive this process: whoever changes the form of a key raises FORMAT_VERSION, and this value."""
    assert IDENTITY.key().hex == "97dfdd4659c7f80d136e5136e7ebd79c40f26e8f9edf374889fc7d5197dd4c79"


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


def test_num_bytes_counts_every_tensor() -> None:
    block = make_block(layers=2, tokens=3, head_dim=4, blocks=2, dtype=torch.bfloat16)
    assert block.num_bytes == 4 * 3 + 2 * (2 * 2 * 3 * 4) * 2 + 4 * (1 * 3 * 2)


@pytest.mark.parametrize(
    ("field", "tensor"),
    [
        ("positions_T", torch.zeros(3, dtype=torch.int64)),
        ("positions_T", torch.zeros(4, dtype=torch.int32)),
        ("positions_T", torch.zeros(3, 1, dtype=torch.int32)),
        ("keys_LGTD", torch.zeros(2, 2, 3, 5)),
        ("keys_LGTD", torch.zeros(2, 2, 3, 4, dtype=torch.float64)),
        ("values_LGTD", torch.zeros(2, 2, 3, 4, dtype=torch.bfloat16)),
        ("values_LGTD", torch.zeros(2, 2, 3)),
        ("lse_RHB", torch.zeros(1, 3, 2, dtype=torch.float16)),
        ("lse_RHB", torch.zeros(1, 3, 2, device="meta")),
    ],
)
def test_a_tensor_that_does_not_fit_is_refused_by_name(field: str, tensor: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=field):
        dataclasses.replace(make_block(), **{field: tensor})  # type: ignore[arg-type]


def test_a_block_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        make_block().lse_RHB = torch.zeros(1, 3, 2)  # type: ignore[misc]
    assert {field.name for field in dataclasses.fields(KVBlock)} == {"key", *make_block().tensors}
