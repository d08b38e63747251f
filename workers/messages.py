"""What travels between driver and engines: frozen values, no tensors of the model, no handles.

Invariants: a message holds everything its work needs, so that any engine can do it and do it again;
token ids are tuples of ints, relevance is small float32 numpy arrays; character offsets never leave the
driver. Shapes: R scored probe rows, H retrieval heads, B blocks of the chunk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Interval = tuple[int, int]
"""Half-open range of positions, in tokens."""


@dataclass(frozen=True)
class Chunk:
    """A run of a document's tokens, encoded in one pass. ``start``: document position of its first token."""

    index: int
    start: int
    token_ids: tuple[int, ...]


@dataclass(frozen=True)
class Probe:
    """A question as the model sees it after the text: its words, the turn's closing, the answer prefix.
    ``scored``: half-open range of ``token_ids`` that is the question's own words."""

    question_id: str
    token_ids: tuple[int, ...]
    scored: tuple[int, int]


@dataclass(frozen=True)
class Encode:
    """Read these chunks of one document with these probes. Isolated reading sends one chunk per message,
    carried reading all chunks of the document in order. ``preface``: tokens read between anchor and chunk, which
    are not themselves scored or kept (a second round reads behind the first one's findings). ``budget_tokens``: the
    document's budget per layer and kv head."""

    document: str
    chunks: tuple[Chunk, ...]
    probes: tuple[Probe, ...]
    budget_tokens: int
    preface: tuple[int, ...] = ()


@dataclass(frozen=True)
class ChunkRelevance:
    """What the job's scorer said of one chunk for one probe: log-masses per block, [R, H, B] float32 (see
    ``scorers.base``). ``offered``: per layer and kv head of the model (row by row, or one entry for all), half-open
    token ranges of the chunk whose pairs were kept; None where text is kept instead."""

    log_RHB: NDArray[np.float32]
    offered: tuple[tuple[Interval, ...], ...] | None = None


@dataclass(frozen=True)
class Encoded:
    """``relevance[c][p]``: chunk c as probe p saw it. ``keys``: hex names of the store entries behind it.
    ``seconds``: engine time; ``cache_hits``: chunks that came from the store instead of the model."""

    relevance: tuple[tuple[ChunkRelevance, ...], ...]
    keys: tuple[str, ...]
    seconds: float
    cache_hits: int


@dataclass(frozen=True)
class Run:
    """Kept tokens: a run of the document, half-open, in document positions, with its token ids."""

    start: int
    token_ids: tuple[int, ...]

    @property
    def stop(self) -> int:
        """Document position behind the last token."""
        return self.start + len(self.token_ids)


def joined(runs: Sequence[Run], separator: tuple[int, ...] = ()) -> tuple[int, ...]:
    """Token ids of runs in document order, with ``separator`` between two that are no neighbours in the document."""
    ids: list[int] = []
    for index, run in enumerate(runs):
        if index and runs[index - 1].stop < run.start:
            ids.extend(separator)
        ids.extend(run.token_ids)
    return tuple(ids)


@dataclass(frozen=True)
class Query:
    """One question of one document over what was kept of it. ``runs``: the kept text, in document order. For answers
    over kept pairs ``kept`` says which pairs, per layer and kv head (``shape`` = (L, G), row by row; 1 where all
    share), and ``sources`` the encode messages whose stored pairs cover them; a pair that is gone is computed again
    from them. ``spread``: None moves them together; a number of positions, the document's, leaves each where it stood.
    ``separator``: token ids put between runs that are no neighbours, where text is read again."""

    document: str
    probe: Probe
    runs: tuple[Run, ...]
    max_new_tokens: int
    sources: tuple[Encode, ...] = ()
    shape: tuple[int, int] = (1, 1)
    kept: tuple[tuple[Interval, ...], ...] = ()
    spread: int | None = None
    separator: tuple[int, ...] = ()

    @property
    def reread(self) -> tuple[int, ...]:
        """Token ids of the kept runs, in document order, and the probe behind them."""
        return (*joined(self.runs, self.separator), *self.probe.token_ids)


@dataclass(frozen=True)
class Ask:
    """Answer these queries in one batch. The plan fixes the batches, so an answer never depends on timing."""

    queries: tuple[Query, ...]


@dataclass(frozen=True)
class Generated:
    """What the model wrote for one query. ``seconds``: engine time of the batch divided by its queries."""

    text: str
    num_tokens: int
    seconds: float


@dataclass(frozen=True)
class Answered:
    """The batch's answers, in the order of its queries."""

    answers: tuple[Generated, ...]


@dataclass(frozen=True)
class WorkError:
    """A failed piece of work, as a value. ``kind`` says whose fault: ``data`` is never retried, ``resource``
    is retried smaller, ``infrastructure`` is retried elsewhere."""

    kind: Literal["data", "resource", "infrastructure"]
    error: str
    message: str
