"""The lexical control: the same exam, blocks and budgets, ranked by BM25 instead of attention.

Okapi BM25 (Robertson and Zaragoza 2009) by the library rank-bm25, over blocks of the same tokens; plain, and with
the same neighbour step as the model's relevance, so that what differs then is only who scored.
"""

from __future__ import annotations

import re

import numpy as np
from rank_bm25 import BM25Okapi

from workers.hf import Tokenizer
from workers.selection.budgets.base import BlockTable
from workers.selection.budgets.uniform import UniformBudget
from workers.selection.calibrate import BUDGETS
from workers.selection.observe import BLOCK_TOKENS, WIDEN_TOKENS
from workers.selection.questions import Exam
from workers.selection.relevance import with_neighbours


def bm25_recall(tokenizer: Tokenizer, exam: Exam, *, neighbours: bool = False) -> dict[str, float]:
    """Share of questions whose whole gold passage is kept, by budget in tokens. ``neighbours``: a block hears those
    beside it, as in ``selection.relevance``."""
    _, offsets = tokenizer.encode_with_offsets(exam.text)
    starts, stops = np.array(offsets).T
    borders = [(first, min(first + BLOCK_TOKENS, len(offsets))) for first in range(0, len(offsets), BLOCK_TOKENS)]
    ranker = BM25Okapi([_words(exam.text[starts[first] : stops[last - 1]]) for first, last in borders])
    found: dict[int, list[bool]] = {budget: [] for budget in BUDGETS}
    for question in exam.questions:
        scores_B = np.asarray(ranker.get_scores(_words(question.text)), dtype=np.float64)
        if neighbours:
            [scores_B] = with_neighbours(scores_B[None])
        table = BlockTable.of_chunks([(0, len(offsets))], [scores_B[None, None]], BLOCK_TOKENS)
        for budget, hits in found.items():
            kept = UniformBudget(WIDEN_TOKENS).choose(table, budget).of(0, 0)
            inside = [(int(starts[first]), int(stops[last - 1])) for first, last in kept]
            hits.append(any(a <= first and last <= b for first, last in question.gold for a, b in inside))
    return {f"recall_at_{budget}": round(float(np.mean(hits)), 4) for budget, hits in found.items()}


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())
