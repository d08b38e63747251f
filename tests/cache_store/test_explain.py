"""Why a store has nothing for a chunk: every field that can differ is named, and nothing is said that is not so."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import fields, replace
from typing import Any

import pytest

from cache_store.codec import Header
from cache_store.explain import WORDS, explain
from cache_store.identity import Identity, digest_tokens
from tests.cache_store.blocks import make_identity

TEXT = [list(range(0, 64)), list(range(64, 128)), list(range(128, 150))]
OTHER_TEXT = [[7] * 64, [8] * 64]
MAKER = make_identity(0)
OTHER: dict[str, Any] = {
    "tenant": "a secret salt",
    "layers": (0, 0),
    "heads": (1, 8),
    "question": "a digest",
}
FIELDS = [field.name for field in fields(Identity) if field.name != "chunk"]


def other_maker(*names: str) -> Identity:
    """A maker that differs in these fields."""
    return replace(MAKER, **{name: OTHER.get(name, "other") for name in names})


def entries(maker: Identity, chunks: Sequence[Sequence[int]]) -> list[Header]:
    """What a maker leaves of a text."""
    return [
        Header(replace(maker, chunk=digest_tokens(chunk, [])), len(chunk), 2 * len(chunk) + 5, {}) for chunk in chunks
    ]


def why(held: Collection[Header], text: Sequence[Sequence[int]] = TEXT) -> str | None:
    """As ``explain``, for the first chunk of a text and a store that is looked at as a whole."""
    [wanted, *_] = entries(MAKER, text)
    return explain(wanted.identity, text, held, {header.identity.key() for header in held})


def test_every_field_has_words() -> None:
    assert list(WORDS) == [field.name for field in fields(Identity)]


@pytest.mark.parametrize("name", FIELDS)
def test_the_field_that_differs_is_named_and_nothing_else(name: str) -> None:
    said = why(entries(other_maker(name), TEXT))
    assert said == f"the store holds 3 entries of this text made {WORDS[name]}"


@pytest.mark.parametrize("name", [name for name in FIELDS if name != "budget"])
def test_so_it_is_where_only_other_texts_are_held(name: str) -> None:
    said = why(entries(other_maker(name), OTHER_TEXT))
    assert said == f"the store holds 2 entries, all of them made {WORDS[name]}"


def test_a_text_that_is_new_needs_no_explanation() -> None:
    assert why([]) is None
    assert why(entries(MAKER, OTHER_TEXT)) is None
    assert why([*entries(MAKER, OTHER_TEXT), *entries(other_maker("weights"), OTHER_TEXT)]) is None


def test_a_budget_tells_nothing_between_texts_of_other_lengths() -> None:
    assert why(entries(other_maker("budget"), OTHER_TEXT)) is None


def test_a_text_in_chunks_of_other_lengths_is_known_by_its_first_one() -> None:
    whole = [token for chunk in TEXT for token in chunk]
    for lengths in (32, 100):
        cut = [whole[start : start + lengths] for start in range(0, len(whole), lengths)]
        said = why(entries(MAKER, cut))
        assert said == f"the store holds this text, made {WORDS['chunk']}"
        said = why(entries(other_maker("scorer"), cut))
        assert said == f"the store holds this text, made {WORDS['scorer']} and {WORDS['chunk']}"


def test_a_text_that_grew_is_new() -> None:
    assert why(entries(MAKER, [TEXT[0][:40]])) is None


def test_other_weights_explain_what_differs_because_of_them() -> None:
    everything = other_maker("weights", "tokenizer", "rope", "layers", "heads", "scorer", "budget", "context")
    assert why(entries(everything, TEXT)) == f"the store holds 3 entries of this text made {WORDS['weights']}"
    both = why(entries(other_maker("weights", "dtype"), TEXT))
    assert both == f"the store holds 3 entries of this text made {WORDS['weights']} and {WORDS['dtype']}"
    words = why(entries(other_maker("tokenizer", "context"), OTHER_TEXT))
    assert words == f"the store holds 2 entries, all of them made {WORDS['tokenizer']}"


def test_who_read_most_of_the_text_is_named() -> None:
    some = entries(other_maker("dtype"), TEXT[:1])
    more = entries(other_maker("codec", "budget"), TEXT[:2])
    said = why([*some, *more, *entries(other_maker("tenant"), OTHER_TEXT)])
    assert said == f"the store holds 2 entries of this text made {WORDS['budget']} and {WORDS['codec']}"
    said = why([*some, *entries(other_maker("tenant"), OTHER_TEXT)])
    assert said == f"the store holds 1 entry of this text made {WORDS['dtype']}"


def test_entries_of_the_text_are_found_whose_headers_nobody_looked_at() -> None:
    held = entries(other_maker("attention"), [*OTHER_TEXT, *TEXT])
    keys = {header.identity.key() for header in held}
    said = explain(entries(MAKER, TEXT)[0].identity, TEXT, held[:1], keys)
    assert said == f"the store holds 3 entries of this text made {WORDS['attention']}"


def test_most_is_said_of_most() -> None:
    held = [*entries(other_maker("dtype"), OTHER_TEXT), *entries(other_maker("tenant"), [[9] * 64])]
    assert why(held) == f"the store holds 3 entries, most of them made {WORDS['dtype']}"
    assert "salt" not in str(why(entries(other_maker("tenant"), TEXT)))
