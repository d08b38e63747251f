"""Finding a model's retrieval heads: which heads, and which of the question's tokens, find the answer.

The model reads an exam (real text, questions with known passages) once with every head scoring, as the
engine reads any document. Heads are then chosen greedily: each step adds the head that, together with those
chosen before, puts the gold passages' blocks furthest up (mean of log2(1 + rank)). How many, and whether all
words of the question score or only its last, is settled by cross-validation over topics. Heads are chosen for what
they add to the evidence of words (``selection.lexical``), as the probe scorer joins them by default. Invariants: the
held-out split is never looked at while choosing; scores are computed by the code that later uses the profile.

Shapes: Q questions, R scored rows, H heads, B blocks of the exam.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from configs.methods import ProbeScorer as ProbeSettings
from workers.context import Context
from workers.encoder import Encoder, ReadingRule
from workers.errors import ModelError
from workers.loaded import LoadedModel
from workers.messages import Interval
from workers.selection.budgets.base import BlockTable
from workers.selection.budgets.uniform import UniformBudget
from workers.selection.lexical import bm25
from workers.selection.profile import Profile
from workers.selection.questions import Exam
from workers.selection.relevance import head_masses, with_neighbours
from workers.selection.scorers.probe import ProbeScorer

CHUNK_TOKENS = 1024
BLOCK_TOKENS = 32
WIDEN_TOKENS = 16
MAX_HEADS = 8
CANDIDATES = 64
FOLDS = 5
BUDGETS = (256, 512, 1024)
LEXICAL = ProbeSettings().lexical
"""What words weigh beside attention while heads are chosen: the probe scorer's default."""

Report = Callable[[str], None]


@dataclass(frozen=True)
class Sight:
    """What all heads made of an exam for one question: ``masses_HB`` of ``relevance.head_masses``, by which rows
    scored; ``matches_B``: how well words match (``lexical.bm25``, heard by neighbours); the token ranges of its gold
    passage; the topic it belongs to."""

    masses_HB: dict[str, NDArray[np.float32]]
    matches_B: NDArray[np.float32]
    gold: tuple[Interval, ...]
    topic: str


