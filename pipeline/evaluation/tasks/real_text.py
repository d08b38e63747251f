"""Real text: hand-written questions over the Python language reference, whose passages are known.

The documents are full of look-alikes: a document of some length is cut from the joined topics of a split, around the
passage that answers. Invariants: the question of an item depends on seed and index only, so that all lengths ask the
same ones; the whole gold passage is in the document.
"""

from __future__ import annotations

import random
from bisect import bisect_left, bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import yaml

from pipeline.evaluation.tasks.base import Draft, GeneratedTask, Seat, Span
from pipeline.evaluation.tasks.reference import Reference, Split
from pipeline.evaluation.tasks.sizer import Wording
from workers.selection.questions import Exam


@dataclass(frozen=True, kw_only=True)
class RealText(GeneratedTask):
    """Questions of ``split``; the profile that ships with Foveate was chosen on the other one."""

    split: Split = "held_out"
    answer_prefix: str = ""

    def draw(self, seat: Seat) -> Draft:
        """The gold passage lies as near to the seat's depth as the ends of the text allow."""
        questions = _exam(self.split).questions
        question = questions[_order(seat.seed, len(questions))[seat.index % len(questions)]]
        wording = Wording(question.text, self.answer_prefix, 32)
        room = seat.room(wording)
        reference = seat.sizer.reference(self.split, room)
        start, stop = question.gold[0]
        gold = _tokens_of(reference, (start, stop))

        def window(count: int) -> tuple[int, str]:
            before = round(seat.depth * (count - (gold[1] - gold[0])))
            first = min(max(0, gold[0] - before), reference.tokens - count)
            return reference.offsets[first][0], reference.cut(first, count)

        count = seat.sizer.largest(lambda n: window(n)[1], room, least=gold[1] - gold[0], most=reference.tokens)
        origin, context = window(count)
        return Draft(context, wording, (_answers()[question.id],), ((start - origin, stop - origin),), "any")


_exam = cache(Exam.of_split)


@cache
def _order(seed: int, count: int) -> tuple[int, ...]:
    """The order in which questions are asked: shuffled, so that few items are of many topics."""
    return tuple(random.Random(f"{seed}/questions").sample(range(count), count))


@cache
def _answers() -> Mapping[str, str]:
    """The short answer of each question, by its id."""
    text = files("workers.selection").joinpath("questions.yaml").read_text(encoding="utf-8")
    return {record["id"]: record["answer"] for record in yaml.safe_load(text)}


def _tokens_of(reference: Reference, span: Span) -> Span:
    """The tokens that hold a character range."""
    first = bisect_right(reference.offsets, span[0], key=lambda offset: offset[1])
    return first, bisect_left(reference.offsets, span[1], key=lambda offset: offset[0])
