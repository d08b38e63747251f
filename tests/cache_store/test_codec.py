"""The codec's law: a block comes back bit for bit, or ``UnreadableBlock`` is raised; nothing else."""

from __future__ import annotations

import dataclasses
import os
import pickle
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save

import cache_store.codec
from cache_store.block import KVBlock
from cache_store.codec import decode, decode_file, encode, header_end, parse_header
from cache_store.errors import CorruptBlock, OtherVersion
from cache_store.pairs import CODECS
from tests.cache_store.blocks import any_block, make_block, make_key, said_of, same

SMALL = make_block(layers=1, tokens=1, head_dim=1, blocks=1, dtype=torch.bfloat16)


@settings(deadline=None)
@given(any_block)
def test_a_block_comes_back_bit_for_bit(block: KVBlock) -> None:
    content = encode(block)
    assert same(decode(content, block.key), block)
    assert encode(decode(content, block.key)) == content


def test_views_and_shared_memory_are_encoded_as_what_they_show() -> None:
    block = make_block(head_dim=3)
    stacked = torch.randn(3, len(block.keys_ND)).T
    block = dataclasses.replace(block, keys_ND=stacked, values_ND=stacked)
    assert not stacked.is_contiguous()
    assert same(decode(encode(block), block.key), block)


def test_a_decoded_block_does_not_look_into_the_bytes() -> None:
    content = bytearray(encode(SMALL))
    block = decode(bytes(content), SMALL.key)
    content[:] = bytes(len(content))
    assert same(block, SMALL)


def test_every_truncation_is_corrupt() -> None:
    content = encode(SMALL)
    for length in range(len(content)):
        with pytest.raises(CorruptBlock):
            decode(content[:length], SMALL.key)


def test_every_flipped_bit_is_corrupt() -> None:
    content = encode(SMALL)
    for position in range(len(content)):
        for bit in range(8):
            damaged = bytearray(content)
            damaged[position] ^= 1 << bit
            with pytest.raises(CorruptBlock):
                decode(bytes(damaged), SMALL.key)


@settings(max_examples=200, deadline=None)
@given(any_block, st.data())
def test_damage_is_corrupt_or_changes_nothing(block: KVBlock, data: st.DataObject) -> None:
    content = encode(block)
    start = data.draw(st.integers(0, len(content)))
    stop = data.draw(st.integers(start, len(content)))
    damaged = content[:start] + data.draw(st.binary(max_size=16)) + content[stop:]
    try:
        assert same(decode(damaged, block.key), block)
    except CorruptBlock:
        assert damaged != content


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not a block",
        pickle.dumps(SMALL),
        save({"x": torch.zeros(3)}),
        save({"x": torch.zeros(3)}, {"foveate": "x"}),
        save({}, {"foveate": ""}),
        (20).to_bytes(8, "little") + b'{"__metadata__":null}'[:20],
        (21).to_bytes(8, "little") + b'{"__metadata__":null}',
        (2**63).to_bytes(8, "little") + b"{}",
        (4000).to_bytes(8, "little") + b"[" * 4000,
    ],
)
def test_foreign_bytes_are_corrupt(content: bytes) -> None:
    with pytest.raises(CorruptBlock):
        decode(content, SMALL.key)


@pytest.mark.parametrize(
    ("written", "read"), [(b'"dtype":"BF16"', b'"dtype": "F16"'), (b"[5,4]", b"[4,5]")], ids=["dtype", "shape"]
)
def test_bytes_that_would_mean_something_else_are_corrupt(written: bytes, read: bytes) -> None:
    block = make_block(layers=1, dtype=torch.bfloat16)
    content = encode(block)
    assert content.count(written) == 2
    with pytest.raises(CorruptBlock, match="checksum mismatch in keys_ND, values_ND"):
        decode(content.replace(written, read), block.key)


def test_another_keys_block_is_corrupt() -> None:
    with pytest.raises(CorruptBlock, match=SMALL.key.hex):
        decode(encode(SMALL), make_key(1))


