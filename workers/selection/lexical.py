"""Evidence of words: how well a block's words match the question's, beside what attention says.

Okapi BM25 (Robertson and Zaragoza 2009, "The Probabilistic Relevance Framework: BM25 and Beyond"), with the blocks of
one document as its collection. Attention finds what is meant and misses names it has no heads for; BM25 finds names
and is lost in look-alikes. Together they find more than either: see ``docs/results``. Invariants: scores are finite
and at least 0; a question without a word of the text scores 0 everywhere.

Shapes: B blocks, W words of the question.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_WORD = re.compile(r"\w+")
_SATURATION = 1.5
"""k1: how soon a word's repetitions stop to count."""
_LENGTH = 0.75
"""b: how much longer blocks are held back."""


def words(text: str) -> list[str]:
    """The words of a text, in lower case."""
    return _WORD.findall(text.lower())


def bm25(texts: Sequence[str], question: str) -> NDArray[np.float64]:
    """BM25 score of each of B texts for a question, [B]. The more texts hold a word, the less it counts, and never less
    than nothing (Robertson's weight falls below that; this one, log(1 + ...), does not)."""
    counts = [Counter(words(text)) for text in texts]
    lengths_B = np.array([sum(count.values()) for count in counts], dtype=np.float64)
    asked = words(question)
    frequency_WB = np.array([[count[word] for count in counts] for word in asked], dtype=np.float64)
    if not asked or not lengths_B.any():
        return np.zeros(len(counts))
    having_W = (frequency_WB > 0).sum(axis=1)
    weight_W = np.log(1.0 + (len(counts) - having_W + 0.5) / (having_W + 0.5))
    slowed_B = _SATURATION * (1 - _LENGTH + _LENGTH * lengths_B / lengths_B.mean())
    scores_B: NDArray[np.float64] = weight_W @ (frequency_WB * (_SATURATION + 1) / (frequency_WB + slowed_B))
    return scores_B
