"""Variable tracking: a chain of assignments hidden in real text; all names of the chain are asked for.

RULER-style (Hsieh et al. 2024): co-reference over several hops, so that what must be kept does not look like the
question.
"""

from __future__ import annotations

import random
import string
from dataclasses import dataclass
from itertools import pairwise

from pipeline.evaluation.tasks.base import Draft, GeneratedTask, Seat
from pipeline.evaluation.tasks.needle import depths, hidden, numbers
from pipeline.evaluation.tasks.sizer import Wording


@dataclass(frozen=True, kw_only=True)
class VariableTracking(GeneratedTask):
    """One chain of ``hops`` hops (so ``hops`` + 1 names), and ``noise_chains`` of other names from other numbers."""

    hops: int = 4
    noise_chains: int = 2

    def draw(self, seat: Seat) -> Draft:
        """The first chain is the one that is asked for; the statements of a chain stand in their order."""
        rng, chains = seat.rng, 1 + self.noise_chains
        values = numbers(rng, chains)
        names = _names(rng, chains * (self.hops + 1))
        chain = names[: self.hops + 1]
        wording = Wording(
            f"Find all variables that are assigned the value {values[0]} in the text above.",
            f"The variables that are assigned the value {values[0]} are:",
            10 * len(chain),
        )
        sentences: list[tuple[float, str]] = []
        for index, value in enumerate(values):
            own = names[index * len(chain) :][: len(chain)]
            steps = [f"VAR {own[0]} = {value}.", *(f"VAR {b} = VAR {a}." for a, b in pairwise(own))]
            sentences += zip(depths(rng, len(steps)), steps, strict=True)
        context, spans = hidden(seat, wording, sentences)
        return Draft(context, wording, chain, spans[: len(chain)])


def _names(rng: random.Random, count: int) -> tuple[str, ...]:
    """Different names of five capital letters."""
    drawn: dict[str, None] = {}
    while len(drawn) < count:
        drawn["".join(rng.choices(string.ascii_uppercase, k=5))] = None
    return tuple(drawn)
