"""An exam as every head of a model sees it: what calibration chooses from.

The model reads real text once, as the engine reads any document, and each question looks at every chunk in the two
ways in which questions meet chunks. Invariants: scores are computed by the code that later uses the profile; what is
recorded does not depend on how many questions were asked.

Shapes: Q questions, R scored rows, H heads, B blocks of the exam.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from configs.methods import ProbeScorer as ProbeSettings
from workers.context import Context
from workers.encoder import Encoder, ReadingRule
from workers.errors import ModelError
from workers.index import Questions, index_keys
from workers.loaded import LoadedModel
from workers.messages import Interval, Probe
from workers.selection.budgets.base import BlockTable
from workers.selection.budgets.uniform import UniformBudget
from workers.selection.lexical import bm25
from workers.selection.profile import Profile
from workers.selection.questions import Exam, holds_whole, tokens_of
from workers.selection.relevance import head_masses, with_neighbours
from workers.selection.scorers.index import IndexScorer
from workers.selection.scorers.probe import ProbeScorer

CHUNK_TOKENS = 1024
BLOCK_TOKENS = 32
WIDEN_TOKENS = 16
LEXICAL = ProbeSettings().lexical
"""What words weigh beside attention while heads are chosen: the probe scorer's default."""

Report = Callable[[str], None]
Meeting = Literal["probe", "index"]
"""How a question meets a chunk: behind it, or its keys alone."""


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
            holds_whole(budget.choose(self.table(shares_B), budget_tokens).of(0, 0), sight.gold)
            for sight, shares_B in zip(self.sights, shares_QB, strict=True)
        ]
        return float(np.mean(found))


@dataclass(frozen=True)
class _Sheet:
    """An exam as the model gets it: ``text`` as ``ids`` with their character ``offsets``, cut into ``extents``, and its
    questions as ``probes``."""

    exam: Exam
    ids: Sequence[int]
    offsets: Sequence[Interval]
    extents: tuple[Interval, ...]
    probes: tuple[Probe, ...]

    @classmethod
    def of(cls, exam: Exam, loaded: LoadedModel) -> _Sheet:
        """Raises ``ModelError`` where the window has no room."""
        frame, window = loaded.frame, loaded.weights.shape.window
        ids, offsets = frame.tokenizer.encode_with_offsets(exam.text)
        probes = tuple(frame.probe(question.id, question.text) for question in exam.questions)
        room = window - len(frame.anchor) - max(len(probe.token_ids) for probe in probes)
        size = min(CHUNK_TOKENS, room // BLOCK_TOKENS * BLOCK_TOKENS)
        if size < BLOCK_TOKENS:
            raise ModelError(
                f"calibration needs {BLOCK_TOKENS} tokens of text beside a question; the window has room for {room}"
            )
        extents = tuple((start, min(start + size, len(ids))) for start in range(0, len(ids), size))
        return cls(exam, ids, offsets, extents, probes)

    def observation(self, heads: tuple[tuple[int, int], ...], seen: Sequence[list[NDArray[np.float32]]]) -> Observation:
        """What was ``seen`` of each question, [R, H, B] per chunk; emptied on the way, for it is large."""
        text, (starts, stops) = self.exam.text, np.array(self.offsets).T
        borders = [
            (i, min(i + BLOCK_TOKENS, end)) for begin, end in self.extents for i in range(begin, end, BLOCK_TOKENS)
        ]
        texts = [text[starts[first] : stops[last - 1]] for first, last in borders]
        sights = []
        for question, own in zip(self.exam.questions, seen, strict=True):
            lse_RHB = np.concatenate(own, axis=2)
            own.clear()
            masses = {"words": head_masses(lse_RHB), "last": head_masses(lse_RHB[-1:])}
            [matches_B] = with_neighbours(bm25(texts, question.text)[None]).astype(np.float32)
            light = {rows: mass.astype(np.float32) for rows, mass in masses.items()}
            sights.append(Sight(light, matches_B, tokens_of(question.gold, self.offsets), question.topic))
        return Observation(heads, self.extents, tuple(sights))


def observe(loaded: LoadedModel, exam: Exam, report: Report = lambda line: None) -> dict[Meeting, Observation]:
    """Read an exam with every head scoring, for both ways in which questions meet chunks. Costs about one reading of
    the exam plus one of all its questions per chunk; ``report`` is called with a line of progress per chunk."""
    shape = loaded.weights.shape
    heads = tuple(product(shape.full_layers, range(shape.num_heads)))
    if not heads:
        raise ModelError("calibration needs layers that read all earlier tokens; here every layer has a window")
    every_head = Profile(loaded.source.weights, heads)
    behind, alone = ProbeScorer(every_head), IndexScorer(every_head)
    encoder = Encoder(loaded, [behind], ReadingRule(BLOCK_TOKENS, all_layers=False))
    anchor, sheet = Context.of_anchor(loaded), _Sheet.of(exam, loaded)
    questions = Questions(loaded, alone, anchor, sheet.probes)
    seen: dict[Meeting, list[list[NDArray[np.float32]]]] = {
        "probe": [[] for _ in sheet.probes],
        "index": [[] for _ in sheet.probes],
    }
    for start, stop in sheet.extents:
        reading = encoder.read(sheet.ids[start:stop], sheet.probes, anchor)
        assert reading.pairs is not None
        [scores] = reading.scores
        keys = index_keys(loaded, alone, reading.pairs, reading.places)
        said: dict[Meeting, Sequence[Tensor]] = {"probe": scores, "index": questions.of(keys, BLOCK_TOKENS)}
        for meeting, own in seen.items():
            for chunks, scores_RHB in zip(own, said[meeting], strict=True):
                chunks.append(scores_RHB.numpy())
        report(f"read {stop:,} of {len(sheet.ids):,} tokens")
    return {meeting: sheet.observation(heads, own) for meeting, own in seen.items()}
