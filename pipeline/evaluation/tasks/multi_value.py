"""Multi-value: one key with several numbers, all of which must be named.

RULER-style (Hsieh et al. 2024): incomplete retrieval is what it measures.
"""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.evaluation.tasks.base import Draft, GeneratedTask, Seat
from pipeline.evaluation.tasks.needle import Needle, cities, depths, hidden, numbers
from pipeline.evaluation.tasks.sizer import Wording

TOKENS_PER_NUMBER = 12


@dataclass(frozen=True, kw_only=True)
class MultiValue(GeneratedTask):
    """``values`` numbers of one key, anywhere in the text."""

    values: int = 4

    def draw(self, seat: Seat) -> Draft:
        """All needles are gold."""
        [key], found = cities(seat.rng, 1), numbers(seat.rng, self.values)
        wording = Wording(
            f"What are all the special magic numbers for {key} mentioned in the provided text?",
            f"The special magic numbers for {key} mentioned in the provided text are",
            TOKENS_PER_NUMBER * self.values,
        )
        places = depths(seat.rng, self.values)
        sentences = [(place, Needle(key, number).sentence) for place, number in zip(places, found, strict=True)]
        context, gold = hidden(seat, wording, sentences)
        return Draft(context, wording, found, gold)
