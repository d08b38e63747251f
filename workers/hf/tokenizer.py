"""A model's words: text to token ids and back, and conversations as its chat template writes them.

Invariants: what a document says is text, whatever it looks like: only our own words may hold control tokens; the same
conversation is the same text on every day.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

from jinja2 import TemplateError
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from workers.errors import ModelError

_FIXED_DAY = "{% macro strftime_now(format) %}26 Jul 2024{% endmacro %}"
"""Goes before every chat template: there it is always the day that templates with a date themselves fall back on."""


class Tokenizer:
    """A fast tokenizer that never reads control tokens out of a document's text.

    Invariant: threads may share it. transformers writes into a tokenizer whether it looks for control tokens, so there
    is one that always does and one that never does.
    """

    def __init__(self, directory: Path) -> None:
        """Load the tokenizer of a model directory. Raises ``ModelError``."""
        try:
            self._tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
        except (OSError, ValueError, KeyError) as error:
            raise ModelError(f"model.source: {directory}: no tokenizer there: {error}") from error
        if not self._tokenizer.is_fast:
            raise ModelError(f"model.source: {directory}: its tokenizer gives no character offsets (not a fast one)")
        self._for_frames = copy.deepcopy(self._tokenizer)

    def encode(self, text: str) -> list[int]:
        """Token ids of plain text: nothing is added, and text that looks like a control token (one that the
        tokenizer lists as special) stays text."""
        ids: list[int] = self._tokenizer(
            text, add_special_tokens=False, split_special_tokens=True, verbose=False
        ).input_ids
        return ids

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Like ``encode``, with each token's half-open character range in ``text``."""
        coded = self._tokenizer(
            text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True, verbose=False
        )
        return coded["input_ids"], coded["offset_mapping"]

    def encode_frame(self, text: str, *, opening: bool = False) -> list[int]:
        """Token ids of our own words around a document: control tokens count, ``opening`` adds a start token."""
        ids: list[int] = self._for_frames(text, add_special_tokens=opening, verbose=False).input_ids
        return ids

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of generated tokens, without control tokens."""
        return str(self._tokenizer.decode(list(token_ids), skip_special_tokens=True))

    def render_chat(self, system: str | None, user: str) -> str | None:
        """The conversation as the model's chat template writes it, up to the answer; None without a template."""
        if not self._tokenizer.chat_template:
            return None
        messages = [{"role": "system", "content": system}] if system is not None else []
        messages.append({"role": "user", "content": user})
        # Some templates write today's date into the system prompt: answers would depend on the day of the run.
        template = _FIXED_DAY + self._tokenizer.get_chat_template()
        try:
            rendered = self._tokenizer.apply_chat_template(
                messages, chat_template=template, tokenize=False, add_generation_prompt=True
            )
        except TemplateError as error:
            raise ModelError(f"prompt: the model's chat template refuses this conversation: {error}") from error
        return str(rendered)

    @property
    def stop_ids(self) -> frozenset[int]:
        """The tokenizer's own end token, where it has one."""
        end = self._tokenizer.eos_token_id
        return frozenset() if end is None else frozenset([int(end)])
