"""Multi-key: several needles of one form, one of which is asked for.

RULER-style (Hsieh et al. 2024): the other keys are hard distractors.
"""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.evaluation.tasks.base import Draft, GeneratedTask, Seat
from pipeline.evaluation.tasks.needle import Needle, cities, depths, hidden, numbers
from pipeline.evaluation.tasks.single_needle import ask_one


@dataclass(frozen=True, kw_only=True)
class MultiKey(GeneratedTask):
    """``keys`` needles; the one that is asked for lies at the seat's depth, the others anywhere."""

    keys: int = 4

    def draw(self, seat: Seat) -> Draft:
        """The first needle is the one that is asked for."""
        pairs = zip(cities(seat.rng, self.keys), numbers(seat.rng, self.keys), strict=True)
        needles = [Needle(key, number) for key, number in pairs]
        wording = ask_one(needles[0].key)
        places = (seat.depth, *depths(seat.rng, self.keys - 1))
        context, spans = hidden(seat, wording, [(p, n.sentence) for p, n in zip(places, needles, strict=True)])
        return Draft(context, wording, (needles[0].number,), spans[:1])
