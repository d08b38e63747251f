"""The law of ``Reader``, sat by every implementation, and what Quest promises: bounds that hold, pages that pay."""

from __future__ import annotations

from itertools import accumulate
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from configs import methods
from tests.workers.attention import conftest
from tests.workers.attention.conftest import Sitting
from tests.workers.attention.ragged import assert_close
from tests.workers.kept import READABLES, SCALE, Counting, Kept, attention64, parts_of_rows
from workers import readers
from workers.attention.base import Partial
from workers.attention.cpu import CpuBackend
from workers.pages import PagedSegment, Pages, TopPagesReader
from workers.readers import reader_of
from workers.segments import HeadPart, HeadSegment, Readable, Segment

sitting = conftest.sitting

ENOUGH = 64
SETTINGS: tuple[methods.Reader, ...] = (
    methods.AllReader(),
    methods.TopPagesReader(page_tokens=4, tokens=ENOUGH),
    methods.TopPagesReader(page_tokens=ENOUGH, tokens=ENOUGH),
)
CPU = Sitting(CpuBackend(), torch.device("cpu"), torch.float32)

# Three sequences, two layers, two kv heads; the last pages of most runs are short.
LONG = Kept((((70, 41), (9, 70)), ((65, 16), (0, 20)), ((33, 90), (64, 30))))


def test_every_kind_of_a_job_has_its_reader_and_sits_the_laws() -> None:
    kinds = {model.model_fields["kind"].default for model in get_args(get_args(methods.Reader)[0])}
    assert kinds == set(readers._READERS) == {settings.kind for settings in SETTINGS}


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("kind", READABLES)
@pytest.mark.parametrize("reader", SETTINGS, ids=lambda settings: settings.kind)
def test_what_fits_is_read_whole(sitting: Sitting, reader: methods.Reader, kind: str, shared: bool) -> None:
    kept = Kept.even(ENOUGH) if shared else Kept.even(ENOUGH, 0, 5)
    segment = READABLES[kind](kept.parts(sitting), shared)
    over, q_THD = reader_of(reader)(segment), kept.queries(sitting, 3)
    for layer in (0, 1):
        got, want = (x.attend(sitting.backend, layer, q_THD, (0, 1, 2, 3), SCALE) for x in (over, segment))
        assert torch.equal(got.out_THD, want.out_THD) and torch.equal(got.lse_TH, want.lse_TH)


def test_all_reads_the_segment_itself() -> None:
    segment = READABLES["even"](Kept.even(9).parts(CPU), True)
    assert reader_of(methods.AllReader())(segment) is segment


