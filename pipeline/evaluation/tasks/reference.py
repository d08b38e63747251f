"""The haystack: the language reference that ships with every Python, and sentences hidden in it.

Invariants: the topics that the shipped profile is calibrated on come last, and are not used at all while the
others are long enough; the text of a split comes first, exactly as its exam has it, so that the exam's gold ranges
hold; a topic that is part of another one is left out.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pydoc_data.topics import topics

from workers.selection.questions import Exam, Split

__all__ = ["Reference", "Split", "hide", "reference_text"]


@dataclass(frozen=True)
class Reference:
    """A text and the character range of each of its tokens."""

    text: str
    offsets: tuple[tuple[int, int], ...]

    @property
    def tokens(self) -> int:
        """How long it is."""
        return len(self.offsets)

    def cut(self, first: int, count: int) -> str:
        """``count`` tokens from token ``first`` on."""
        return self.text[self.offsets[first][0] : self.offsets[first + count - 1][1]] if count else ""


@cache
def reference_text(split: Split, *, whole: bool) -> str:
    """The topics of a split, joined; ``whole``: then those of no split, then those of the other split."""
    own = Exam.of_split(split).text
    if not whole:
        return own
    other = Exam.of_split("calibrate" if split == "held_out" else "held_out").text
    seen = _squeezed(own) + _squeezed(other)
    rest = []
    for name in sorted(topics, key=lambda name: (-len(topics[name]), name)):
        if _squeezed(topics[name])[100:1000] not in seen:  # the first lines are a heading of its own
            rest.append(topics[name].strip())
            seen += _squeezed(topics[name])
    return "\n\n".join([own, *rest, other])


def _squeezed(text: str) -> str:
    return re.sub(r"\s+", "", text)


def hide(hay: str, sentences: Sequence[tuple[float, str]]) -> tuple[str, tuple[tuple[int, int], ...]]:
    """``hay`` with each sentence behind the first sentence or line that ends after its depth (0 to 1), and where each
    stands then, in the order given."""
    pieces: list[str] = []
    spans: list[tuple[int, int]] = [(0, 0)] * len(sentences)
    done = written = 0
    for index in sorted(range(len(sentences)), key=lambda index: sentences[index][0]):
        depth, sentence = sentences[index]
        place = max(done, _sentence_end(hay, int(len(hay) * depth)))
        lead = hay[done:place] + (" " if place else "")
        spans[index] = (written + len(lead), written + len(lead) + len(sentence))
        pieces += [lead, sentence]
        written, done = spans[index][1], place
    return "".join([*pieces, hay[done:]]), tuple(spans)


def _sentence_end(hay: str, start: int) -> int:
    ends = [hay.find(". ", start) + 1, hay.find("\n", start)]
    return min((end for end in ends if end > 0), default=len(hay))
