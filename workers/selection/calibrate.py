"""Finding a model's retrieval heads: which heads, and which of the question's tokens, find the answer.

The model reads an exam (real text, questions with known passages) once with every head scoring, as the
engine reads any document. Heads are then chosen greedily: each step adds the head that, together with those
chosen before, puts the gold passages' blocks furthest up (mean of log2(1 + rank)). How many, and whether all
words of the question score or only its last, is settled by cross-validation over topics. Invariants: the
held-out split is never looked at while choosing; scores are computed by the code that later uses the profile.

Shapes: Q questions, R scored rows, H heads, B blocks of the exam.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cache_store.store import TieredStore
from workers.engine import Engine, Method
from workers.errors import ModelError
from workers.loaded import LoadedModel
from workers.messages import Chunk, Encode
from workers.selection.budgets import BlockTable, Interval, UniformBudget
from workers.selection.profile import Profile
from workers.selection.questions import Exam
from workers.selection.relevance import combine_heads, head_masses

CHUNK_TOKENS = 1024
BLOCK_TOKENS = 32
WIDEN_TOKENS = 16
MAX_HEADS = 8
CANDIDATES = 64
FOLDS = 5
BUDGETS = (256, 512, 1024)

Report = Callable[[str], None]


@dataclass(frozen=True)
class Sight:
    """What all heads made of an exam for one question: ``masses_HB`` of ``relevance.head_masses``, by which rows
    scored; the token ranges of its gold passage; the topic it belongs to."""

    masses_HB: dict[str, NDArray[np.float32]]
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
        return BlockTable.of_chunks(self.extents, np.split(shares_B, np.cumsum(lengths)[:-1]), BLOCK_TOKENS)

    def recall(self, profile: Profile, budget_tokens: int) -> float:
        """Share of questions whose whole gold passage is kept at a budget with a profile's heads and rows."""
        chosen = [self.heads.index(head) for head in profile.heads]
        shares = (combine_heads(s.masses_HB[profile.rows][chosen].astype(np.float64)) for s in self.sights)
        return self.recall_of(list(shares), budget_tokens)

    def recall_of(self, shares_QB: Sequence[NDArray[np.float64]], budget_tokens: int) -> float:
        """The same for shares from anywhere, one row per question."""
        budget = UniformBudget(budget_tokens, WIDEN_TOKENS)
        found = [
            any(start <= first and last <= stop for first, last in sight.gold for start, stop in kept)
            for sight, shares_B in zip(self.sights, shares_QB, strict=True)
            for kept in [budget.choose(self.table(shares_B))]
        ]
        return float(np.mean(found))


def observe(loaded: LoadedModel, exam: Exam, report: Report = lambda line: None) -> Observation:
    """Read an exam with every head scoring. Costs about one reading of the exam plus one of all its questions
    per chunk; ``report`` is called with a line of progress per chunk."""
    frame, shape = loaded.frame, loaded.weights.shape
    heads = tuple((layer, head) for layer in range(shape.num_layers) for head in range(shape.num_heads))
    method = Method(BLOCK_TOKENS, UniformBudget(BLOCK_TOKENS, 0), skims=True, carries=False, keeps_pairs=False)
    engine = Engine(loaded, Profile(loaded.source.weights, heads), method, TieredStore([]))
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
    for index, (start, stop) in enumerate(extents):
        task = Encode("exam", (Chunk(index, start, tuple(ids[start:stop])),), probes)
        [relevance] = engine.encode(task).relevance
        for own, chunk in zip(seen, relevance, strict=True):
            own.append(chunk.block_lse_RHB)
        report(f"read {stop:,} of {len(ids):,} tokens")
    starts = np.array([offset[0] for offset in offsets])
    stops = np.array([offset[1] for offset in offsets])
    sights = []
    for question, own in zip(exam.questions, seen, strict=True):
        lse_RHB = np.concatenate(own, axis=2)
        own.clear()
        masses = {"words": head_masses(lse_RHB), "last": head_masses(lse_RHB[-1:])}
        gold = tuple(
            (int(np.searchsorted(stops, first, "right")), int(np.searchsorted(starts, last, "left")))
            for first, last in question.gold
        )
        sights.append(Sight({rows: mass.astype(np.float32) for rows, mass in masses.items()}, gold, question.topic))
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
        return self._log_ranks(self._masses_QHB[np.ix_(questions, heads)].sum(axis=1), questions)

    def greedy(self, questions: Sequence[int], count: int) -> list[int]:
        """The heads, best first."""
        chosen: list[int] = []
        masses_QHB = self._masses_QHB[list(questions)]
        votes_QB = np.zeros(masses_QHB[:, 0].shape, dtype=np.float32)
        for _ in range(min(count, len(self._pool))):
            left = [head for head in self._pool if head not in chosen]
            costs = [np.mean(self._log_ranks(votes_QB + masses_QHB[:, head], questions)) for head in left]
            chosen.append(left[int(np.argmin(costs))])
            votes_QB += masses_QHB[:, chosen[-1]]
        return chosen

    def _log_ranks(self, votes_QB: NDArray[np.float32], questions: Sequence[int]) -> list[float]:
        return [
            float(np.log2(1 + int((votes > votes[self._gold_B[question]].max()).sum())))
            for votes, question in zip(votes_QB, questions, strict=True)
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
    """What a profile records of an exam: its size, and the recall at three budgets of the chosen heads and of all
    heads of the model together."""
    every_head = Profile(profile.weights, observation.heads, profile.rows)
    return {
        "questions": len(observation.sights),
        "tokens": observation.extents[-1][1],
        **{f"recall_at_{budget}": round(observation.recall(profile, budget), 4) for budget in BUDGETS},
        **{f"recall_of_all_heads_at_{budget}": round(observation.recall(every_head, budget), 4) for budget in BUDGETS},
    }
