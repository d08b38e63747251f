"""Why a store that holds entries has none for a chunk: whose they are instead, in one sentence.

A key is a digest, so nobody can ask a store for "this text, read by anyone". But the entries that are there say who
made them, and with a maker and the text a key can be named and looked for. Invariants: pure; that entries are of this
text is only said where a key proves it; a chunk that is simply new, in a store that holds others of its maker, needs no
explanation; a tenant is never named.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import fields, replace

from cache_store.codec import Header
from cache_store.identity import BlockKey, Identity, digest_tokens

WORDS: Mapping[str, str] = {
    "tenant": "for another tenant (store.tenant)",
    "weights": "by other weights (model.source)",
    "tokenizer": "with another tokenizer (model.source)",
    "dtype": "in another dtype (model.dtype)",
    "attention": "by another attention backend (model.attention)",
    "rope": "with other rotary positions (model.source)",
    "layers": "of other layers (answer.over)",
    "heads": "by heads of another shape (model.source)",
    "reading": "by another way of reading (read)",
    "scorer": "by another scorer (keep.scorer)",
    "budget": "for another budget (keep.budget)",
    "codec": "in another codec (keep.codec)",
    "question": "for one question only (keep.question)",
    "chunk": "in chunks of other lengths (read.chunk_tokens, read.borders)",
    "context": "behind other text (prompt)",
}
"""How an entry was made that differs in one field, and the keys of a job that decide it."""

_OF_WEIGHTS = {"tokenizer", "rope", "layers", "heads", "reading", "scorer", "budget", "context"}
"""What may differ for no other reason than the model, or sizes that are counted in its heads."""
_OF_TOKENIZER = {"reading", "context"}


def explain(
    wanted: Identity, chunks: Sequence[Sequence[int]], held: Collection[Header], keys: Collection[BlockKey]
) -> str | None:
    """Why ``wanted`` was missing, or None where nothing can be told. ``chunks``: token ids of its document, in order;
    ``held``: what some of the store's entries say of themselves; ``keys``: of all of them."""
    makers: dict[Identity, set[int]] = defaultdict(set)
    for header in held:
        makers[_maker(header.identity)].add(header.num_tokens)
    return _of_this_text(wanted, chunks, makers, keys) or _of_any_text(wanted, held, len(keys))


def _of_this_text(
    wanted: Identity, chunks: Sequence[Sequence[int]], makers: Mapping[Identity, set[int]], keys: Collection[BlockKey]
) -> str | None:
    """The maker that has read most of this text, and of those with as much the one that differs least."""
    digests = [_digest(chunk) for chunk in chunks]
    text = [token for chunk in chunks for token in chunk]
    found: list[tuple[int, int, str]] = []
    for maker, lengths in makers.items():
        differing = _differing(maker, wanted)
        same = sum(_key(maker, digest) in keys for digest in digests)
        if _is_cut_otherwise(maker, text, lengths, keys) and _key(maker, digests[0]) not in keys:
            found.append((same, -len(differing), f"this text, made {_in_words([*differing, 'chunk'])}"))
        elif same and differing:
            entries = f"{same:,} {'entry' if same == 1 else 'entries'} of this text"
            found.append((same, -len(differing), f"{entries} made {_in_words(differing)}"))
    return f"the store holds {max(found)[2]}" if found else None


def _is_cut_otherwise(
    maker: Identity, text: Sequence[int], lengths: Collection[int], keys: Collection[BlockKey]
) -> bool:
    """Whether a maker's entries are of this text from its beginning on, in chunks of these lengths: one and the next.
    One alone could be a text that has grown since."""

    def holds(start: int, length: int) -> bool:
        return _key(maker, _digest(text[start : start + length])) in keys

    firsts = [length for length in lengths if 0 < length <= len(text) and holds(0, length)]
    return any(first == len(text) or any(holds(first, length) for length in lengths) for first in firsts)


def _of_any_text(wanted: Identity, held: Collection[Header], total: int) -> str | None:
    """What most entries differ in, where none is of the wanted maker. A budget may be a share of its document's length,
    so between different texts it tells nothing."""
    makers = (replace(_maker(header.identity), budget=wanted.budget) for header in held)
    kinds = Counter(tuple(_differing(maker, wanted)) for maker in makers)
    if not kinds or () in kinds:
        return None
    differing, number = kinds.most_common(1)[0]
    share = "all" if number == len(held) else "most" if 2 * number > len(held) else "many"
    entries = f"{total:,} entries, {share} of them" if total > 1 else "one entry,"
    return f"the store holds {entries} made {_in_words(differing)}"


def _digest(chunk: Sequence[int]) -> str:
    """As an engine names a chunk whose place in its document does not count."""
    return digest_tokens(chunk, [])


def _maker(identity: Identity) -> Identity:
    """Everything but the text."""
    return replace(identity, chunk="")


def _key(maker: Identity, chunk: str) -> BlockKey:
    return replace(maker, chunk=chunk).key()


def _differing(maker: Identity, wanted: Identity) -> list[str]:
    names = (field.name for field in fields(Identity) if field.name != "chunk")
    return [name for name in names if getattr(maker, name) != getattr(wanted, name)]


def _in_words(differing: Iterable[str]) -> str:
    """The fields that differ, without those that differ because others do."""
    names = set(differing)
    names -= _OF_WEIGHTS if "weights" in names else _OF_TOKENIZER if "tokenizer" in names else set()
    return " and ".join(words for name, words in WORDS.items() if name in names)
