"""The question's attention over an index: retrieval heads' keys that were kept of every token, long before it came."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from workers.selection.scorers.base import Observer
from workers.selection.scorers.probe import ProbeScorer


@dataclass(frozen=True)
class IndexScorer(ProbeScorer):
    """What ``probe`` is to a chunk that was just read, this is to one that was read for nobody: its retrieval heads'
    keys are an index (``workers.index``), and the question's queries are computed without the chunk before them.

    Cheaper by far to keep than pairs (a few heads' keys, no values) and to ask than to read: retrieval by attention as
    in Memorizing Transformers (Wu et al. 2022) and InfLLM (Xiao et al. 2024), over blocks of text that is read again.
    """

    observer: ClassVar[Observer] = "index"

    @property
    def record(self) -> dict[str, object]:
        """As ``Scorer.record``."""
        return super().record | {"kind": "index"}