def test_an_intact_block_of_another_version_is_told_from_a_damaged_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_store.codec, "FORMAT_VERSION", 999)
    content = encode(SMALL)
    monkeypatch.undo()
    with pytest.raises(OtherVersion, match="version 999") as told:
        decode(content, SMALL.key)
    assert told.value.version == 999
    assert str(pickle.loads(pickle.dumps(told.value))) == str(told.value)
    with pytest.raises(CorruptBlock):
        decode(content[:-1], SMALL.key)


def test_a_file_that_version_1_wrote_is_of_another_version() -> None:
    """Written by the code of that version, whose tensors had other names and shapes."""
    content = Path(__file__).with_name("version_1.safetensors").read_bytes()
    with pytest.raises(OtherVersion, match="format version 1; this one reads 4"):
        decode(content, make_key(0))


def test_the_file_is_plain_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "block.safetensors"
    path.write_bytes(encode(SMALL))
    with safe_open(path, framework="pt") as file:
        assert set(file.keys()) == set(SMALL.tensors)
        assert f'"weights": "{SMALL.identity.weights}"' in file.metadata()["foveate"]


@pytest.mark.parametrize("codec", CODECS)
def test_a_file_is_read_whole_or_layer_by_layer(tmp_path: Path, codec: str) -> None:
    block = make_block(layers=4, codec=codec)
    path = tmp_path / "block.safetensors"
    path.write_bytes(encode(block))
    assert same(decode_file(path, block.key), block)
    some = decode_file(path, block.key, range(1, 3))
    assert said_of(some) == said_of(block) and torch.equal(some.scores_RHB, block.scores_RHB)
    for layer in range(4):
        for head in range(2):
            for name in ("positions", "keys", "values"):
                mine, whole = (getattr(one, name)(layer, head) for one in (some, block))
                assert torch.equal(mine.view(torch.uint8), (whole if layer in (1, 2) else whole[:0]).view(torch.uint8))


def test_what_becomes_of_a_file_later_changes_no_block(tmp_path: Path) -> None:
    """Mapped, it would end the process."""
    path = tmp_path / "block.safetensors"
    path.write_bytes(encode(SMALL))
    blocks = [decode_file(path, SMALL.key, layers) for layers in (None, range(2))]
    os.truncate(path, 0)
    assert all(same(block, SMALL) for block in blocks)


def test_damage_in_a_layer_that_nobody_wants_is_nobodys_business(tmp_path: Path) -> None:
    """And every flipped bit of what is wanted is corrupt, as in a whole block."""
    block = make_block(layers=2, tokens=3, head_dim=1, blocks=1, dtype=torch.bfloat16)
    content, path = encode(block), tmp_path / "block.safetensors"
    outcomes = set()
    for position in range(len(content)):
        damaged = bytearray(content)
        damaged[position] ^= 1
        path.write_bytes(damaged)
        for layers in (range(0, 1), range(1, 2)):
            try:
                decode_file(path, block.key, layers)
            except CorruptBlock:
                outcomes.add((position, layers.start))
    spared = {(position, layer) for position in range(len(content)) for layer in (0, 1)} - outcomes
    assert {layer for _, layer in spared} == {0, 1}
    assert all((position, 1 - layer) in outcomes for position, layer in spared), "each byte is somebody's"


def test_a_header_says_whose_an_entry_is_from_its_first_bytes_alone() -> None:
    content = encode(SMALL)
    head = content[: header_end(content[:8])]
    assert said_of(parse_header(head, len(content), SMALL.key)) == said_of(SMALL)
    assert said_of(parse_header(head + b"x", len(content), SMALL.key)) == said_of(SMALL)
    with pytest.raises(CorruptBlock, match=SMALL.key.hex):
        parse_header(head, len(content), make_key(1))
    for num_bytes in (len(head), len(content) - 1, len(content) + 1):
        with pytest.raises(CorruptBlock, match=f"{num_bytes:,} bytes, where its header speaks of {len(content):,}"):
            parse_header(head, num_bytes, SMALL.key)
    for damaged in (b"", head[:7], head[:-1], b"x" * 100):
        with pytest.raises(CorruptBlock):
            parse_header(damaged, len(content), SMALL.key)