def best_pages(part: HeadPart, layer: int, q_HD: Tensor, reader: TopPagesReader) -> list[Tensor]:
    """By definition, in float64: which pairs of each kv head one row reads."""
    chosen = []
    for (k_SD, _), q_RD in zip(part[layer], q_HD.chunk(len(part[layer])), strict=True):
        pages = list(torch.split(torch.arange(len(k_SD)), reader.page_tokens))
        bounds = []
        for rows in pages if len(k_SD) > reader.tokens else ():
            keys, queries = k_SD[rows.to(k_SD.device)].double(), q_RD.double()
            products = torch.maximum(queries * keys.amax(0), queries * keys.amin(0))
            bounds.append(float(products.sum(-1).max()))
        if bounds:
            best = sorted(range(len(pages)), key=bounds.__getitem__, reverse=True)
            pages = [pages[page] for page in best[: reader.tokens // reader.page_tokens]]
        chosen.append(torch.cat(pages))
    return chosen


def reduced(part: HeadPart, layer: int, chosen: list[Tensor]) -> HeadPart:
    """The part with nothing but the chosen pairs of one layer."""
    pairs = [
        (keys[rows.to(keys.device)], values[rows.to(keys.device)])
        for (keys, values), rows in zip(part[layer], chosen, strict=True)
    ]
    return [pairs] * (layer + 1)


@pytest.mark.parametrize("row_bounds", [(0, 1, 2, 3), (0, 2, 2, 5)], ids=["step", "rows"])
@pytest.mark.parametrize(("page_tokens", "tokens"), [(4, 16), (16, 16), (5, 33), (1, 8), (16, 64)])
def test_the_best_pages_are_read(sitting: Sitting, page_tokens: int, tokens: int, row_bounds: tuple[int, ...]) -> None:
    """As many tokens as their pages have, and no row more than it may; every row chooses for itself."""
    reader, backend = TopPagesReader(page_tokens, tokens), Counting(sitting.backend)
    parts, q_THD = LONG.parts(sitting), LONG.queries(sitting, row_bounds[-1])
    over = reader.over(HeadSegment.pack(parts))
    for layer in (0, 1):
        whole = parts_of_rows(parts, row_bounds)
        chosen = [best_pages(part, layer, q_HD, reader) for part, q_HD in zip(whole, q_THD, strict=True)]
        got = over.attend(backend, layer, q_THD, row_bounds, SCALE)
        want = attention64([reduced(part, layer, rows) for part, rows in zip(whole, chosen, strict=True)], layer, q_THD)
        assert_close(got, want, sitting)
        if max(len(pairs[0]) for part in parts for pairs in part[layer]) > tokens:
            assert backend.read == [len(heads[head]) for head in range(2) for heads in chosen]
            assert max(backend.read) <= tokens


@pytest.mark.parametrize("kind", READABLES)
def test_pages_of_shared_pairs_are_chosen_by_each_row(kind: str) -> None:
    kept, reader = Kept.even(90, heads=3), TopPagesReader(8, 24)
    parts, q_THD = kept.parts(CPU), kept.queries(CPU, 4)
    got = reader.over(READABLES[kind](parts, True)).attend(CPU.backend, 0, q_THD, (0, 1, 4), SCALE)
    want = attention64([reduced(parts[0], 0, best_pages(parts[0], 0, q_HD, reader)) for q_HD in q_THD], 0, q_THD)
    assert_close(got, want, CPU)


def test_whole_pages_are_read_to_the_last_token_of_the_budget() -> None:
    backend, kept = Counting(CPU.backend), Kept.even(4096, 1024, heads=3)
    over = TopPagesReader(16, 256).over(READABLES["even"](kept.parts(CPU), False))
    over.attend(backend, 0, kept.queries(CPU, 2), (0, 1, 2), SCALE)
    assert backend.read == [256] * 6 and len(backend.calls) == 1


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    lengths=st.lists(st.integers(0, 40), min_size=2, max_size=2),
    page_tokens=st.integers(1, 9),
    spread=st.sampled_from([1e-3, 1.0, 1e3]),
)
def test_a_bound_holds_for_every_key_of_its_page(
    seed: int, lengths: list[int], page_tokens: int, spread: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    keys_SD = torch.randn(sum(lengths), 8, generator=generator) * spread
    q_GTRD = torch.randn(2, 3, 2, 8, generator=generator)
    bounds = (0, *accumulate(lengths))
    pages = Pages.of(keys_SD, bounds, 2, TopPagesReader(page_tokens, page_tokens))
    bound_GTP = pages.bound(q_GTRD)
    slack = 1e-5 * spread * 8
    for head in range(2):
        logits_TS = (q_GTRD[head] @ keys_SD[bounds[head] : bounds[head + 1]].T).amax(1)
        for page, of_page in enumerate(torch.split(logits_TS, page_tokens, dim=1) if lengths[head] else ()):
            assert (bound_GTP[head, :, page, None] >= of_page - slack).all()
            if of_page.shape[1] == 1 and page_tokens == 1:  # a page of one token bounds itself, query by query
                torch.testing.assert_close(bound_GTP[head, :, page], of_page[:, 0], rtol=1e-4, atol=slack)
        assert torch.isneginf(bound_GTP[head, :, -(-lengths[head] // page_tokens) :]).all()


def test_a_page_that_is_not_read_cannot_change_the_result(sitting: Sitting) -> None:
    """NaN in keys and values of all pages but the ones that are read."""
    reader = TopPagesReader(4, 16)
    parts, q_THD = LONG.parts(sitting), LONG.queries(sitting, 3)
    over = reader.over(HeadSegment.pack(parts))
    assert isinstance(over, PagedSegment)

    def read() -> Partial:
        return over.attend(sitting.backend, 0, q_THD, (0, 1, 2, 3), SCALE)

    before = read()
    bounds, hidden = over.whole.bounds[0], torch.ones(len(over.whole.keys[0]), dtype=torch.bool)
    for n, part in enumerate(parts):
        for head, rows in enumerate(best_pages(part, 0, q_THD[n], reader)):
            hidden[bounds[head * 3 + n] + rows] = False
    assert hidden.sum() > 200
    for tensor in (over.whole.keys[0], over.whole.values[0]):
        tensor[hidden.to(tensor.device)] = float("nan")
    assert torch.equal(read().out_THD, before.out_THD)


def test_a_needle_is_found() -> None:
    """One key among 2,000 that a query head points at: its page is read, though a 30th of the pairs is."""
    torch.manual_seed(0)
    keys, values = torch.randn(2000, 2, 32) * 0.1, torch.randn(2000, 2, 32)
    q_THD = torch.randn(1, 6, 32)
    keys[1234, 0] = q_THD[0, 2] * 3  # group 0 is heads 0 to 2
    over = TopPagesReader(16, 64).over(Segment([keys], [values]))
    found = over.attend(CPU.backend, 0, q_THD, (0, 1), 1.0).out_THD
    torch.testing.assert_close(found[0, 2], values[1234, 0], rtol=1e-3, atol=1e-3)


def test_pages_cost_their_extremes() -> None:
    """Two float32 rows for each page of each head."""
    segment = READABLES["even"](Kept.even(64, 64).parts(CPU), False)
    over: Readable = TopPagesReader(16, 32).over(segment)
    assert over.num_bytes - segment.num_bytes == 2 * 4 * 8 * (2 * 2 * 2 * 4)
    assert len(over) == len(segment.by_head()) and over.by_head().num_bytes == segment.num_bytes


def test_less_than_a_page_is_refused() -> None:
    with pytest.raises(ValueError, match=r"answer\.reader\.tokens: 8 is less than one page .*16.*allowed: 16 or more"):
        reader_of(methods.TopPagesReader(page_tokens=16, tokens=8))
