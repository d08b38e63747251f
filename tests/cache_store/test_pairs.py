"""Laws of how pairs are held: what comes back is what went in, as exactly as the codec says, head by head."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cache_store.pairs import CODECS, PAIR_DTYPES, pack, unpack

every_codec = pytest.mark.parametrize("codec", CODECS)
counts_lists = st.lists(st.integers(0, 5), max_size=4)

# The greatest error, as a share of the greatest magnitude of the head's channel: half a step.
EXACT_TO = {"model": 0.0, "float32": 0.0, "bfloat16": 2**-8, "float16": 2**-11, "int8": 0.5 / 127 + 1e-6}


def everything(counts: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """All rows, and the layer and head that each is of."""
    return torch.arange(sum(counts)), torch.arange(len(counts)).repeat_interleave(
        torch.tensor(counts, dtype=torch.int64)
    )


def test_every_codec_has_its_bound() -> None:
    assert set(EXACT_TO) == set(CODECS)


@every_codec
@settings(max_examples=30, deadline=None)
@given(counts=counts_lists, scale=st.sampled_from([1e-3, 1.0, 100.0]))
def test_what_comes_back_is_as_exact_as_the_codec(codec: str, counts: list[int], scale: float) -> None:
    x_ND = torch.randn(sum(counts), 6) * scale * torch.logspace(-2, 2, 6)
    packed = pack(x_ND, torch.tensor(counts, dtype=torch.int32), codec)
    rows, entries = everything(counts)
    back_ND = unpack(packed, rows, entries)
    assert back_ND.is_floating_point() and back_ND.shape == x_ND.shape
    for index in range(len(counts)):
        own, found = x_ND[entries == index], back_ND[entries == index].float()
        if len(own):
            least = 2.0**-25 if codec == "float16" else 0.0  # half of its least step
            assert bool(((found - own).abs() <= EXACT_TO[codec] * own.abs().amax(dim=0) + least).all())


@every_codec
@pytest.mark.parametrize("dtype", PAIR_DTYPES)
def test_a_head_is_packed_as_if_it_were_alone(codec: str, dtype: torch.dtype) -> None:
    counts = [3, 0, 2]
    x_ND = torch.randn(5, 4).to(dtype)
    rows, entries = everything(counts)
    together = unpack(pack(x_ND, torch.tensor(counts), codec), rows, entries)
    alone = [
        unpack(pack(part, torch.tensor([len(part)]), codec), torch.arange(len(part)), torch.zeros(len(part)).long())
        for part in (x_ND[:3], x_ND[3:])
    ]
    assert torch.equal(together, torch.cat(alone))
    some = torch.tensor([4, 0])
    assert torch.equal(unpack(pack(x_ND, torch.tensor(counts), codec), some, entries[some]), together[some])


@every_codec
def test_packing_again_changes_nothing_and_zeros_stay(codec: str) -> None:
    """An entry that is written, read and written again must not wear out."""
    counts = torch.tensor([4])
    x_ND = torch.randn(4, 3)
    x_ND[:, 1] = 0.0
    rows, entries = everything([4])
    once = unpack(pack(x_ND, counts, codec), rows, entries)
    assert torch.equal(unpack(pack(once, counts, codec), rows, entries), once)
    assert not once[:, 1].any()


def test_what_float16_cannot_hold_is_refused() -> None:
    with pytest.raises(ValueError, match=r"65,504; here is 1e\+05"):
        pack(torch.tensor([[1e5]]), torch.tensor([1]), "float16")


def test_int8_is_a_quarter_of_float32() -> None:
    counts = torch.tensor([500, 500])
    packed = pack(torch.randn(1000, 64), counts, "int8")
    assert packed.rows_ND.nbytes == 64_000 and packed.scales_ED.shape == (2, 64)
