"""What an item of a task is, and how generated tasks make theirs.

Invariants: an item is decided by its task's parameters, tokenizer and prompt, seed, length and index alone, and not
by how many items are asked for, so that the first 24 of 48 are the 24; document, prompt and answer of an item fit
into ``length`` tokens; no task knows a model beyond its tokenizer.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from pipeline.evaluation.tasks.sizer import Sizer, Wording

Span = tuple[int, int]
Match = Literal["all", "any"]

_STRIDE = 0.6180339887498949
"""Golden ratio: multiples of it, modulo 1, spread evenly however many are taken."""


@dataclass(frozen=True)
class Item:
    """One question about one document. ``answers``: references, and ``match`` says whether all of them or any one
    must be in an answer. ``gold``: half-open character ranges of ``context`` that must be kept to know the answer;
    empty where no span answers. ``length``: the tokens that document, prompt and answer together may have.
    ``instruction``: the sentence before the document; None for the evaluation's own."""

    id: str
    task: str
    length: int
    context: str
    question: str
    answer_prefix: str
    answers: tuple[str, ...]
    match: Match
    gold: tuple[Span, ...]
    max_new_tokens: int
    instruction: str | None = None


class Task(Protocol):
    """Where items come from."""

    def items(self, sizer: Sizer, counts: Mapping[int, int], seed: int) -> Iterator[Item]:
        """``counts[length]`` items for each length, lengths in their order. Raises ``ValueError`` for a length that
        cannot be had."""
        ...


@dataclass(frozen=True)
class Seat:
    """What a generated item is given: its randomness, its length, and where in the document (0 to 1) its fact goes.
    ``seed`` is the evaluation's, for what items of one task share."""

    sizer: Sizer
    seed: int
    rng: random.Random
    length: int
    index: int
    depth: float

    def room(self, wording: Wording) -> int:
        """Tokens left for the document beside these words."""
        return self.sizer.room(self.length, wording)


@dataclass(frozen=True)
class Draft:
    """An item before it has a name."""

    context: str
    wording: Wording
    answers: tuple[str, ...]
    gold: tuple[Span, ...] = ()
    match: Match = "all"


@dataclass(frozen=True, kw_only=True)
class GeneratedTask(ABC):
    """A task whose items are drawn from a seed, at depths spread evenly over the document."""

    label: str

    @abstractmethod
    def draw(self, seat: Seat) -> Draft:
        """One item. Raises ``ValueError`` where ``seat.length`` is too short or too long for it."""

    def items(self, sizer: Sizer, counts: Mapping[int, int], seed: int) -> Iterator[Item]:
        """As ``Task.items``."""
        shallowest = random.Random(f"{seed}/{self.label}").random()
        for length, count in counts.items():
            for index in range(count):
                rng = random.Random(f"{seed}/{self.label}/{length}/{index}")
                yield self._item(Seat(sizer, seed, rng, length, index, (shallowest + index * _STRIDE) % 1))

    def _item(self, seat: Seat) -> Item:
        try:
            draft = self.draw(seat)
        except ValueError as error:
            raise ValueError(f"{self.label}: {error}") from error
        return Item(
            id=f"{self.label}-{seat.length}-{seat.index:03d}",
            task=self.label,
            length=seat.length,
            context=draft.context,
            question=draft.wording.question,
            answer_prefix=draft.wording.answer_prefix,
            answers=draft.answers,
            match=draft.match,
            gold=draft.gold,
            max_new_tokens=draft.wording.max_new_tokens,
        )