@dataclass(frozen=True)
class Observation:
    """An exam as all heads saw it. ``heads[h]`` is (layer, head) of row h; ``extents``: the chunks' ranges."""

    heads: tuple[tuple[int, int], ...]
    extents: tuple[Interval, ...]
    sights: tuple[Sight, ...]

    def table(self, shares_B: NDArray[np.float64]) -> BlockTable:
        """The exam's blocks with these shares."""
        lengths = [-(-(stop - start) // BLOCK_TOKENS) for start, stop in self.extents]
        shares = np.split(shares_B[None, None], np.cumsum(lengths)[:-1], axis=2)
        return BlockTable.of_chunks(self.extents, shares, BLOCK_TOKENS)

    def recall(self, profile: Profile, budget_tokens: int, lexical: float = LEXICAL) -> float:
        """Share of questions whose whole gold passage is kept at a budget with a profile's heads and rows, and with
        words that weigh ``lexical``."""
        chosen = [self.heads.index(head) for head in profile.heads]
        logs = [s.masses_HB[profile.rows][chosen].mean(axis=0) + lexical * s.matches_B for s in self.sights]
        return self.recall_of([np.exp(log_B - log_B.max(), dtype=np.float64) for log_B in logs], budget_tokens)

    def recall_of(self, shares_QB: Sequence[NDArray[np.float64]], budget_tokens: int) -> float:
        """The same for shares from anywhere, one row per question."""
        budget = UniformBudget(WIDEN_TOKENS)
        found = [
            any(start <= first and last <= stop for first, last in sight.gold for start, stop in kept)
            for sight, shares_B in zip(self.sights, shares_QB, strict=True)
            for kept in [budget.choose(self.table(shares_B), budget_tokens).of(0, 0)]
        ]
        return float(np.mean(found))


def observe(loaded: LoadedModel, exam: Exam, report: Report = lambda line: None) -> Observation:
    """Read an exam with every head scoring. Costs about one reading of the exam plus one of all its questions
    per chunk; ``report`` is called with a line of progress per chunk."""
    frame, shape = loaded.frame, loaded.weights.shape
    heads = tuple(product(shape.full_layers, range(shape.num_heads)))
    if not heads:
        raise ModelError("calibration needs layers that read all earlier tokens; here every layer has a window")
    scorer = ProbeScorer(Profile(loaded.source.weights, heads))
    encoder = Encoder(loaded, [scorer], ReadingRule(BLOCK_TOKENS, all_layers=False))
    anchor = Context.of_anchor(loaded)
    ids, offsets = frame.tokenizer.encode_with_offsets(exam.text)
    probes = tuple(frame.probe(question.id, question.text) for question in exam.questions)
    room = shape.window - len(frame.anchor) - max(len(probe.token_ids) for probe in probes)
    size = min(CHUNK_TOKENS, room // BLOCK_TOKENS * BLOCK_TOKENS)
    if size < BLOCK_TOKENS:
        raise ModelError(
            f"calibration needs {BLOCK_TOKENS} tokens of text beside a question; the window has room for {room}"
        )
    extents = tuple((start, min(start + size, len(ids))) for start in range(0, len(ids), size))
    seen: list[list[NDArray[np.float32]]] = [[] for _ in probes]
    for start, stop in extents:
        [scores] = encoder.read(ids[start:stop], probes, anchor).scores
        for own, scores_RHB in zip(seen, scores, strict=True):
            own.append(scores_RHB.numpy())
        report(f"read {stop:,} of {len(ids):,} tokens")
    starts, stops = np.array(offsets).T
    borders = [(i, min(i + BLOCK_TOKENS, stop)) for start, stop in extents for i in range(start, stop, BLOCK_TOKENS)]
    texts = [exam.text[starts[first] : stops[last - 1]] for first, last in borders]
    sights = []
    for question, own in zip(exam.questions, seen, strict=True):
        lse_RHB = np.concatenate(own, axis=2)
        own.clear()
        masses = {"words": head_masses(lse_RHB), "last": head_masses(lse_RHB[-1:])}
        gold = tuple(
            (int(np.searchsorted(stops, first, "right")), int(np.searchsorted(starts, last, "left")))
            for first, last in question.gold
        )
        [matches_B] = with_neighbours(bm25(texts, question.text)[None]).astype(np.float32)
        light = {rows: mass.astype(np.float32) for rows, mass in masses.items()}
        sights.append(Sight(light, matches_B, gold, question.topic))
    return Observation(heads, extents, tuple(sights))


def choose_profile(observation: Observation, weights: str) -> Profile:
    """The heads and rows that cross-validation over topics prefers, then chosen on all questions."""
    topics = sorted({sight.topic for sight in observation.sights})
    fold_of = {topic: index % FOLDS for index, topic in enumerate(np.random.default_rng(0).permutation(topics))}
    trials: dict[tuple[str, int], list[float]] = {}
    for rows in ("words", "last"):
        search = HeadSearch(observation, rows)
        for fold in range(min(FOLDS, len(topics))):
            inside = [q for q, sight in enumerate(observation.sights) if fold_of[sight.topic] != fold]
            outside = [q for q, sight in enumerate(observation.sights) if fold_of[sight.topic] == fold]
            chosen = search.greedy(inside or outside, MAX_HEADS)
            for count in range(1, len(chosen) + 1):
                trials.setdefault((rows, count), []).extend(search.log_ranks(outside, chosen[:count]))
    rows, count = min(trials, key=lambda trial: (np.mean(trials[trial]), trial[1]))
    everything = range(len(observation.sights))
    chosen = HeadSearch(observation, rows).greedy(everything, count)
    return Profile(weights, tuple(sorted(observation.heads[head] for head in chosen)), rows)


class HeadSearch:
    """Greedy forward selection over what one choice of rows saw."""

    def __init__(self, observation: Observation, rows: str) -> None:
        """Only the best ``CANDIDATES`` single heads are tried in company."""
        self._masses_QHB = np.stack([sight.masses_HB[rows] for sight in observation.sights])
        self._words_QB = np.float32(LEXICAL) * np.stack([sight.matches_B for sight in observation.sights])
        table = observation.table(np.zeros(self._masses_QHB.shape[2]))
        self._gold_B = [
            np.flatnonzero(
                np.any([(table.starts_B < last) & (table.stops_B > first) for first, last in sight.gold], axis=0)
            )
            for sight in observation.sights
        ]
        everything = range(len(self._gold_B))
        alone = [np.mean(self.log_ranks(everything, [head])) for head in range(self._masses_QHB.shape[1])]
        self._pool = [int(head) for head in np.argsort(alone, kind="stable")[:CANDIDATES]]

    def log_ranks(self, questions: Sequence[int], heads: Sequence[int]) -> list[float]:
        """log2(1 + rank) of each question's best gold block when these heads vote."""
        return self._log_ranks(self._masses_QHB[np.ix_(questions, heads)].mean(axis=1), questions)

    def greedy(self, questions: Sequence[int], count: int) -> list[int]:
        """The heads, best first."""
        chosen: list[int] = []
        masses_QHB = self._masses_QHB[list(questions)]
        votes_QB = np.zeros(masses_QHB[:, 0].shape, dtype=np.float32)
        for count_after in range(1, min(count, len(self._pool)) + 1):
            left = [head for head in self._pool if head not in chosen]
            costs = [
                np.mean(self._log_ranks((votes_QB + masses_QHB[:, head]) / count_after, questions)) for head in left
            ]
            chosen.append(left[int(np.argmin(costs))])
            votes_QB += masses_QHB[:, chosen[-1]]
        return chosen

    def _log_ranks(self, votes_QB: NDArray[np.floating[Any]], questions: Sequence[int]) -> list[float]:
        """The same for mean log-masses of heads."""
        joined_QB = votes_QB + self._words_QB[list(questions)]
        return [
            float(np.log2(1 + int((votes > votes[self._gold_B[question]].max()).sum())))
            for votes, question in zip(joined_QB, questions, strict=True)
        ]


def calibrate(
    loaded: LoadedModel,
    *,
    max_chars: int | None = None,
    held_out: bool = False,
    report: Report = lambda line: None,
) -> Profile:
    """The profile of a model, chosen on the ``calibrate`` split; ``max_chars`` shortens the exam.

    ``held_out`` also reads the other split and records its recall; it doubles the time.
    """
    exam = Exam.of_split("calibrate", max_chars)
    observation = observe(loaded, exam, report)
    profile = choose_profile(observation, loaded.source.weights)
    measured: dict[str, object] = {"calibrate": _measured(observation, profile)}
    if held_out:
        report("held-out questions")
        exam = Exam.of_split("held_out", max_chars)
        measured["held_out"] = _measured(observe(loaded, exam, report), profile)
    return Profile(loaded.source.weights, profile.heads, profile.rows, measured)


def _measured(observation: Observation, profile: Profile) -> dict[str, float]:
    """What a profile records of an exam: its size, and the recall at three budgets of the chosen heads with words, of
    the heads alone, of words alone, and of all heads of the model together."""
    every_head = Profile(profile.weights, observation.heads, profile.rows)
    words = [np.exp(sight.matches_B.astype(np.float64)) for sight in observation.sights]
    recalls = {
        "recall": [observation.recall(profile, budget) for budget in BUDGETS],
        "recall_of_heads_alone": [observation.recall(profile, budget, 0.0) for budget in BUDGETS],
        "recall_of_words_alone": [observation.recall_of(words, budget) for budget in BUDGETS],
        "recall_of_all_heads": [observation.recall(every_head, budget, 0.0) for budget in BUDGETS],
    }
    return {
        "questions": len(observation.sights),
        "tokens": observation.extents[-1][1],
        **{
            f"{name}_at_{budget}": round(value, 4)
            for name, values in recalls.items()
            for budget, value in zip(BUDGETS, values, strict=True)
        },
    }
