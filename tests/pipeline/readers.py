"""Document readers over the tiny model's tokenizer (one token per byte), and engines that say what they are told."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from configs.schema import Job
from pipeline.document import Asked, Document, Fault
from pipeline.prepared import Prepared, Selection
from pipeline.reading import DocumentReader
from workers.loading import load_reading
from workers.messages import ChunkRelevance, Encode, Encoded, Interval
from workers.selection.budgets.base import Budget
from workers.selection.budgets.uniform import UniformBudget
from workers.selection.profile import Profile
from workers.selection.scorers.base import Scorer
from workers.selection.scorers.probe import ProbeScorer

BLOCK, WIDEN = 16, 4
SCORER = ProbeScorer(Profile("tiny", ((0, 1),)))
BUDGET = UniformBudget(WIDEN)
LETTERS = "".join(chr(ord("a") + n % 26) for n in range(3000))


def job(model: Path, **changes: object) -> Job:
    record: dict[str, object] = {
        "corpus": {"path": "x.parquet"},
        "questions": [{"id": "who", "text": "Who signed it?"}],
        "model": {"source": str(model)},
        "read": {"chunk_tokens": 64},
        "keep": keep(48),
        "output": {"path": "out"},
    }
    return Job.model_validate(record | changes)


def keep(tokens: int = 1024, fraction: float | None = None) -> dict[str, object]:
    budget = {"kind": "uniform", "tokens": tokens, "fraction": fraction}
    return {"block_tokens": BLOCK, "widen_tokens": WIDEN, "budget": budget}


def reader_of(model: Path, *, scorer: Scorer = SCORER, budget: Budget = BUDGET, **changes: object) -> DocumentReader:
    made = job(model, **changes)
    return DocumentReader(made, load_reading(made), scorer, budget)


def document(text: str | None, *questions: Asked, fault: Fault | None = None) -> Document:
    asked = questions or (Asked("who", "Who signed it?", "", 8, None),)
    return Document("doc", text or "", "x.parquet", 3, asked, fault)


def text_with(**marks: int) -> str:
    """Letters, with capital ``marks`` at those places."""
    letters = list(LETTERS[:300])
    for mark, place in marks.items():
        letters[place] = mark
    return "".join(letters)


Heat = Callable[[Encode, tuple[int, ...]], float]
"""What an engine makes of one block: the message it came with, and the block's tokens."""


def hot(prepared: Prepared, **marks: float) -> Heat:
    """A block is as relevant as the hottest of the document's marks in it."""
    heats = {prepared.token_ids[prepared.document.text.index(mark)]: heat for mark, heat in marks.items()}
    return lambda encode, ids: max((heats[token] for token in ids if token in heats), default=-10.0)


def encoded(
    encodes: Sequence[Encode], heat: Heat, offered: tuple[tuple[Interval, ...], ...] | None = None
) -> list[Encoded]:
    """Results as an engine gives them, one row and one head for every probe."""
    messages = []
    for encode in encodes:
        rows = []
        for chunk in encode.chunks:
            blocks = [chunk.token_ids[first : first + BLOCK] for first in range(0, len(chunk.token_ids), BLOCK)]
            log_RHB: NDArray[np.float32] = np.array([[[heat(encode, ids) for ids in blocks]]], np.float32)
            rows.append(tuple(ChunkRelevance(log_RHB, offered) for _ in encode.probes))
        messages.append(Encoded(tuple(rows), (), 0.5, 0))
    return messages


def settle(
    reader: DocumentReader, prepared: Prepared, heat: Heat, offered: tuple[tuple[Interval, ...], ...] | None = None
) -> tuple[list[Prepared], list[Selection]]:
    """All rounds of a document, and what its questions keep in the end."""
    rounds = [prepared]
    while isinstance(step := reader.advance(rounds[-1], encoded(rounds[-1].encodes, heat, offered)), Prepared):
        rounds.append(step)
    return rounds, step
