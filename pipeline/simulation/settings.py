"""What is simulated: the corpus, the cluster, and what goes wrong in it. Times in virtual seconds."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

from pipeline.simulation.costs import CPU_CORE, Costs

NEVER_S = float("inf")


@dataclass(frozen=True)
class CorpusShape:
    """Lengths are log-normal around ``median_tokens``; ``tail_share`` of the documents are longer by a Pareto factor
    of exponent ``tail_exponent``, none longer than ``longest_tokens``. ``poison``: documents whose first chunk kills
    whatever reads it."""

    documents: int = 100_000
    median_tokens: int = 4_000
    sigma: float = 1.0
    tail_share: float = 0.01
    tail_exponent: float = 1.2
    longest_tokens: int = 2_000_000
    questions: int = 1
    poison: int = 0


@dataclass(frozen=True)
class Faults:
    """``straggler_share`` of the workers are ``slowdown`` times slower, for good. A worker crashes after
    ``worker_mtbf_s`` on average and is back after ``restart_s``; a node vanishes with all its workers, and with what
    they kept, after ``node_mtbf_s`` on average, and its replacement comes after ``replace_s``."""

    straggler_share: float = 0.0
    slowdown: float = 3.0
    worker_mtbf_s: float = NEVER_S
    restart_s: float = 60.0
    node_mtbf_s: float = NEVER_S
    replace_s: float = 300.0


@dataclass(frozen=True)
class Scene:
    """One simulated job on the nodes from ``first_node`` on. The lower half are the job's own settings, by the names
    that the configuration gives them; ``budget_tokens`` are kept of a document for each question, as pairs."""

    corpus: CorpusShape = CorpusShape()
    faults: Faults = Faults()
    costs: Costs = CPU_CORE
    nodes: int = 100
    workers_per_node: int = 1
    first_node: int = 0
    seed: int = 0
    chunk_tokens: int = 2048
    block_tokens: int = 32
    budget_tokens: int = 512
    batch_size: int = 8
    part_tokens: int = 2_000_000

    def __post_init__(self) -> None:
        documents, poison = self.corpus.documents, self.corpus.poison
        least_one = ("nodes", "workers_per_node", "chunk_tokens", "block_tokens", "batch_size", "part_tokens")
        for name, number in [("documents", documents), *((name, getattr(self, name)) for name in least_one)]:
            if number < 1:
                raise ValueError(f"{name}: {number}; allowed: 1 or more")
        if not 0 <= poison <= documents:
            raise ValueError(f"poison: {poison}; allowed: 0 to {documents}, the number of documents")

    @property
    def num_workers(self) -> int:
        """Of all nodes together."""
        return self.nodes * self.workers_per_node

    def slowness_of(self, worker: int) -> float:
        """How many times slower than others a worker is. A node's workers are the same, whoever drives them."""
        place = self.first_node * self.workers_per_node + worker
        slow = random.Random(f"{self.seed}/worker {place}").random() < self.faults.straggler_share
        return self.faults.slowdown if slow else 1.0

    def shares(self, number: int) -> Iterator[Scene]:
        """The same job on ``number`` shares of its nodes, as even as can be."""
        borders = [self.nodes * share // number for share in range(number + 1)]
        for first, last in pairwise(borders):
            yield replace(self, first_node=self.first_node + first, nodes=last - first)
