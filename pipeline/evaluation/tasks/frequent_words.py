"""Frequent words: coded words whose frequencies fall as Zipf's law says; the most frequent are asked for.

RULER-style (Hsieh et al. 2024), frequent words extraction: the word of rank r stands about n r^-alpha / zeta(alpha)
times; the first rank is noise (dots), the next ones are the answer.
"""

from __future__ import annotations

import random
import string
from dataclasses import dataclass

from pipeline.evaluation.tasks.base import Draft, GeneratedTask, Seat
from pipeline.evaluation.tasks.sizer import Wording

NOISE = "..."
RANKS = 2_000
"""Ranks that the sum of Zipf's law is taken over: more words than any document has different ones."""


@dataclass(frozen=True, kw_only=True)
class FrequentWords(GeneratedTask):
    """The ``words`` most frequent of random words of six letters."""

    words: int = 3
    alpha: float = 2.0

    def draw(self, seat: Seat) -> Draft:
        """No span answers. Raises ``ValueError`` where a text is too short to tell the ranks apart."""
        coded = self._coded(seat.rng)
        order = seat.rng.random()
        wording = Wording(
            f"Ignore the dots. What are the {self.words} words that appear most often in the above coded text?",
            f"The {self.words} words that appear most often in the above coded text are:",
            12 * self.words,
        )

        def build(count: int) -> str:
            times = self._times(count)
            text = [word for word, repeats in zip(coded, times, strict=True) for _ in range(repeats)]
            random.Random(f"{order}/{count}").shuffle(text)
            return " ".join(text)

        count = seat.sizer.largest(build, seat.room(wording))
        times = self._times(count)[: self.words + 2]
        if times[-2] == times[-1]:
            raise ValueError(f"lengths: {seat.length}; rank {self.words} is as frequent as the next; allowed: more")
        return Draft(build(count), wording, coded[1 : self.words + 1])

    def _coded(self, rng: random.Random) -> tuple[str, ...]:
        """The dots, and a word for each rank behind them."""
        drawn = dict.fromkeys([NOISE])
        while len(drawn) < RANKS:
            drawn["".join(rng.choices(string.ascii_lowercase, k=6))] = None
        return tuple(drawn)

    def _times(self, count: int) -> list[int]:
        """How often each rank stands in a text of about ``count`` words; never falls as ``count`` grows."""
        weights = [rank**-self.alpha for rank in range(1, RANKS + 1)]
        total = sum(weights)
        return [int(count * weight / total) for weight in weights]
