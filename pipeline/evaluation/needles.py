"""Needle corpora: one fact hidden in real text, at a known depth, in documents of a known length.

The single-needle task of RULER (Hsieh et al. 2024): "One of the special magic numbers for CITY is: NUMBER."
somewhere in a haystack, here the language reference that ships with Python. Written in the input schema of
long-context benchmarks (``context, question, answer_prefix, answer, max_new_tokens``), so that the product
itself runs it. Invariants: the same arguments give the same rows; depths are spread evenly; a document and
its prompt fit into ``tokens`` together, so a dense model whose window is that long can be compared.
"""

from __future__ import annotations

import random
from pathlib import Path
from pydoc_data.topics import topics

import pyarrow as pa
import pyarrow.parquet as pq

from workers.hf import Tokenizer

PROMPT_TOKENS = 192
"""Left free in every item for the words around the document and for the answer."""

CITIES = ("Oslo", "Lima", "Cairo", "Quito", "Dakar", "Turin", "Perth", "Kyoto", "Porto", "Delhi")


def haystack() -> str:
    """The reference text, all topics in alphabetical order: about 115,000 tokens of SmolLM2."""
    return "\n\n".join(topics[name].strip() for name in sorted(topics))


def build_needles(path: Path, tokenizer: Tokenizer, *, tokens: int, items: int, seed: int) -> None:
    """Write ``items`` rows of about ``tokens`` tokens each (document and prompt) as Parquet.

    Raises ``ValueError`` for a length that the reference text does not have.
    """
    rng = random.Random(f"{seed}/{tokens}")
    text = haystack()
    _, offsets = tokenizer.encode_with_offsets(text)
    length = tokens - PROMPT_TOKENS
    if not 0 < length < len(offsets):
        raise ValueError(f"tokens: {tokens}; allowed: {PROMPT_TOKENS + 1} to {len(offsets) + PROMPT_TOKENS - 1}")
    rows = []
    for index in range(items):
        first = rng.randrange(len(offsets) - length)
        hay = text[offsets[first][0] : offsets[first + length - 32][1]]
        city, number = rng.choice(CITIES), str(rng.randrange(10_000, 100_000))
        rows.append(
            {
                "id": f"needle-{tokens}-{index:02d}",
                "context": _hide(
                    hay, f"One of the special magic numbers for {city} is: {number}.", (index + 0.5) / items
                ),
                "question": f"What is the special magic number for {city} mentioned in the provided text?",
                "answer_prefix": f"The special magic number for {city} mentioned in the provided text is",
                "answer": number,
                "max_new_tokens": 12,
            }
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=1)


def _hide(hay: str, needle: str, depth: float) -> str:
    """Put the needle behind the first sentence or line that ends after ``depth`` of the text."""
    start = int(len(hay) * depth)
    ends = [place for mark in (". ", "\n") if (place := hay.find(mark, start)) >= 0]
    place = min(ends, default=len(hay) - 1) + 1
    return f"{hay[:place]} {needle} {hay[place:]}"
