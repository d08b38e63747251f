"""What travels between driver and engines: frozen values, no tensors of the model, no handles.

Invariants: a message holds everything its work needs, so that any engine can do it and do it again;
token ids are tuples of ints, relevance is small float32 numpy arrays; character offsets never leave the
driver. Shapes: R scored probe rows, H retrieval heads, B blocks of the chunk.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray


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
    carried reading all chunks of the document in order."""

    document: str
    chunks: tuple[Chunk, ...]
    probes: tuple[Probe, ...]


@dataclass(frozen=True)
class ChunkRelevance:
    """What one probe saw in one chunk: log-sum-exp of its attention logits per block, [R, H, B] float32.
    ``offered``: half-open token ranges of the chunk whose pairs were kept; None where text is kept instead."""

    block_lse_RHB: NDArray[np.float32]
    offered: tuple[tuple[int, int], ...] | None = None


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


@dataclass(frozen=True)
class Query:
    """One question of one document over what was kept of it. ``sources`` (answers over kept pairs only): the
    encode messages whose stored pairs cover ``runs``; a pair that is gone is computed again from them."""

    document: str
    probe: Probe
    runs: tuple[Run, ...]
    max_new_tokens: int
    sources: tuple[Encode, ...] = ()

    @property
    def reread(self) -> tuple[int, ...]:
        """Token ids of the kept runs, in document order, and the probe behind them."""
        return (*(token for run in self.runs for token in run.token_ids), *self.probe.token_ids)


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
