"""Laws of preparing ahead."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing

import pytest

from pipeline.ahead import prepared_ahead
from pipeline.document import Document
from pipeline.errands import Row
from pipeline.prepared import Prepared
from tests.pipeline.fakes import prepared

THREADS = [0, 1, 3]


def documents(count: int) -> Iterator[Row]:
    """So many rows, a part for each two."""
    for number in range(count):
        yield Row(number // 2, prepared(number).document)
        if number % 2:
            yield Row(number // 2, None)


def by_row(document: Document) -> Prepared:
    return prepared(document.source_row)


@pytest.mark.parametrize("num_threads", THREADS)
def test_rows_come_out_in_order_each_with_its_own_document(num_threads: int) -> None:
    for coming, row in zip(prepared_ahead(documents(20), by_row, num_threads), documents(20), strict=True):
        assert coming.row == row
        assert (coming.prepare is None) == (row.document is None)
        if coming.prepare is not None:
            preparation = coming.prepare()
            assert preparation.prepared.document == row.document
            assert preparation.seconds >= 0


@pytest.mark.parametrize("num_threads", THREADS)
def test_no_more_rows_are_asked_for_than_there_are_threads_and_none_by_a_thread(num_threads: int) -> None:
    asked: list[int] = []

    def rows() -> Iterator[Row]:
        for number in range(20):
            assert threading.current_thread() is threading.main_thread()
            asked.append(number)
            yield Row(0, prepared(number).document)

    with closing(prepared_ahead(rows(), by_row, num_threads)) as coming:
        assert asked == []
        for number in range(5):
            next(coming)
            assert len(asked) == number + 1 + num_threads
    assert len(asked) == 5 + num_threads, "what is left is not asked for"


def test_documents_are_prepared_at_the_same_time() -> None:
    """Both must have begun before either can end."""
    meeting = threading.Barrier(2)

    def meet(document: Document) -> Prepared:
        meeting.wait(timeout=30)
        return by_row(document)

    with closing(prepared_ahead(documents(2), meet, 2)) as coming:
        rows = [one.prepare().prepared.document.source_row for one in coming if one.prepare is not None]
    assert rows == [0, 1]


@pytest.mark.parametrize("num_threads", THREADS)
def test_what_preparing_raises_is_raised_where_its_row_comes_out(num_threads: int) -> None:
    def fail(document: Document) -> Prepared:
        if document.source_row == 2:
            raise RuntimeError("broken")
        return by_row(document)

    coming = prepared_ahead(documents(6), fail, num_threads)
    rows = [one for one in coming if one.prepare is not None]
    for number, one in enumerate(rows):
        assert one.prepare is not None
        if number == 2:
            with pytest.raises(RuntimeError, match="broken"):
                one.prepare()
        else:
            one.prepare()


def test_leaving_early_leaves_no_thread_behind() -> None:
    with closing(prepared_ahead(documents(20), by_row, 3)) as coming:
        next(coming)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("prepare")]
