"""Needles: sentences that say the special magic number of a city, hidden in real text.

The family of RULER (Hsieh et al. 2024, "RULER: What's the Real Context Size of Your Long-Context Language Models?").
Invariants: keys differ, numbers differ, and no number occurs in the text around.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.evaluation.tasks.base import Seat, Span
from pipeline.evaluation.tasks.reference import hide, reference_text
from pipeline.evaluation.tasks.sizer import Wording

CITIES = (
    "Oslo", "Lima", "Cairo", "Quito", "Dakar", "Turin", "Perth", "Kyoto", "Porto", "Delhi", "Accra", "Basel", "Boston",
    "Bogota", "Cork", "Denver", "Dublin", "Geneva", "Hanoi", "Havana", "Izmir", "Jakarta", "Kiev", "Lagos", "Leeds",
    "Lyon", "Madrid", "Manila", "Miami", "Milan", "Minsk", "Nairobi", "Osaka", "Prague", "Riga", "Seoul", "Sofia",
    "Tunis", "Vienna", "Warsaw",
)  # fmt: skip


@dataclass(frozen=True)
class Needle:
    """One fact."""

    key: str
    number: str

    @property
    def sentence(self) -> str:
        """As it stands in the text."""
        return f"One of the special magic numbers for {self.key} is: {self.number}."


def cities(rng: random.Random, count: int) -> tuple[str, ...]:
    """Different cities. Raises ``ValueError`` for more than there are."""
    if count > len(CITIES):
        raise ValueError(f"{count} different keys; allowed: at most {len(CITIES)}")
    return tuple(rng.sample(CITIES, count))


def numbers(rng: random.Random, count: int) -> tuple[str, ...]:
    """Different numbers of five digits that the reference text does not have."""
    text = reference_text("held_out", whole=True)
    drawn: list[str] = []
    while len(drawn) < count:
        number = str(rng.randrange(10_000, 100_000))
        if number not in drawn and number not in text:
            drawn.append(number)
    return tuple(drawn)


def depths(rng: random.Random, count: int) -> tuple[float, ...]:
    """Depths of sentences in their order in the text."""
    return tuple(sorted(rng.random() for _ in range(count)))


def hidden(seat: Seat, wording: Wording, sentences: Sequence[tuple[float, str]]) -> tuple[str, tuple[Span, ...]]:
    """A piece of the reference with ``sentences`` at their depths, as long as the seat allows, and their ranges.

    The piece is drawn from the held-out topics where these are long enough."""
    room = seat.room(wording)
    reference = seat.sizer.reference("held_out", room)
    first = seat.rng.randrange(reference.tokens - room + 1)
    count = seat.sizer.largest(lambda n: hide(reference.cut(first, n), sentences)[0], room, most=room)
    return hide(reference.cut(first, count), sentences)
