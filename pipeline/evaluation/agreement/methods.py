"""The methods that both sides have: what each is called, and how ours is set to match.

Invariants: names are those of ``kvpress_side.PRESSES``; where the two differ by more than rounding, ``difference`` says
how and why.
"""

from __future__ import annotations

from dataclasses import dataclass

from configs.methods import (
    AccumulatedScorer,
    AdaptiveBudget,
    Budget,
    ExpectedScorer,
    KeyDiffScorer,
    PyramidBudget,
    RandomScorer,
    ReconstructScorer,
    Scorer,
    StreamingScorer,
    UniformBudget,
    WindowScorer,
)


@dataclass(frozen=True)
class Compared:
    """One method on both sides. ``press``: kvpress's name of it. ``difference``: what is not the same, and what
    that does; empty where nothing is. ``keeps_all``: the control without compression."""

    name: str
    press: str
    scorer: Scorer
    budget: Budget = UniformBudget()
    difference: str = ""
    keeps_all: bool = False


COMPARED = (
    Compared("dense", "none", StreamingScorer(), keeps_all=True),
    Compared("window", "SnapKVPress", WindowScorer()),
    Compared("accumulated", "ObservedAttentionPress", AccumulatedScorer()),
    Compared("streaming", "StreamingLLMPress", StreamingScorer()),
    Compared("expected", "ExpectedAttentionPress", ExpectedScorer()),
    Compared("keydiff", "KeyDiffPress", KeyDiffScorer()),
    Compared("random", "RandomPress", RandomScorer()),
    Compared("reconstruct", "KVzipPress", ReconstructScorer()),
    Compared("reconstruct, adaptive", "KVzipPress(layerwise)", ReconstructScorer(), AdaptiveBudget(safeguard=0.0)),
    Compared("window, adaptive", "AdaKVPress(SnapKVPress)", WindowScorer(), AdaptiveBudget()),
    Compared("expected, adaptive", "AdaKVPress(ExpectedAttentionPress)", ExpectedScorer(), AdaptiveBudget()),
    Compared("window, pyramid", "PyramidKVPress(beta=4)", WindowScorer(), PyramidBudget(slope=7.0)),
)
