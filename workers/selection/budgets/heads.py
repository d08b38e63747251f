"""Each head keeps what its role needs."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain

import numpy as np

from workers.messages import Interval
from workers.selection.budgets.base import BlockTable, Choice, Filling, best_of_each, fill_each, offered_to
from workers.selection.headmap import HeadMap


@dataclass(frozen=True)
class HeadsBudget:
    """DuoAttention (Xiao et al. 2024, "DuoAttention: Efficient Long-Context LLM Inference with Retrieval and Streaming
    Heads"), and heads that keep nothing (Michel et al. 2019, "Are Sixteen Heads Really Better than One?").

    Streaming heads keep the first ``sink_tokens`` and the last ``window_tokens`` of the document (less where the grant
    is less), pruned heads nothing, and retrieval heads share what the others leave of the grant.
    """

    head_map: HeadMap
    sink_tokens: int
    window_tokens: int
    widen_tokens: int

    @property
    def record(self) -> dict[str, object]:
        """As ``Budget.record``."""
        return {"kind": "heads", **vars(self), "head_map": self.head_map.digest}

    def most(self, tokens: int) -> int:
        """As ``Budget.most``."""
        return max(self.tokens_of(role, tokens) for role in set(chain.from_iterable(self.head_map.roles_LG)))

    def choose(self, table: BlockTable, tokens: int) -> Choice:
        """As ``Budget.choose``; its shape is that of the model."""
        layers, heads = self.head_map.shape
        tokens_LG = [
            [self.tokens_of(role, tokens) if role == "retrieval" else 0 for role in row]
            for row in self.head_map.roles_LG
        ]
        choice = fill_each(table, best_of_each(table), np.array(tokens_LG), self.widen_tokens)
        kept = [
            self._stream(table, tokens, offered_to(table, index, layers * heads)) if role == "streaming" else retrieved
            for index, (role, retrieved) in enumerate(
                zip(chain.from_iterable(self.head_map.roles_LG), choice.kept, strict=True)
            )
        ]
        return Choice((layers, heads), tuple(kept))

    def offer(self, table: BlockTable, tokens: int) -> Choice:
        """As ``Budget.offer``: a chunk, which may be the document's first or last, offers its own sinks and window."""
        return self.choose(table, tokens)

    def tokens_of(self, role: str, tokens: int) -> int:
        """The most that a head of this role keeps when ``tokens`` are granted on average."""
        streamed = min(tokens, self.sink_tokens + self.window_tokens)
        if role == "retrieval":
            roles = list(chain.from_iterable(self.head_map.roles_LG))
            return (len(roles) * tokens - roles.count("streaming") * streamed) // roles.count("retrieval")
        return streamed if role == "streaming" else 0

    def _stream(self, table: BlockTable, tokens: int, offered: tuple[Interval, ...] | None) -> tuple[Interval, ...]:
        """The document's first and last tokens, as far as they are offered."""
        filling = Filling(table, 0, offered)
        first, last = int(table.starts_B[0]), int(table.stops_B[-1])
        sinks = min(tokens, self.sink_tokens)
        window = min(tokens - sinks, self.window_tokens)
        filling.keep((first, min(first + sinks, last)))
        filling.keep((max(first, last - window), last))
        return filling.intervals()
