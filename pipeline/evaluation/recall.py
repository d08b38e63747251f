"""Selection alone: which share of gold passages is kept, over one long real text and many questions.

The exam of calibration (``selection.questions``), read by any question-aware scorer in chunks of any length; cheaper
than answering, and free of what a small model then makes of it. Made by ``python -m pipeline.evaluation chunks``.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from configs.schema import Model, Prompt
from workers.context import Context
from workers.encoder import Encoder, ReadingRule
from workers.hf import Tokenizer
from workers.loaded import LoadedModel
from workers.loading import load_model
from workers.messages import Interval
from workers.prompt import Frame
from workers.selection.budgets.base import BlockTable
from workers.selection.budgets.uniform import UniformBudget
from workers.selection.calibrate import BUDGETS
from workers.selection.observe import BLOCK_TOKENS, WIDEN_TOKENS
from workers.selection.profile import find_profile
from workers.selection.questions import Exam, Split
from workers.selection.scorers.base import ChunkScores, Scorer
from workers.selection.scorers.probe import ProbeScorer
from workers.source import locate

CHUNK_LENGTHS = (256, 512, 1024, 2048, 4096)
LEXICAL = (0.0, 0.05, 0.1, 0.2)
_HOW = (
    "Share of questions whose gold passage is kept whole, in so many tokens of the text. *Weight of words* is "
    "`keep.scorer.lexical`. Seconds of reading are of all questions at once, on a machine that did other things too."
)


@dataclass(frozen=True)
class ExamRecall:
    """``kept[q][b]``: whether question q's whole gold passage was kept at ``BUDGETS[b]``; engine seconds."""

    kept: tuple[tuple[bool, ...], ...]
    seconds: float

    @property
    def shares(self) -> list[float]:
        """Recall at each budget."""
        return [float(share) for share in np.mean(self.kept, axis=0)]


def exam_recall(loaded: LoadedModel, scorers: Sequence[Scorer], exam: Exam, chunk_tokens: int) -> list[ExamRecall]:
    """Recall of each scorer; all observe the question, and share one reading."""
    frame = loaded.frame
    ids, offsets = frame.tokenizer.encode_with_offsets(exam.text)
    starts, stops = np.array(offsets).T
    probes = [frame.probe(question.id, question.text) for question in exam.questions]
    extents = [(start, min(start + chunk_tokens, len(ids))) for start in range(0, len(ids), chunk_tokens)]
    encoder = Encoder(loaded, scorers, ReadingRule(BLOCK_TOKENS, all_layers=False))
    anchor = Context.of_anchor(loaded)
    started = time.perf_counter()
    readings = [encoder.read(ids[start:stop], probes, anchor) for start, stop in extents]
    seconds = time.perf_counter() - started
    found: list[list[tuple[bool, ...]]] = [[] for _ in scorers]
    for index, question in enumerate(exam.questions):
        gold = [
            (int(np.searchsorted(stops, first, "right")), int(np.searchsorted(starts, last, "left")))
            for first, last in question.gold
        ]
        for which, scorer in enumerate(scorers):
            said = [
                ChunkScores(
                    reading.scores[which][index].numpy(),
                    extent,
                    BLOCK_TOKENS,
                    tuple(
                        exam.text[starts[i] : stops[min(i + BLOCK_TOKENS, extent[1]) - 1]]
                        for i in range(*extent, BLOCK_TOKENS)
                    ),
                    question.text,
                )
                for reading, extent in zip(readings, extents, strict=True)
            ]
            table = BlockTable.of_chunks(extents, scorer.settle(said), BLOCK_TOKENS).joint()
            budget = UniformBudget(WIDEN_TOKENS)
            found[which].append(tuple(_holds(budget.choose(table, tokens).of(0, 0), gold) for tokens in BUDGETS))
    return [ExamRecall(tuple(kept), seconds) for kept in found]


def _holds(kept: Sequence[Interval], gold: Sequence[Interval]) -> bool:
    return any(start <= first and last <= stop for first, last in gold for start, stop in kept)


def measure_chunk_lengths(source: str, split: Split, lengths: Sequence[int] = CHUNK_LENGTHS) -> Iterator[str]:
    """Lines of a Markdown table: recall at each budget by chunk length and weight of words, and engine seconds."""
    place = locate(source)
    frame = Frame.render(Tokenizer(place.directory), Prompt().system, Prompt().instruction)
    loaded = load_model(Model(source=source), place, frame)
    profile = find_profile("auto", place.weights)
    if profile is None:
        raise RuntimeError(f"{source}: no retrieval heads are known; run `foveate calibrate`")
    exam = Exam.of_split(split)
    tokens = len(frame.tokenizer.encode(exam.text))
    yield f"## `{split}`: {len(exam.questions)} questions, {tokens:,} tokens"
    yield ""
    yield "| chunk tokens | weight of words | " + " | ".join(f"{b:,} kept" for b in BUDGETS) + " | s per 1,000 tokens |"
    yield "|---" * (3 + len(BUDGETS)) + "|"
    for length in lengths:
        scorers = [ProbeScorer(profile, lexical) for lexical in LEXICAL]
        for lexical, recall in zip(LEXICAL, exam_recall(loaded, scorers, exam, length), strict=True):
            cells = " | ".join(f"{share:.1%}" for share in recall.shares)
            yield f"| {length:,} | {lexical:g} | {cells} | {1000 * recall.seconds / tokens:.2f} |"


def write_chunk_lengths(source: str, out: Path) -> None:
    """Both splits into one page; settings are chosen on the first. Says each line as it comes."""
    made = "Made by `python -m pipeline.evaluation chunks`."
    lines = ["# Recall of gold passages by chunk length", "", made, "", _HOW, ""]
    for split in ("calibrate", "held_out"):
        for line in measure_chunk_lengths(source, split):
            print(line, file=sys.stderr, flush=True)
            lines.append(line)
        lines.append("")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text("\n".join(lines))
