"""Selection alone: which share of gold passages is kept, over one long real text and many questions.

The exam of calibration (``selection.questions``), read by any question-aware scorer in chunks of any length; cheaper
than answering, and free of what a small model then makes of it. ``python -m pipeline.evaluation chunks`` compares
lengths of chunks, ``rules`` the budgets that may keep less than they are granted.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from configs.schema import Model, Prompt
from pipeline.evaluation.tables import table
from workers.context import Context
from workers.encoder import Encoder, ReadingRule
from workers.hf import Tokenizer
from workers.loaded import LoadedModel
from workers.loading import load_model
from workers.messages import Interval
from workers.prompt import Frame
from workers.selection.budgets.base import BlockTable, Budget
from workers.selection.budgets.min_p import MinPBudget
from workers.selection.budgets.threshold import ThresholdBudget
from workers.selection.budgets.uniform import UniformBudget
from workers.selection.calibrate import BUDGETS
from workers.selection.observe import BLOCK_TOKENS, CHUNK_TOKENS, LEXICAL, WIDEN_TOKENS
from workers.selection.profile import Profile, find_profile
from workers.selection.questions import Exam, Split, holds_whole, tokens_of
from workers.selection.scorers.base import ChunkScores, Scorer
from workers.selection.scorers.probe import ProbeScorer
from workers.source import locate

CHUNK_LENGTHS = (256, 512, 1024, 2048, 4096)
WORDS = (0.0, 0.05, 0.1, 0.2)
_CHUNKS = (
    "Share of questions whose gold passage is kept whole, in so many tokens of the text. *Weight of words* is "
    "`keep.scorer.lexical`. Seconds of reading are of all questions at once, on a machine that did other things too."
)

GRANTED = 1024
RULES: tuple[Budget, ...] = (
    UniformBudget(WIDEN_TOKENS),
    *(MinPBudget(p, WIDEN_TOKENS) for p in (0.05, 0.1, 0.2)),
    *(ThresholdBudget(times, WIDEN_TOKENS) for times in (4, 8, 16)),
)
_RULES = (
    f"Share of questions whose gold passage is kept whole where {GRANTED:,} tokens are granted, and how many are kept. "
    "Scorer and blocks are the default's, chunks have 1,024 tokens."
)


@dataclass(frozen=True)
class ExamReading:
    """What one scorer said of an exam. Per question: ``tables`` of the document's blocks, shares on one scale for all
    heads, and ``gold``, the passages that answer it, as positions. ``seconds`` of reading, for all scorers together."""

    tables: tuple[BlockTable, ...]
    gold: tuple[tuple[Interval, ...], ...]
    seconds: float

    def recall(self, budget: Budget, tokens: int) -> ExamRecall:
        """What ``budget`` makes of it where it may keep so many tokens."""
        kept = [budget.choose(table, tokens).of(0, 0) for table in self.tables]
        return ExamRecall(
            tuple(holds_whole(runs, gold) for runs, gold in zip(kept, self.gold, strict=True)),
            tuple(sum(stop - start for start, stop in runs) for runs in kept),
        )


@dataclass(frozen=True)
class ExamRecall:
    """Per question: whether a whole gold passage was kept, and how many tokens were."""

    found: tuple[bool, ...]
    tokens: tuple[int, ...]

    @property
    def share(self) -> float:
        """Of the questions, those whose passage was kept."""
        return float(np.mean(self.found))


def read_exam(loaded: LoadedModel, scorers: Sequence[Scorer], exam: Exam, chunk_tokens: int) -> list[ExamReading]:
    """What each scorer says; all observe the question, and share one reading."""
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
    gold = tuple(tokens_of(question.gold, offsets) for question in exam.questions)
    texts = [
        tuple(exam.text[starts[i] : stops[min(i + BLOCK_TOKENS, stop) - 1]] for i in range(start, stop, BLOCK_TOKENS))
        for start, stop in extents
    ]
    return [
        ExamReading(
            tuple(
                BlockTable.of_chunks(
                    extents,
                    scorer.settle(
                        [
                            ChunkScores(
                                reading.scores[which][index].numpy(), extent, BLOCK_TOKENS, blocks, question.text
                            )
                            for reading, extent, blocks in zip(readings, extents, texts, strict=True)
                        ]
                    ),
                    BLOCK_TOKENS,
                ).joint()
                for index, question in enumerate(exam.questions)
            ),
            gold,
            seconds,
        )
        for which, scorer in enumerate(scorers)
    ]


@dataclass(frozen=True)
class _Sitting:
    """A model, its retrieval heads, and the exam that it sits."""

    loaded: LoadedModel
    profile: Profile
    exam: Exam
    tokens: int
    title: str

    @classmethod
    def of(cls, source: str, split: Split) -> _Sitting:
        place = locate(source)
        frame = Frame.render(Tokenizer(place.directory), Prompt().system, Prompt().instruction)
        profile = find_profile("auto", place.weights)
        if profile is None:
            raise RuntimeError(f"{source}: no retrieval heads are known; run `foveate calibrate`")
        exam = Exam.of_split(split)
        tokens = len(frame.tokenizer.encode(exam.text))
        title = f"## `{split}`: {len(exam.questions)} questions, {tokens:,} tokens"
        return cls(load_model(Model(source=source), place, frame), profile, exam, tokens, title)


def measure_chunk_lengths(source: str, split: Split, lengths: Sequence[int] = CHUNK_LENGTHS) -> Iterator[str]:
    """Lines of a Markdown table: recall at each budget by chunk length and weight of words, and engine seconds."""
    sitting = _Sitting.of(source, split)
    budget = UniformBudget(WIDEN_TOKENS)
    yield sitting.title
    yield ""
    yield "| chunk tokens | weight of words | " + " | ".join(f"{b:,} kept" for b in BUDGETS) + " | s per 1,000 tokens |"
    yield "|---" * (3 + len(BUDGETS)) + "|"
    for length in lengths:
        scorers = [ProbeScorer(sitting.profile, lexical) for lexical in WORDS]
        for lexical, reading in zip(WORDS, read_exam(sitting.loaded, scorers, sitting.exam, length), strict=True):
            cells = " | ".join(f"{reading.recall(budget, tokens).share:.1%}" for tokens in BUDGETS)
            yield f"| {length:,} | {lexical:g} | {cells} | {1000 * reading.seconds / sitting.tokens:.2f} |"


def measure_rules(source: str, split: Split, rules: Sequence[Budget] = RULES) -> Iterator[str]:
    """Lines of a Markdown table: recall of each budget, and the tokens it keeps, on average and by question."""
    sitting = _Sitting.of(source, split)
    (reading,) = read_exam(sitting.loaded, [ProbeScorer(sitting.profile, LEXICAL)], sitting.exam, CHUNK_TOKENS)
    yield sitting.title
    yield ""
    rows = []
    for rule in rules:
        recall = reading.recall(rule, GRANTED)
        tokens = (np.mean(recall.tokens), *np.percentile(recall.tokens, [10, 50, 90]))
        rows.append([_named(rule), f"{recall.share:.1%}", *(f"{count:,.0f}" for count in tokens)])
    yield from table(["budget", "gold kept", "tokens kept, mean", "first tenth", "median", "last tenth"], rows)


def _named(rule: Budget) -> str:
    settings = {key: value for key, value in rule.record.items() if key not in ("kind", "widen_tokens") and value}
    return ", ".join([f"`{rule.record['kind']}`", *(f"{key} {value}" for key, value in settings.items())])


def write_chunk_lengths(source: str, out: Path) -> None:
    """Selection by chunk length, both splits on one page; settings are chosen on the first."""
    _write(out, "# Recall of gold passages by chunk length", "chunks", _CHUNKS, partial(measure_chunk_lengths, source))


def write_rules(source: str, out: Path) -> None:
    """Budgets that may keep less than they are granted, both splits on one page."""
    _write(out, "# Recall of gold passages by budget", "rules", _RULES, partial(measure_rules, source))


def _write(out: Path, title: str, command: str, how: str, measure: Callable[[Split], Iterator[str]]) -> None:
    """Says each line as it comes."""
    lines = [title, "", f"Made by `python -m pipeline.evaluation {command}`.", "", how, ""]
    for split in ("calibrate", "held_out"):
        for line in measure(split):
            print(line, file=sys.stderr, flush=True)
            lines.append(line)
        lines.append("")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text("\n".join(lines))
