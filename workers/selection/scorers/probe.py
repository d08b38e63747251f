"""The question's own attention, as its retrieval heads pay it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from workers.selection.lexical import bm25
from workers.selection.profile import Profile
from workers.selection.relevance import block_shares, with_neighbours
from workers.selection.scorers.base import ChunkScores, LayerView, Observer


@dataclass(frozen=True)
class ProbeScorer:
    """Attention of the question's tokens over the chunk, in the calibrated retrieval heads only.

    Most heads attend to position or syntax; a few retrieve (Wu et al. 2024, "Retrieval Head Mechanistically
    Explains Long-Context Factuality"). Reports the log-sum-exp of the logits per word of the question, head
    and block, [R, h, B]; ``relevance`` merges them. One scale for all layers and heads. The logarithm of a block's
    share gains ``lexical`` times its BM25 score, heard by neighbours as attention is.
    """

    profile: Profile
    lexical: float = 0.0
    observer: ClassVar[Observer] = "probe"
    reads_hidden: ClassVar[bool] = False

    @property
    def reads_text(self) -> bool:
        """Where words count."""
        return self.lexical > 0

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers that hold a retrieval head."""
        return tuple(sorted({layer for layer, _ in self.profile.heads}))

    @property
    def record(self) -> dict[str, object]:
        """As ``Scorer.record``."""
        return {"kind": "probe", "profile": self.profile.digest, "lexical": self.lexical}

    def rows(self, scored: tuple[int, int], num_tokens: int) -> range:
        """The rows that calibration found to score best."""
        return self.profile.scored_rows(scored, num_tokens)

    def score(self, view: LayerView) -> Tensor:
        """[R, h, B] for the h retrieval heads of this layer."""
        heads = [head for layer, head in self.profile.heads if layer == view.layer]
        return view.per_block(view.logits(heads))

    def settle(self, chunks: Sequence[ChunkScores]) -> list[NDArray[np.float64]]:
        """One share [1, 1, B] for all layers and heads."""
        shares = block_shares([chunk.log_RHB for chunk in chunks])
        if self.reads_text:
            [matches_B] = with_neighbours(
                bm25([text for chunk in chunks for text in chunk.texts_B], chunks[0].question)[None]
            )
            favoured_B = np.concatenate(shares) * np.exp(self.lexical * (matches_B - matches_B.max()))
            shares = np.split(favoured_B / favoured_B.sum(), np.cumsum([len(share_B) for share_B in shares])[:-1])
        return [share_B[None, None] for share_B in shares]
