"""The law of ``Readable``, sat by every implementation on every backend: attention over the sequence's own pairs."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.workers.attention import conftest
from tests.workers.attention.conftest import Sitting
from tests.workers.attention.ragged import assert_close
from tests.workers.kept import RAGGED, READABLES, SCALE, Counting, Kept, attention64, parts_of_rows
from workers.attention.base import merge
from workers.segments import HeadPart, HeadSegment, Readable, Segment, concatenate

sitting = conftest.sitting
every_readable = pytest.mark.parametrize("kind", READABLES)
every_ragged = pytest.mark.parametrize("kind", RAGGED)

RAGGEDLY = Kept((((5, 0, 9), (1, 2, 3)), ((0, 0, 4), (30, 0, 0)), ((7, 7, 7), (0, 11, 2))))


@pytest.mark.parametrize("row_bounds", [(0, 1, 2, 3), (0, 2, 2, 5), (0, 20, 21, 40)], ids=["step", "idle", "prompts"])
@every_readable
def test_each_sequence_reads_its_own(sitting: Sitting, kind: str, row_bounds: tuple[int, ...]) -> None:
    kept = Kept.even(9, 0, 4)
    parts, q_THD = kept.parts(sitting), kept.queries(sitting, row_bounds[-1])
    segment = READABLES[kind](parts, False)
    for layer in (0, 1):
        got = segment.attend(sitting.backend, layer, q_THD, row_bounds, SCALE)
        assert_close(got, attention64(parts_of_rows(parts, row_bounds), layer, q_THD), sitting)


@every_readable
def test_what_is_shared_is_read_by_all(sitting: Sitting, kind: str) -> None:
    kept = Kept.even(11)
    parts, q_THD = kept.parts(sitting), kept.queries(sitting, 6)
    segment = READABLES[kind](parts, True)
    got = segment.attend(sitting.backend, 1, q_THD, (0, 1, 4, 4, 6), SCALE)
    assert_close(got, attention64(parts * 6, 1, q_THD), sitting)


@every_ragged
def test_every_head_reads_its_own(sitting: Sitting, kind: str) -> None:
    parts, row_bounds = RAGGEDLY.parts(sitting), (0, 1, 2, 3)
    q_THD = RAGGEDLY.queries(sitting, 3)
    segment = RAGGED[kind](parts, False)
    for layer in (0, 1):
        got = segment.attend(sitting.backend, layer, q_THD, row_bounds, SCALE)
        assert_close(got, attention64(parts_of_rows(parts, row_bounds), layer, q_THD), sitting)


@every_ragged
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_every_head_reads_its_own_of_any_lengths(sitting: Sitting, kind: str, data: st.DataObject) -> None:
    heads, group, layers = (data.draw(st.integers(1, 3)) for _ in range(3))
    layer = st.tuples(*[st.integers(0, 9)] * heads)
    kept = Kept(tuple(data.draw(st.lists(st.tuples(*[layer] * layers), min_size=1, max_size=3))))
    rows = data.draw(st.lists(st.integers(0, 3), min_size=len(kept.lengths), max_size=len(kept.lengths)))
    row_bounds = tuple(sum(rows[:n]) for n in range(len(rows) + 1))
    parts, q_THD = kept.parts(sitting), kept.queries(sitting, row_bounds[-1], group)
    segment = RAGGED[kind](parts, False)
    got = segment.attend(sitting.backend, layers - 1, q_THD, row_bounds, SCALE)
    assert got.out_THD.shape == q_THD.shape and got.lse_TH.shape == q_THD.shape[:2]
    if row_bounds[-1]:
        assert_close(got, attention64(parts_of_rows(parts, row_bounds), layers - 1, q_THD), sitting)


@every_ragged
def test_a_head_without_pairs_is_nothing_to_a_merge(sitting: Sitting, kind: str) -> None:
    """In sequence 0 the second kv head keeps nothing in layer 0: query heads 3 to 5."""
    q_THD = RAGGEDLY.queries(sitting, 3)
    got = RAGGED[kind](RAGGEDLY.parts(sitting), False).attend(sitting.backend, 0, q_THD, (0, 1, 2, 3), SCALE)
    assert torch.isneginf(got.lse_TH[0, 3:6]).all() and not got.out_THD[0, 3:6].any()
    other = Kept.even(5, heads=3).parts(sitting, seed=7)
    alone = HeadSegment.shared(other[0]).attend(sitting.backend, 0, q_THD, (0, 1, 2, 3), SCALE)
    merged = merge(got, alone)
    assert torch.equal(merged.out_THD[0, 3:6], alone.out_THD[0, 3:6])


def _check_last(segment: Readable, parts: list[HeadPart], sequence: int) -> None:
    """The last few, all, and more than all pairs of every run of a sequence."""
    part = parts[sequence if len(parts) > 1 else 0]
    assert segment.num_positions(sequence) == max(len(keys) for layer in part for keys, _ in layer)
    for layer, heads in enumerate(part):
        for head, (keys_SD, values_SD) in enumerate(heads):
            for count in (0, 1, 4, len(keys_SD), 100):
                keys, values = segment.last(layer, head, sequence, count)
                first = max(0, len(keys_SD) - count)
                assert torch.equal(keys, keys_SD[first:]) and torch.equal(values, values_SD[first:])


@pytest.mark.parametrize("shared", [False, True])
@every_readable
def test_a_segment_gives_the_last_pairs_of_each_sequence(sitting: Sitting, kind: str, shared: bool) -> None:
    kept = Kept.even(9) if shared else Kept.even(9, 0, 4)
    parts = kept.parts(sitting)
    for sequence in range(3):
        _check_last(READABLES[kind](parts, shared), parts, sequence)


@every_ragged
def test_a_segment_takes_the_positions_of_its_longest_head(sitting: Sitting, kind: str) -> None:
    """Of a sequence, in whichever layer: 9, 30 and 11 here."""
    parts = RAGGEDLY.parts(sitting)
    segment = RAGGED[kind](parts, False)
    assert [segment.num_positions(sequence) for sequence in range(3)] == [9, 30, 11]
    for sequence in range(3):
        _check_last(segment, parts, sequence)


@pytest.mark.parametrize("shared", [False, True])
@every_readable
def test_by_head_is_the_same_segment(sitting: Sitting, kind: str, shared: bool) -> None:
    kept = Kept.even(13) if shared else Kept.even(13, 2)
    segment = READABLES[kind](kept.parts(sitting), shared)
    q_THD = kept.queries(sitting, 2)
    one, other = (x.attend(sitting.backend, 0, q_THD, (0, 1, 2), SCALE) for x in (segment, segment.by_head()))
    assert_close(one, other, sitting)


def test_keys_that_lie_head_by_head_are_not_copied(sitting: Sitting) -> None:
    """As a model leaves them: [S, G, D] views of [G, S, D]."""
    [x_GSD] = torch.randn(1, 3, 40, 8).to(sitting.device, sitting.dtype)
    segment = Segment([x_GSD.transpose(0, 1)], [x_GSD.transpose(0, 1)])
    assert segment.by_head().keys[0].data_ptr() == x_GSD.data_ptr()


@pytest.mark.parametrize("shared", [False, True])
@every_ragged
def test_a_layer_is_one_call(sitting: Sitting, kind: str, shared: bool) -> None:
    parts = RAGGEDLY.parts(sitting)
    backend = Counting(sitting.backend)
    RAGGED[kind](parts, shared).attend(backend, 0, RAGGEDLY.queries(sitting, 3), (0, 1, 2, 3), SCALE)
    assert len(backend.calls) == 1


@every_readable
def test_rows_of_another_number_of_sequences_are_refused(sitting: Sitting, kind: str) -> None:
    kept = Kept.even(9, 4)
    segment = READABLES[kind](kept.parts(sitting), False)
    with pytest.raises(ValueError, match=r"want as many"):
        segment.attend(sitting.backend, 0, kept.queries(sitting, 3), (0, 1, 2, 3), SCALE)


@every_readable
def test_what_holds_nothing_is_empty(sitting: Sitting, kind: str) -> None:
    segment = READABLES[kind](Kept.even(0, 0).parts(sitting), False)
    assert len(segment) == 0 and segment.num_bytes == 0


def test_bytes_are_those_of_the_pairs_that_each_head_kept(sitting: Sitting) -> None:
    num_pairs = sum(count for part in RAGGEDLY.lengths for layer in part for count in layer)
    segment = HeadSegment.pack(RAGGEDLY.parts(sitting))
    assert len(segment) == num_pairs
    assert segment.num_bytes == num_pairs * 2 * RAGGEDLY.head_dim * sitting.dtype.itemsize


def test_concatenated_segments_are_read_as_one(sitting: Sitting) -> None:
    kept = Kept.even(9)
    first, second = (READABLES["even"](kept.parts(sitting, seed), True) for seed in (0, 1))
    assert isinstance(first, Segment) and isinstance(second, Segment)
    q_THD, rows = kept.queries(sitting, 2), (0, 2)
    joined = concatenate([first, second]).attend(sitting.backend, 1, q_THD, rows, SCALE)
    apart = [segment.attend(sitting.backend, 1, q_THD, rows, SCALE) for segment in (first, second)]
    assert_close(joined, merge(*apart), sitting, slack=2)
    assert concatenate([first, second], (0, 9, 18)).bounds == (0, 9, 18)
