"""Engines over the tiny model for tests, and the documents they read."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch

from cache_store.store import TieredStore
from cache_store.tiers.memory import MemoryTier
from configs.stages import AnswerOver, Keep, Read
from workers.attention.base import resolve
from workers.engine import Engine
from workers.hf import LanguageModel, ModelShape, Tokenizer
from workers.keeping import assemble
from workers.loaded import LoadedModel
from workers.messages import Chunk, Encode, Probe, Query
from workers.method import Method, Stages, method_of
from workers.prompt import Frame
from workers.segments import Readable
from workers.selection.profile import Profile
from workers.source import ModelSource

BUDGET_TOKENS = 64
EVERYTHING = 10**6
"""A budget that keeps all there is."""


class Workbench:
    """One loaded tiny model, and engines of any method over it."""

    def __init__(self, directory: Path) -> None:
        self.model = LanguageModel(directory, dtype=torch.float32, device=torch.device("cpu"))
        self.frame = Frame.render(Tokenizer(directory), "Be brief.", "Read this.")
        self.backend = resolve("cpu", torch.device("cpu"))
        self.loaded = LoadedModel(self.model, self.backend, self.frame, ModelSource(directory, "weights", "tokenizer"))

    def method(
        self,
        *,
        read: dict[str, Any] | None = None,
        keep: dict[str, Any] | None = None,
        over: str = "reread",
        positions: str = "compact",
    ) -> Method:
        """The method with these keys of a job, small blocks and 4 tokens of widening."""
        stages = Stages(
            Read.model_validate(read or {}),
            Keep.model_validate({"block_tokens": 16, "widen_tokens": 4} | (keep or {})),
            AnswerOver.model_validate({"over": over, "positions": positions}),
        )
        return method_of(stages, self.model.shape, "weights", profile_of(self.model.shape))

    def engine(self, store: TieredStore | None = None, **method: Any) -> Engine:
        return Engine(self.loaded, self.method(**method), store or TieredStore([MemoryTier(2**26)]))

    def probes(self, *questions: str) -> tuple[Probe, ...]:
        return tuple(self.frame.probe(f"q{n}", text) for n, text in enumerate(questions))

    def assembled(self, engine: Engine, *queries: Query) -> tuple[Readable, list[int]]:
        """What the queries read of their kept pairs, and how many positions that takes."""
        documents = [engine._document(query) for query in queries]
        return assemble(self.model, documents, len(self.frame.anchor))


def profile_of(shape: ModelShape) -> Profile:
    """Two heads that see a whole chunk: of layers 0 and 1 in the tiny Llama, of the only such layer of the Gemma. An
    index uses one of them and another."""
    first, *others = shape.full_layers
    second = (others or [first])[0]
    return Profile("weights", ((first, 1), (second, 3)), index=Profile("weights", ((first, 2), (second, 3)), "last"))


def tokens(count: int, seed: int = 0) -> tuple[int, ...]:
    """Random byte tokens: a document that no model has seen."""
    rng = random.Random(seed)
    return tuple(rng.randrange(256) for _ in range(count))


def chunked(document: tuple[int, ...], size: int) -> tuple[Chunk, ...]:
    return tuple(
        Chunk(index, start, document[start : start + size]) for index, start in enumerate(range(0, len(document), size))
    )


def encode(chunks: tuple[Chunk, ...], probes: tuple[Probe, ...], budget_tokens: int = BUDGET_TOKENS) -> Encode:
    """One message that reads all chunks."""
    return Encode("doc", chunks, probes, budget_tokens)


def isolated(chunks: tuple[Chunk, ...], probes: tuple[Probe, ...]) -> tuple[Encode, ...]:
    """One message for each chunk."""
    return tuple(encode((chunk,), probes) for chunk in chunks)
