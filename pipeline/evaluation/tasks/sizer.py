"""Sizes in the model's own tokens: how long a document may be, and the longest that fits.

Invariants: what is counted is what the engine will read: the same prompt, the same tokenizer; a text is measured
whole, because tokens of parts do not add up.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Protocol

from configs.schema import Model, Prompt
from pipeline.evaluation.tasks.reference import Reference, Split, reference_text
from workers.hf import Tokenizer
from workers.prompt import Frame
from workers.source import locate


class HasPrompt(Protocol):
    """What a document is read with."""

    @property
    def model(self) -> Model: ...  # noqa: D102

    @property
    def prompt(self) -> Prompt: ...  # noqa: D102


class Wording(NamedTuple):
    """The words beside a document: ``answer_prefix`` is put into the model's mouth."""

    question: str
    answer_prefix: str
    max_new_tokens: int


@dataclass(frozen=True)
class Sizer:
    """Measures with the prompt that the evaluation uses. Remembers the tokens of the reference text."""

    frame: Frame
    system: str | None = None
    _references: dict[tuple[Split, bool], Reference] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def of(cls, settings: HasPrompt) -> Sizer:
        """For a job, or for an evaluation's base: its model's tokenizer and its prompt."""
        tokenizer = Tokenizer(locate(settings.model.source).directory)
        prompt = settings.prompt
        return cls(Frame.render(tokenizer, prompt.system, prompt.instruction), prompt.system)

    def told(self, instruction: str | None) -> Sizer:
        """With another sentence before the document; None: as it is."""
        if instruction is None:
            return self
        return replace(self, frame=Frame.render(self.tokenizer, self.system, instruction))

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's own."""
        return self.frame.tokenizer

    def tokens(self, text: str) -> int:
        """How many tokens a document is."""
        return len(self.tokenizer.encode(text))

    def room(self, length: int, wording: Wording) -> int:
        """Tokens that a document may have, so that it, its prompt and its answer are ``length`` tokens. Raises
        ``ValueError`` where nothing is left."""
        probe = self.frame.probe("item", wording.question, wording.answer_prefix)
        around = len(self.frame.anchor) + len(probe.token_ids) + wording.max_new_tokens
        if length <= around:
            raise ValueError(f"lengths: {length}; prompt and answer alone are {around} tokens; allowed: more")
        return length - around

    def reference(self, split: Split, tokens: int) -> Reference:
        """Real text of at least ``tokens`` tokens: the topics of a split alone where they are enough, else all of
        them, that split's first. Raises ``ValueError`` where there is not so much text."""
        for whole in (False, True):
            if (split, whole) not in self._references:
                text = reference_text(split, whole=whole)
                offsets = self.tokenizer.encode_with_offsets(text)[1]
                self._references[split, whole] = Reference(text, tuple(offsets))
            found = self._references[split, whole]
            if found.tokens >= tokens:
                return found
        raise ValueError(f"lengths: {tokens} tokens of document; the reference text has {found.tokens}; allowed: less")

    def largest(self, build: Callable[[int], str], tokens: int, *, least: int = 0, most: int | None = None) -> int:
        """The largest n of ``least`` to ``most`` for which ``build(n)`` has at most ``tokens`` tokens; the text must
        grow with n. Raises ``ValueError`` where ``least`` is too much."""
        low, size = least, self.tokens(build(least))
        if size > tokens:
            raise ValueError(f"lengths: {tokens} tokens are left for a document that needs {size}; allowed: more")
        origin, slope, tries = (low, size), max(1.0, tokens / 16), 0  # the first step is short: 16 units
        above = most + 1 if most is not None else None  # the least n known to be too many
        while size < tokens and (above is None or above - low > 1):
            n = low + max(1, int((tokens - size) / slope))
            tries += 1
            if above is not None:
                n = (low + above) // 2 if tries % 4 == 0 else min(n, above - 1)
            found = self.tokens(build(n))
            if found <= tokens:
                low, size = n, found
            else:
                above = n
            slope = max((found - origin[1]) / (n - origin[0]), 1e-3)
        return low
