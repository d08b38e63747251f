"""Documents are prepared in threads, ahead of the driver that wants them.

Four fifths of preparing is the tokenizer, which works without Python's lock (``pipeline.simulation.driver_costs``), so
that a driver with cores of its own feeds more engines. Invariants: rows come out in the order in which they went in;
rows are only asked for in the caller's thread; no more documents are prepared ahead than there are threads; what
preparing raises is raised where its row would have come out.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from pipeline.document import Document
from pipeline.errands import Row
from pipeline.prepared import Prepared


@dataclass(frozen=True)
class Preparation:
    """A prepared document, and the seconds that it took."""

    prepared: Prepared
    seconds: float


@dataclass(frozen=True)
class Coming:
    """A row whose document is prepared by now, or will be when it is asked for (``prepare``; None at a part's end)."""

    row: Row
    prepare: Callable[[], Preparation] | None


def prepared_ahead(rows: Iterator[Row], prepare: Callable[[Document], Prepared], num_threads: int) -> Generator[Coming]:
    """The rows in order, their documents prepared by so many threads; with 0, by the caller when it asks."""
    if not num_threads:
        for row in rows:
            yield Coming(row, None if row.document is None else partial(_timed, prepare, row.document))
        return
    with ThreadPoolExecutor(num_threads, thread_name_prefix="prepare") as threads:
        coming: deque[Coming] = deque()
        try:
            for row in rows:
                ready = None if row.document is None else threads.submit(_timed, prepare, row.document).result
                coming.append(Coming(row, ready))
                if len(coming) > num_threads:
                    yield coming.popleft()
            yield from coming
        except GeneratorExit:  # the caller leaves early
            threads.shutdown(wait=False, cancel_futures=True)
            raise


def _timed(prepare: Callable[[Document], Prepared], document: Document) -> Preparation:
    started_s = time.perf_counter()
    prepared = prepare(document)
    return Preparation(prepared, time.perf_counter() - started_s)
