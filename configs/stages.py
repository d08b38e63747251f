"""What happens to a document on its way to an answer, as a job says it: read, keep, answer.

Which methods there are is in ``methods``, which of them cannot stand together in ``conflicts``. This module is a
leaf beside ``schema``: no torch, no ray.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from configs.closed import Closed, Fraction, Natural, Positive
from configs.methods import (
    AllReader,
    Budget,
    DensePattern,
    NoPruning,
    Pattern,
    ProbeScorer,
    Pruning,
    Reader,
    Scorer,
    UniformBudget,
)


class Read(Closed):
    """How documents are read. ``isolated``: a chunk sees itself only, all in parallel. ``carried``: a chunk
    also reads the kept sets of the earlier chunks, in order. ``borders: even``: every chunk has ``chunk_tokens``.
    ``content``: chunks end where the text says so, none of them longer, and what stands behind a change is cut as
    it was before, so that a store that outlives the job (``store.keep``) still has it. ``skim: auto`` stops the
    encode pass at the last retrieval layer where the answer does not need deeper pairs (``answer.over: reread``)."""

    chunk_tokens: Annotated[int, Field(ge=32)] = 2048
    borders: Literal["even", "content"] = "even"
    context: Literal["isolated", "carried"] = "isolated"
    pattern: Pattern = DensePattern()
    pruning: Pruning = NoPruning()
    skim: Literal["auto"] | bool = "auto"


class Keep(Closed):
    """What survives reading. Each kept block is widened by ``widen_tokens`` on both sides, so that a fact
    on a block border is not cut; the widened tokens count against the budget. ``question: unknown`` reads and
    keeps without looking at the questions, so that what was kept serves every later one. ``codec``: how the numbers of
    kept pairs are held, from the moment they are kept: as the model computes them, as shorter floats, or as 8-bit
    integers with a scale for each channel of each head. ``chunk_fraction``: the most that one chunk may keep of its own
    tokens, per layer and head on average; none: as much as the whole document may."""

    block_tokens: Positive = 32
    widen_tokens: Natural = 16
    question: Literal["known", "unknown"] = "known"
    codec: Literal["model", "float32", "bfloat16", "float16", "int8"] = "model"
    chunk_fraction: Fraction | None = None
    scorer: Scorer = ProbeScorer()
    budget: Budget = UniformBudget()


class AnswerOver(Closed):
    """``reread``: the kept text is read once more, together. ``kept``: the kept pairs are read as they are.
    ``positions: compact`` moves them together, so that the window bounds what is kept and not the document;
    ``original`` leaves them where they stood, and the document must fit into the window.
    ``narrow``: ``narrow_budgets`` budgets' worth of text is encoded together and selected from again, then reread.
    ``two_round``: each chunk is read again behind what the first round kept of the others, then selected and
    reread. ``separator`` is put between kept runs of text that were not neighbours. ``batch_size`` questions are
    decoded together; the plan fixes which, so timing never changes an answer."""

    over: Literal["reread", "kept", "narrow", "two_round"] = "reread"
    positions: Literal["compact", "original"] = "compact"
    narrow_budgets: Annotated[int, Field(ge=2)] = 4
    separator: str = ""
    reader: Reader = AllReader()
    batch_size: Positive = 8
