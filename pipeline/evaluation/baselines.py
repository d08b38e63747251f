"""What our methods are compared with: no attention-based selection at all, at the same number of kept tokens.

Each baseline answers over text through the same engine and prompt as ``answer.over: reread``, so that what differs is
only which text. One function each, and one line in the table.

Shapes: B blocks.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from rank_bm25 import BM25Okapi

from pipeline.evaluation.contender import Contender
from pipeline.prepared import Prepared
from workers.engine import Engine
from workers.messages import Ask, Interval, Query, Run
from workers.selection.budgets.base import BlockTable
from workers.selection.budgets.uniform import UniformBudget


@dataclass(frozen=True)
class Plain:
    """A document without a reading: its ``prepared`` form, its text, and an engine that answers over text."""

    prepared: Prepared
    engine: Engine

    def query(self, kept: tuple[Interval, ...]) -> Query:
        """The document's only question over these runs of its tokens."""
        ids = self.prepared.token_ids
        return Query(
            document=self.prepared.name,
            probe=self.prepared.probes[0],
            runs=tuple(Run(start, ids[start:stop]) for start, stop in kept),
            max_new_tokens=self.prepared.asked[0].max_new_tokens,
        )


def dense(plain: Plain, contender: Contender) -> Query:
    """The whole document at once: the model as it is, in its window and beyond."""
    return plain.query(((0, plain.prepared.num_tokens),))


def truncate(plain: Plain, contender: Contender) -> Query:
    """Head and tail, half of the budget each: what most programs do with a document that is too long."""
    assert contender.budget is not None
    length, half = plain.prepared.num_tokens, contender.budget // 2
    if length <= 2 * half:
        return plain.query(((0, length),))
    return plain.query(((0, half), (length - half, length)))


def bm25(plain: Plain, contender: Contender) -> Query:
    """The blocks that the question's words find (Robertson and Zaragoza 2009), by the library rank-bm25, widened and
    reread as our own are."""
    assert contender.budget is not None
    prepared, keep = plain.prepared, contender.job.keep
    whole = [(0, prepared.num_tokens)]
    table = BlockTable.of_chunks(
        whole, [np.zeros((1, 1, -(-prepared.num_tokens // keep.block_tokens)))], keep.block_tokens
    )
    places = prepared.offsets_T2
    texts = [
        prepared.document.text[places[start, 0] : places[stop - 1, 1]]
        for start, stop in zip(table.starts_B, table.stops_B, strict=True)
    ]
    scores_B = BM25Okapi([_words(text) or [""] for text in texts]).get_scores(_words(prepared.asked[0].text))
    ranked = replace(table, share_LGB=np.asarray(scores_B, dtype=np.float64)[None, None])
    return plain.query(UniformBudget(keep.widen_tokens).choose(ranked, contender.budget).kept[0])


def map_reduce(plain: Plain, contender: Contender) -> Query:
    """Every chunk is asked, then all answers together: summarising's way of reading more than a window."""
    prepared = plain.prepared
    asks = [
        replace(
            plain.query(((chunk.start, chunk.start + len(chunk.token_ids)),)), document=f"{prepared.name}#{chunk.index}"
        )
        for chunk in prepared.chunks
    ]
    size = contender.job.answer.batch_size
    answers = [
        answer.text.strip()
        for start in range(0, len(asks), size)
        for answer in plain.engine.answer(Ask(tuple(asks[start : start + size]))).answers
    ]
    ids = plain.engine.tokenizer.encode("\n".join(answers))
    return replace(plain.query(()), runs=(Run(0, tuple(ids)),))


BASELINES: Mapping[str, Callable[[Plain, Contender], Query]] = {
    "dense": dense,
    "truncate": truncate,
    "bm25": bm25,
    "map_reduce": map_reduce,
}


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())
