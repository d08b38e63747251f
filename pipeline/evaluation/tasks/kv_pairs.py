"""Key-value pairs: random uuids and nothing else.

Liu et al. 2023, "Lost in the Middle: How Language Models Use Long Contexts"; in RULER (Hsieh et al. 2024) the hardest
of the multi-key tasks.
"""

from __future__ import annotations

import random
import uuid
from dataclasses import dataclass

from pipeline.evaluation.tasks.base import Draft, GeneratedTask, Seat
from pipeline.evaluation.tasks.sizer import Wording


@dataclass(frozen=True, kw_only=True)
class KeyValuePairs(GeneratedTask):
    """Every line is a distractor of the same form; no word says which one matters."""

    def draw(self, seat: Seat) -> Draft:
        """The pair that is asked for lies at the seat's depth."""
        key, value = _uuid(seat.rng), _uuid(seat.rng)
        wording = Wording(f'What is the value of the key "{key}"?', f'The value of the key "{key}" is', 48)
        others: list[str] = []

        def lines(count: int) -> list[str]:
            while len(others) < count:
                others.append(_line(_uuid(seat.rng), _uuid(seat.rng)))
            place = int(seat.depth * (count + 1))
            return [*others[:place], _line(key, value), *others[place:count]]

        count = seat.sizer.largest(lambda n: "\n".join(lines(n)), seat.room(wording))
        context = "\n".join(lines(count))
        first = context.index(_line(key, value))
        return Draft(context, wording, (value,), ((first, first + len(_line(key, value))),))


def _uuid(rng: random.Random) -> str:
    return str(uuid.UUID(int=rng.getrandbits(128), version=4))


def _line(key: str, value: str) -> str:
    return f'"{key}": "{value}"'
