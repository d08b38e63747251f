"""Finding a model's retrieval heads: which heads, and which of the question's tokens, find the answer.

The model reads an exam (real text, questions with known passages) once with every head scoring
(``selection.observe``). Heads are then chosen greedily: each step adds the head that, together with those
chosen before, puts the gold passages' blocks furthest up (mean of log2(1 + rank)). How many, and whether all
words of the question score or only its last, is settled by cross-validation over topics. Heads are chosen for what
they add to the evidence of words (``selection.lexical``), as the probe scorer joins them by default. All of it is done
twice: for questions that stand behind a chunk, and for those that meet its keys alone. Invariant: the held-out split is
never looked at while choosing.

Shapes: Q questions, H heads, B blocks of the exam.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workers.loaded import LoadedModel
from workers.selection.observe import LEXICAL, Meeting, Observation, Report, observe
from workers.selection.profile import Profile
from workers.selection.questions import Exam

MAX_HEADS = 8
CANDIDATES = 64
FOLDS = 5
BUDGETS = (256, 512, 1024)


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
    splits = {"calibrate": observe(loaded, Exam.of_split("calibrate", max_chars), report)}
    if held_out:
        report("held-out questions")
        splits["held_out"] = observe(loaded, Exam.of_split("held_out", max_chars), report)

    def choose(meeting: Meeting) -> Profile:
        profile = choose_profile(splits["calibrate"][meeting], loaded.source.weights)
        return replace(profile, measured={split: _measured(seen[meeting], profile) for split, seen in splits.items()})

    return replace(choose("probe"), index=choose("index"))


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
