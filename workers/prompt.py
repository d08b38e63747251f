"""The words around a document: the anchor before every chunk, the probe after it.

A conversation is rendered once by the model's own chat template and cut where the document stands. What
comes before is the anchor (the same for every chunk and question, so its pairs are computed once); what
comes after is the probe: the question, the turn's closing, the answer prefix. Invariants: anchor +
document + probe is the conversation; ``Probe.scored`` covers the question's own words and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass

from workers.errors import DocumentError
from workers.hf import Tokenizer
from workers.messages import Probe

# Private-use characters: no template treats them specially, and they cannot come from a template.
_DOCUMENT, _QUESTION = "\ue0fd", "\ue0fe"
REPEAT = "\n\nRepeat the previous context exactly."
"""What a chunk is followed by where a scorer watches the model repeat it (KVzip, Kim et al. 2025)."""
_PLAIN = "{instruction}\n\n{document}\n\nQuestion: {question}\nAnswer:"


@dataclass(frozen=True)
class Frame:
    """The prompt in pieces: anchor tokens, the text between document and question, the text after it."""

    tokenizer: Tokenizer
    anchor: tuple[int, ...]
    before_question: tuple[int, ...]
    after_question: str

    @classmethod
    def render(cls, tokenizer: Tokenizer, system: str | None, instruction: str) -> Frame:
        """Cut the rendered conversation at document and question."""
        lead = f"{instruction}\n\n" if instruction else ""
        text = tokenizer.render_chat(system, f"{lead}{_DOCUMENT}\n\n{_QUESTION}")
        opening = text is None
        if text is None:
            head = f"{system}\n\n{instruction}" if system else instruction
            text = _PLAIN.format(instruction=head, document=_DOCUMENT, question=_QUESTION).lstrip()
        before, _, rest = text.partition(_DOCUMENT)
        between, _, after = rest.partition(_QUESTION)
        return cls(
            tokenizer,
            anchor=tuple(tokenizer.encode_frame(before, opening=opening)),
            before_question=tuple(tokenizer.encode_frame(between)),
            after_question=after,
        )

    @property
    def repetition(self) -> tuple[int, ...]:
        """What stands between a chunk and its repetition: the request, and what ends the user's turn."""
        return tuple(self.tokenizer.encode_frame(REPEAT + self.after_question))

    def probe(self, question_id: str, question: str, answer_prefix: str = "") -> Probe:
        """The probe of one question. ``answer_prefix`` begins the answer and is not part of what is generated."""
        words = self.tokenizer.encode(question)
        if not words:
            raise DocumentError(f"question {question_id!r} has no tokens")
        closing = self.tokenizer.encode_frame(self.after_question)
        lead = "" if self.after_question.endswith(("\n", " ", ">", "]")) else " "
        prefix = self.tokenizer.encode(lead + answer_prefix) if answer_prefix else []
        first = len(self.before_question)
        return Probe(
            question_id=question_id,
            token_ids=(*self.before_question, *words, *closing, *prefix),
            scored=(first, first + len(words)),
        )
