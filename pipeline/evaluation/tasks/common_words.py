"""Common words: a long numbered list, in which a few words stand more often than all others.

RULER-style (Hsieh et al. 2024), common words extraction: nothing can be left out without losing counts, so it shows
what selection costs where no passage answers.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from functools import cache
from pydoc_data.topics import topics

from pipeline.evaluation.tasks.base import Draft, GeneratedTask, Seat
from pipeline.evaluation.tasks.sizer import Wording


@dataclass(frozen=True, kw_only=True)
class CommonWords(GeneratedTask):
    """``words`` words stand ``common_times`` each in the list, as many others as fit ``other_times`` each."""

    words: int = 10
    common_times: int = 30
    other_times: int = 3

    def draw(self, seat: Seat) -> Draft:
        """No span answers. Raises ``ValueError`` where other words give out, or could be as common."""
        if self.other_times >= self.common_times:
            raise ValueError(f"other_times: {self.other_times}; allowed: less than common_times: {self.common_times}")
        drawn = seat.rng.sample(vocabulary(), len(vocabulary()))
        common, others = drawn[: self.words], drawn[self.words :]
        order = seat.rng.random()
        wording = Wording(
            f"What are the {self.words} most common words in the above list?",
            f"The {self.words} words that appear most often in the list are:",
            6 * self.words,
        )

        def build(count: int) -> str:
            listed = common * self.common_times + others[:count] * self.other_times
            random.Random(f"{order}/{count}").shuffle(listed)
            return "\n".join(f"{number}. {word}" for number, word in enumerate(listed, 1))

        count = seat.sizer.largest(build, seat.room(wording), most=len(others))
        if count == len(others):
            raise ValueError(f"lengths: {seat.length}; there are only {len(drawn)} words; allowed: less")
        return Draft(build(count), wording, tuple(common))


@cache
def vocabulary() -> tuple[str, ...]:
    """English words of the Python reference, of 4 to 12 letters, none part of another: a list of a few thousand
    would otherwise hold an answer by accident."""
    text = "\n".join(topics.values())
    words = sorted(set(re.findall(r"(?<![\w.])[a-z]{4,12}(?![\w.(])", text)))
    joined = f" {' '.join(words)} "
    return tuple(word for word in words if joined.count(word) == 1)
