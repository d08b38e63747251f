"""The methods that both sides have: what each is called, and how ours is set to match.

Invariants: names are those under which ``kvpress_side`` answers; where the two differ by more than rounding,
``difference`` says how and why.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

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

Pinned = Literal["nothing", "sinks", "template", "anchor"]
"""What of the context is out of a choice: nothing; the first 4 tokens; the words of the chat template; or all words
before the document, as the product does."""
SINKS = 4
EVENLY = UniformBudget()


@dataclass(frozen=True)
class Compared:
    """One method on both sides. ``press``: kvpress's name of it. ``pinned``: what kvpress leaves out of its choice, so
    that ours leaves it out too. ``budget``: None for one that only kvpress has. ``difference``: what is not the same,
    and what that does; empty where nothing is. ``keeps_all``: the control without compression."""

    name: str
    press: str
    scorer: Scorer
    budget: Budget | None = EVENLY
    pinned: Pinned = "nothing"
    difference: str = ""
    keeps_all: bool = False


_REPEATED = (
    "kvpress leaves the template's words before the document out of its softmax; here they are read like any others."
)

COMPARED = (
    Compared("dense", "no press", StreamingScorer(), keeps_all=True),
    Compared("window", "SnapKVPress", WindowScorer()),
    Compared("accumulated", "ObservedAttentionPress", AccumulatedScorer()),
    Compared("streaming", "StreamingLLMPress", StreamingScorer()),
    Compared("expected", "ExpectedAttentionPress", ExpectedScorer(), pinned="sinks"),
    Compared("keydiff", "KeyDiffPress", KeyDiffScorer()),
    Compared(
        "random",
        "RandomPress",
        RandomScorer(),
        difference="Drawn for every head apart there, once for all heads here: two sets agree as chance has it.",
    ),
    Compared("reconstruct", "KVzipPress, its scores", ReconstructScorer(), pinned="template", difference=_REPEATED),
    Compared(
        "reconstruct, adaptive",
        "KVzipPress(layerwise)",
        ReconstructScorer(),
        AdaptiveBudget(safeguard=0.0),
        "template",
        difference=_REPEATED,
    ),
    Compared(
        "reconstruct, global",
        "KVzipPress",
        ReconstructScorer(),
        None,
        "template",
        difference="KVzip as published: all layers and heads compete for one budget, which Foveate does not have.",
    ),
    Compared("window, adaptive", "AdaKVPress(SnapKVPress)", WindowScorer(), AdaptiveBudget()),
    Compared(
        "expected, adaptive",
        "AdaKVPress(ExpectedAttentionPress)",
        ExpectedScorer(),
        AdaptiveBudget(),
        "sinks",
    ),
    Compared(
        "window, pyramid",
        "PyramidKVPress(beta=4)",
        WindowScorer(),
        PyramidBudget(slope=7.0),
        difference="A slope of 7 is kvpress's beta of 4. Its own default of 20 would leave the last layer fewer tokens "
        "than its window at this length, and kvpress then keeps as many in every layer.",
    ),
)
