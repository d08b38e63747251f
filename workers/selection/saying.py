"""What a scorer said of a chunk, with everything it settles it by: the one place where numbers meet places and words.

Engine and driver both settle (a chunk's offer, a document's choice), so both make their ``ChunkScores`` here.

Shapes: R rows, H columns of scores, B blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from workers.messages import Chunk, Probe
from workers.selection.scorers.base import ChunkScores, Scorer


@dataclass(frozen=True)
class Saying:
    """For one scorer and size of block. ``decode``: tokens as text."""

    scorer: Scorer
    block_tokens: int
    decode: Callable[[Sequence[int]], str]

    def texts(self, chunk: Chunk) -> tuple[str, ...]:
        """Each block of a chunk as text; empty where the scorer reads none. The same for every question."""
        if not self.scorer.reads_text:
            return ()
        ids, size = chunk.token_ids, self.block_tokens
        return tuple(self.decode(ids[start : start + size]) for start in range(0, len(ids), size))

    def of(self, log_RHB: NDArray[np.float32], chunk: Chunk, texts_B: tuple[str, ...], probe: Probe) -> ChunkScores:
        """What was said of a chunk for one question; ``texts_B``: of ``texts``."""
        extent = (chunk.start, chunk.start + len(chunk.token_ids))
        question = self.decode(probe.token_ids[slice(*probe.scored)]) if self.scorer.reads_text else ""
        return ChunkScores(log_RHB, extent, self.block_tokens, texts_B, question)
