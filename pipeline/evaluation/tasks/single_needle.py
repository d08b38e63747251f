"""Single needle: one number hidden in real text.

RULER-style (Hsieh et al. 2024), after Kamradt 2023, "Needle in a Haystack".
"""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.evaluation.tasks.base import Draft, GeneratedTask, Seat
from pipeline.evaluation.tasks.needle import Needle, cities, hidden, numbers
from pipeline.evaluation.tasks.sizer import Wording


def ask_one(key: str) -> Wording:
    """The question for one number of one key."""
    return Wording(
        f"What is the special magic number for {key} mentioned in the provided text?",
        f"The special magic number for {key} mentioned in the provided text is",
        12,
    )


@dataclass(frozen=True, kw_only=True)
class SingleNeedle(GeneratedTask):
    """Nothing but the text itself distracts."""

    def draw(self, seat: Seat) -> Draft:
        """One needle at the seat's depth."""
        [key], [number] = cities(seat.rng, 1), numbers(seat.rng, 1)
        wording = ask_one(key)
        context, gold = hidden(seat, wording, [(seat.depth, Needle(key, number).sentence)])
        return Draft(context, wording, (number,), gold)
