"""Engines over the tiny model for tests, and the documents they read."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import torch

from cache_store.store import TieredStore
from cache_store.tiers.memory import MemoryTier
from workers.attention.base import resolve
from workers.engine import Engine, Method
from workers.hf import LanguageModel, Tokenizer
from workers.loaded import LoadedModel
from workers.messages import Chunk, Encode, Probe
from workers.prompt import Frame
from workers.selection.budgets import UniformBudget
from workers.selection.profile import Profile
from workers.source import ModelSource

PROFILE = Profile("tiny", ((0, 1), (1, 3)))
METHOD = Method(
    block_tokens=16, budget=UniformBudget(tokens=64, widen_tokens=4), skims=False, carries=False, keeps_pairs=False
)
KEEP_ALL = UniformBudget(tokens=10**6, widen_tokens=0)


class Workbench:
    """One loaded tiny model, and engines of any method over it."""

    def __init__(self, directory: Path) -> None:
        self.model = LanguageModel(directory, dtype=torch.float32, device=torch.device("cpu"))
        self.frame = Frame.render(Tokenizer(directory), "Be brief.", "Read this.")
        self.backend = resolve("cpu", torch.device("cpu"))
        self.loaded = LoadedModel(self.model, self.backend, self.frame, ModelSource(directory, "weights", "tokenizer"))

    def engine(self, store: TieredStore | None = None, **method: object) -> Engine:
        return Engine(
            self.loaded,
            PROFILE,
            replace(METHOD, **method),  # type: ignore[arg-type]
            store or TieredStore([MemoryTier(2**26)]),
        )

    def probes(self, *questions: str) -> tuple[Probe, ...]:
        return tuple(self.frame.probe(f"q{n}", text) for n, text in enumerate(questions))


def tokens(count: int, seed: int = 0) -> tuple[int, ...]:
    """Random byte tokens: a document that no model has seen."""
    rng = random.Random(seed)
    return tuple(rng.randrange(256) for _ in range(count))


def chunked(document: tuple[int, ...], size: int) -> tuple[Chunk, ...]:
    return tuple(
        Chunk(index, start, document[start : start + size]) for index, start in enumerate(range(0, len(document), size))
    )


def isolated(chunks: tuple[Chunk, ...], probes: tuple[Probe, ...]) -> tuple[Encode, ...]:
    return tuple(Encode("doc", (chunk,), probes) for chunk in chunks)
