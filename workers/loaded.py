"""A model in working order: what every reading, scoring and answering needs, in one value."""

from __future__ import annotations

from dataclasses import dataclass

from workers.attention.base import Backend
from workers.hf import LanguageModel
from workers.prompt import Frame
from workers.source import ModelSource


@dataclass(frozen=True)
class LoadedModel:
    """Weights on their device, the attention kernel they run with, the prompt in pieces, and where they came from.
    Threads may share one."""

    weights: LanguageModel
    backend: Backend
    frame: Frame
    source: ModelSource
