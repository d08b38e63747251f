"""Real views for scorers: chunks read by the tiny model in one plain pass, with every layer's tensors recorded.

The engine reads anchor, chunk and observer in separate passes and merges; here they are one causal pass over
everything, so that what scorers are tested on owes nothing to the engine.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from workers.attention.base import resolve
from workers.hf import LanguageModel, Pass
from workers.selection.scorers.base import ChunkScores, LayerView, Scorer


def tokens(count: int, seed: int = 0) -> tuple[int, ...]:
    """Random byte tokens."""
    return tuple(random.Random(seed).choices(range(256), k=count))


class Recording(Pass):
    """Attends causally and remembers queries, keys, values, log-sum-exps and hidden states, by layer."""

    wants_hidden = True

    def __init__(self) -> None:
        self.layers: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        self.hidden_TE: list[Tensor] = []
        self.scale = 0.0

    def hidden(self, layer: int, hidden_TE: Tensor) -> None:
        self.hidden_TE.append(hidden_TE)

    def attend(
        self, layer: int, q_THD: Tensor, k_TGD: Tensor, v_TGD: Tensor, scale: float, *, window: int | None
    ) -> Tensor:
        bounds = (0, len(q_THD))
        backend = resolve("cpu", q_THD.device)
        out_THD, lse_TH = backend.attend(q_THD, k_TGD, v_TGD, bounds, bounds, causal=True, scale=scale, window=window)
        self.layers.append((q_THD, k_TGD, v_TGD, lse_TH))
        self.scale = scale
        return out_THD


class Reader:
    """Reads chunks behind ``anchor``, with ``question`` behind them where the observer is the probe or will be."""

    def __init__(self, directory: Path, anchor: Sequence[int], question: Sequence[int]) -> None:
        self.model = LanguageModel(directory, dtype=torch.float32, device=torch.device("cpu"))
        self.anchor = tuple(anchor)
        self.question = tuple(question)

    def views(self, scorer: Scorer, chunk: Sequence[int], block_tokens: int) -> list[LayerView]:
        """What the scorer sees of a chunk, in the layers it looks at."""
        behind = {"probe": self.question, "index": self.question, "repeat": tuple(chunk)}.get(scorer.observer, ())
        tokens = (*self.anchor, *chunk, *behind)
        recording = Recording()
        self.model.run(tokens, range(len(tokens)), recording)
        first = len(self.anchor)
        own = slice(first, first + len(chunk))
        observers = range(own.stop, len(tokens)) if behind else range(own.start, own.stop)
        looks = scorer.rows((0, len(observers)), len(observers))
        rows = slice(observers.start + looks.start, observers.start + looks.stop)
        places = torch.arange(len(tokens))
        has_lse = scorer.observer in ("chunk", "repeat")
        return [
            LayerView(
                layer=layer,
                queries_RHD=q_THD[rows],
                keys_CGD=k_TGD[own],
                values_CGD=v_TGD[own],
                places_C=places[own],
                row_places_R=places[rows],
                scale=recording.scale,
                block_tokens=block_tokens,
                model=self.model,
                lse_RH=lse_TH[rows] if has_lse else None,
                hidden_CE=recording.hidden_TE[layer][own] if scorer.reads_hidden else None,
            )
            for layer, (q_THD, k_TGD, v_TGD, lse_TH) in enumerate(recording.layers)
            if layer in scorer.layers
        ]

    def scores(self, scorer: Scorer, chunk: Sequence[int], start: int, block_tokens: int) -> ChunkScores:
        """What the scorer says of a chunk at document position ``start``."""
        seen = [scorer.score(view) for view in self.views(scorer, chunk, block_tokens)]
        log_RHB = (
            torch.cat(seen, dim=1).numpy() if seen else np.zeros((1, 1, -(-len(chunk) // block_tokens)), np.float32)
        )
        cuts = range(0, len(chunk), block_tokens)
        texts = tuple(bytes(chunk[cut : cut + block_tokens]).decode("latin-1") for cut in cuts)
        question = bytes(self.question).decode("latin-1")
        return ChunkScores(log_RHB, (start, start + len(chunk)), block_tokens, texts, question)

    def document(self, scorer: Scorer, chunks: Sequence[Sequence[int]], block_tokens: int) -> list[ChunkScores]:
        """What the scorer says of the chunks of a document, in order."""
        starts = np.cumsum([0, *map(len, chunks)]).tolist()
        return [self.scores(scorer, chunk, start, block_tokens) for chunk, start in zip(chunks, starts, strict=False)]
