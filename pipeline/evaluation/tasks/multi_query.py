"""Multi-query: several needles with different keys, all asked for in one question.

RULER-style (Hsieh et al. 2024).
"""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.evaluation.tasks.base import Draft, GeneratedTask, Seat
from pipeline.evaluation.tasks.multi_value import TOKENS_PER_NUMBER
from pipeline.evaluation.tasks.needle import Needle, cities, depths, hidden, numbers
from pipeline.evaluation.tasks.sizer import Wording


@dataclass(frozen=True, kw_only=True)
class MultiQuery(GeneratedTask):
    """``queries`` keys with a number each, anywhere in the text."""

    queries: int = 4

    def draw(self, seat: Seat) -> Draft:
        """All needles are gold."""
        keys, found = cities(seat.rng, self.queries), numbers(seat.rng, self.queries)
        listed = f"{', '.join(keys[:-1])} and {keys[-1]}"
        wording = Wording(
            f"What are the special magic numbers for {listed} mentioned in the provided text?",
            f"The special magic numbers for {listed} mentioned in the provided text are",
            TOKENS_PER_NUMBER * self.queries,
        )
        places = depths(seat.rng, self.queries)
        needles = [Needle(key, number) for key, number in zip(keys, found, strict=True)]
        context, gold = hidden(seat, wording, [(p, n.sentence) for p, n in zip(places, needles, strict=True)])
        return Draft(context, wording, found, gold)
