"""Questions over real text with known answers: the material that calibration learns from and is tested on.

The text is the language reference that ships with every Python; the questions are written by hand
(``questions.yaml`` says how). Invariants: the two splits share no topic; a gold passage is found in the text
whatever the line wrapping of this Python's edition; a question whose passage this edition words differently
is left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from pydoc_data.topics import topics
from typing import Literal

import numpy as np
import yaml

from workers.messages import Interval

Split = Literal["calibrate", "held_out"]


@dataclass(frozen=True)
class GoldQuestion:
    """One question; ``gold``: half-open character ranges of the passage that answers it, in the exam's text."""

    id: str
    topic: str
    text: str
    gold: tuple[tuple[int, int], ...]


def tokens_of(passages: Sequence[Interval], offsets: Sequence[Interval]) -> tuple[Interval, ...]:
    """Character ranges as ranges of the tokens that they touch; ``offsets``: the characters of each token."""
    starts, stops = np.array(offsets).T
    return tuple(
        (int(np.searchsorted(stops, first, "right")), int(np.searchsorted(starts, last, "left")))
        for first, last in passages
    )


def holds_whole(kept: Sequence[Interval], gold: Sequence[Interval]) -> bool:
    """Whether one of the gold passages lies whole in one of the kept runs."""
    return any(start <= first and last <= stop for first, last in gold for start, stop in kept)


@dataclass(frozen=True)
class Exam:
    """A long text and questions about it, each answered by one passage among many look-alikes."""

    text: str
    questions: tuple[GoldQuestion, ...]

    @classmethod
    def of_split(cls, split: Split, max_chars: int | None = None) -> Exam:
        """The topics of a split, joined, with their questions; at most about ``max_chars`` of text."""
        records = [record for record in _records() if record["split"] == split and record["topic"] in topics]
        names = _outermost({record["topic"] for record in records})
        chosen: list[str] = []
        for name in sorted(names):
            if max_chars is None or sum(len(topics[other]) for other in chosen) < max_chars:
                chosen.append(name)
        text = "\n\n".join(topics[name].strip() for name in chosen)
        questions = [
            GoldQuestion(record["id"], record["topic"], record["question"], _find(record["gold"], text))
            for record in records
        ]
        return cls(text, tuple(question for question in questions if question.gold))


@cache
def _records() -> tuple[dict[str, str], ...]:
    return tuple(yaml.safe_load(Path(__file__).with_name("questions.yaml").read_text(encoding="utf-8")))


def _outermost(names: Iterable[str]) -> set[str]:
    """Topics that are not part of another one: some chapters of the reference are also topics of their own."""
    squeezed = {name: re.sub(r"\s+", "", topics[name])[:1000] for name in names}
    whole = {name: re.sub(r"\s+", "", topics[name]) for name in names}
    return {
        name
        for name in squeezed
        if not any(squeezed[name][100:] in text for other, text in whole.items() if other != name)
    }


def _find(passage: str, text: str) -> tuple[tuple[int, int], ...]:
    """Every place of a passage in a text, whitespace aside."""
    letters = re.sub(r"\s+", "", passage)
    pattern = r"\s*".join(map(re.escape, letters))
    return tuple((match.start(), match.end()) for match in re.finditer(pattern, text))
