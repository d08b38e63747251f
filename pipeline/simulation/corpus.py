"""A corpus of lengths without texts, its plan, and the errand of working through some of its parts.

Invariants: a corpus is a function of its shape and seed; parts are runs of rows in order, cut as ``pipeline.plan``
cuts them, and cover every row once; a part is committed once, with one outcome for every question of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.document import Asked, Document
from pipeline.errands import NOTHING, Row
from pipeline.ledger import FinishedPart
from pipeline.outcome import Outcome
from pipeline.simulation.clock import Clock
from pipeline.simulation.settings import CorpusShape

FILE = "corpus"


@dataclass(frozen=True)
class Corpus:
    """``lengths_N``: tokens of each document; ``parts``: rows that are committed together."""

    lengths_N: NDArray[np.int64]
    poison: frozenset[int]
    parts: tuple[range, ...]
    questions: int

    @classmethod
    def drawn(cls, shape: CorpusShape, part_tokens: int, seed: int) -> Corpus:
        """Draw lengths and poison."""
        rng = np.random.default_rng(seed)
        tokens_N = rng.lognormal(np.log(shape.median_tokens), shape.sigma, shape.documents)
        is_tail_N = rng.random(shape.documents) < shape.tail_share
        tokens_N[is_tail_N] *= 1 + rng.pareto(shape.tail_exponent, int(is_tail_N.sum()))
        lengths_N = np.clip(tokens_N, 1, shape.longest_tokens).astype(np.int64)
        poison = rng.choice(shape.documents, shape.poison, replace=False)
        return cls(lengths_N, frozenset(poison.tolist()), tuple(_cut(lengths_N, part_tokens)), shape.questions)

    def rows_of(self, parts: Sequence[int]) -> NDArray[np.int64]:
        """The rows of these parts."""
        return np.concatenate([np.arange(self.parts[part].start, self.parts[part].stop) for part in parts])


class SimulatedErrand:
    """``pipeline.errands.Errand`` over some parts of a corpus. What it commits it checks and counts."""

    elsewhere = NOTHING
    """As ``Errand.elsewhere``: nobody else is at it."""

    def __init__(self, corpus: Corpus, parts: Sequence[int], clock: Clock) -> None:
        self._corpus, self._parts, self._clock = corpus, parts, clock
        self._asked = tuple(Asked(f"q{index}", "") for index in range(corpus.questions))
        self._open = set(parts)
        self.num_answered = 0
        self.num_failed = 0

    def rows(self) -> Iterator[Row]:
        """As ``Errand.rows``. Every text is one letter: the loop counts bytes to guess how much is left."""
        for part in self._parts:
            for row in self._corpus.parts[part]:
                yield Row(part, Document(str(row), "x", FILE, row, self._asked))
            yield Row(part, None)

    def commit(self, part: FinishedPart) -> bool:
        """As ``Errand.commit``."""
        with self._clock:
            self._open.remove(part.index)
            outcomes: tuple[Outcome, ...] = (*part.answers, *part.failures)
            ended = {(outcome.source_row, outcome.question_id) for outcome in outcomes}
            expected = {(row, asked.question_id) for row in self._corpus.parts[part.index] for asked in self._asked}
            assert ended == expected and len(outcomes) == len(expected)
            self.num_answered += len(part.answers)
            self.num_failed += len(part.failures)
            return True

    def unwanted(self, part: FinishedPart) -> Sequence[str]:
        """As ``Errand.unwanted``: nothing is kept."""
        return part.keys


def _cut(lengths_N: NDArray[np.int64], part_tokens: int) -> Iterator[range]:
    """Rows in runs of at most ``part_tokens`` tokens; a longer row is a part of its own."""
    start, held = 0, 0
    for row, tokens in enumerate(lengths_N.tolist()):
        if held and held + tokens > part_tokens:
            yield range(start, row)
            start, held = row, 0
        held += tokens
    yield range(start, len(lengths_N))
