"""What moves over the network, in bytes by kind, and where kept sets lie.

Invariants: every byte is counted when it is sent, so that what is sent again counts again; a kept set is found on
the node that read its chunk until the part is committed or the node is lost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from pipeline.simulation.settings import Scene
from workers.messages import Ask, Encode


@dataclass(frozen=True)
class Moved:
    """Bytes: of tasks to workers (mostly token ids), of relevance back to the driver, of kept sets between nodes."""

    tokens: int = 0
    relevance: int = 0
    kept: int = 0

    def __add__(self, other: Moved) -> Moved:
        return Moved(self.tokens + other.tokens, self.relevance + other.relevance, self.kept + other.kept)


def key_of(encode: Encode) -> str:
    """The store entry that reading this message leaves."""
    [chunk] = encode.chunks
    return f"{encode.document}#{chunk.start}"


@dataclass(eq=False)
class Traffic:
    """Counts what moves in one simulated cluster. ``homes``: the node of each kept set, and its life then."""

    scene: Scene
    tokens: int = 0
    relevance: int = 0
    kept: int = 0
    homes: dict[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def moved(self) -> Moved:
        """All so far."""
        return Moved(self.tokens, self.relevance, self.kept)

    def send(self, task: Encode | Ask) -> None:
        """A task goes to a worker. A question over kept pairs names the messages that its kept sets came from."""
        costs = self.scene.costs
        messages = [task] if isinstance(task, Encode) else [m for query in task.queries for m in query.sources]
        num_tokens = sum(len(chunk.token_ids) for message in messages for chunk in message.chunks)
        self.tokens += costs.message_bytes + costs.token_bytes * num_tokens

    def take_back(self, encode: Encode, node: int, life: int) -> None:
        """A chunk was read: its relevance goes to the driver, its kept set stays."""
        num_tokens = sum(len(chunk.token_ids) for chunk in encode.chunks)
        self.relevance += self.scene.costs.relevance_bytes * len(encode.probes) * num_tokens // 1000
        self.homes[key_of(encode)] = node, life

    def gather(self, ask: Ask, node: int, lives: Sequence[int]) -> list[Encode]:
        """Bring the kept sets of a batch to ``node``, whole. Those that were lost with their node come out: they
        have to be read again. ``lives``: how often each node has been replaced."""
        lost = []
        for query in ask.queries:
            for source in query.sources:
                home, life = self.homes[key_of(source)]
                if lives[home] != life:
                    lost.append(source)
                    self.homes[key_of(source)] = node, lives[node]
                elif home != node:
                    [chunk] = source.chunks
                    kept_tokens = min(len(chunk.token_ids), self.scene.budget_tokens)
                    self.kept += self.scene.costs.pair_bytes * kept_tokens
        return lost

    def free(self, keys: Sequence[str]) -> None:
        """These kept sets are dropped."""
        for key in keys:
            self.homes.pop(key, None)
