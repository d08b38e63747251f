"""A job's settings as the parts that act on them: scorer, budget, reading rule, reader.

Driver and engines build the same ones from the same job, so that what an engine scores the driver can settle.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from configs import methods
from configs.stages import AnswerOver, Keep, Read
from workers.attention.patterns import pattern_of
from workers.depth import DepthSchedule
from workers.encoder import ReadingRule
from workers.errors import ModelError
from workers.hf import ModelShape
from workers.readers import reader_of
from workers.segments import Readable
from workers.selection.budgets import budget_of
from workers.selection.budgets.base import Budget
from workers.selection.gate import find_gate
from workers.selection.profile import Profile
from workers.selection.scorers import scorer_of
from workers.selection.scorers.base import Scorer
from workers.sparse import GateDrop


@dataclass(frozen=True)
class Method:
    """How a job reads, keeps and answers. ``record``: everything but the scorer's own that decides what reading
    computes, as plain JSON values; ``carries``: chunks read what earlier ones left; ``keeps_pairs``: answers come from
    kept pairs, held as ``codec`` says, at most ``chunk_fraction`` of each chunk; ``reader``: what steps of decoding
    read in place of a segment."""

    scorer: Scorer
    budget: Budget
    rule: ReadingRule
    record: dict[str, object]
    codec: str
    widen_tokens: int
    chunk_fraction: float | None
    carries: bool
    keeps_pairs: bool
    reader: Callable[[Readable], Readable]

    @property
    def asks(self) -> bool:
        """Whether what is kept belongs to one question: its scorer looks at the question."""
        return self.scorer.observer == "probe"

    @property
    def indexes(self) -> bool:
        """Whether what is kept is an index that later questions are scored against."""
        return self.scorer.observer == "index"

    @property
    def is_shaped_by_all(self) -> bool:
        """Whether reading itself depends on all questions of a document: they choose what is carried, or goes on."""
        return self.asks and (self.carries or self.rule.depth is not None)


@dataclass(frozen=True)
class Stages:
    """The three stages of a job that make its method."""

    read: Read
    keep: Keep
    answer: AnswerOver


def needs_profile(keep: Keep) -> bool:
    """Whether calibrated retrieval heads are needed."""
    scorer = keep.scorer
    return scorer.kind == "index" or (scorer.kind == "probe" and scorer.heads == "calibrated")


def method_of(stages: Stages, shape: ModelShape, weights: str, profile: Profile | None) -> Method:
    """The parts for a model of this shape and fingerprint. ``profile``: needed where ``needs_profile``. Raises
    ``ModelError`` for a gate or head map that is missing or another model's, and for what does not go with layers that
    read a window."""
    _check_windows(stages, shape)
    read, keep, answer = stages.read, stages.keep, stages.answer
    known = keep.question == "known"
    scorer = scorer_of(keep.scorer, question_known=known, shape=shape, profile=profile, weights=weights)
    rule = _rule_of(stages, shape, weights)
    return Method(
        scorer=scorer,
        budget=budget_of(keep, shape=shape, weights=weights),
        rule=rule,
        record=_record_of(read, rule),
        codec=keep.codec,
        widen_tokens=keep.widen_tokens,
        chunk_fraction=keep.chunk_fraction,
        carries=read.context == "carried",
        keeps_pairs=answer.over == "kept",
        reader=reader_of(answer.reader),
    )


def _rule_of(stages: Stages, shape: ModelShape, weights: str) -> ReadingRule:
    """How chunks are read."""
    read, answer = stages.read, stages.answer
    skims = answer.over != "kept" if read.skim == "auto" else read.skim
    gate, depth = None, None
    if isinstance(read.pruning, methods.GateDropping):
        dropping = read.pruning
        found = find_gate(dropping.file, weights, "read.pruning.file")
        gate = GateDrop(found, dropping.threshold, dropping.delay_tokens)
    if isinstance(read.pruning, methods.DepthPruning):
        depth = DepthSchedule(read.pruning.layers, read.pruning.keep)
        if depth.layers[-1] >= shape.num_layers:
            raise ModelError(
                f"read.pruning.layers: {depth.layers[-1]}: model.source has layers 0 to {shape.num_layers - 1}; "
                f"allowed: 1 to {shape.num_layers - 1}"
            )
    return ReadingRule(stages.keep.block_tokens, pattern_of(read.pattern), depth, gate, all_layers=not skims)


def _record_of(read: Read, rule: ReadingRule) -> dict[str, object]:
    """What decides which earlier tokens a token reads. A gate counts by what it is, not by where its file lies."""
    record: dict[str, object] = {"pattern": read.pattern.model_dump(mode="json")}
    if rule.gate is not None:
        record["gate"] = [rule.gate.gate.digest, rule.gate.threshold, rule.gate.delay_tokens]
    if rule.depth is not None:
        record["depth"] = [list(rule.depth.layers), list(rule.depth.keep)]
    if read.context == "carried":
        record["context"] = "carried"
    return record


def _check_windows(stages: Stages, shape: ModelShape) -> None:
    """Raise ``ModelError`` for methods that layers with a window cannot do, or that nobody would do in a model that
    has no other layers. Where both kinds are, those without a window score, and they alone are thinned out."""
    read, keep, answer = stages.read, stages.keep, stages.answer
    windows = sorted({window for window in shape.windows if window is not None})
    if not windows:
        return
    narrow = f"{shape.num_layers - len(shape.full_layers)} of the {shape.num_layers} layers of model.source read a "
    narrow += f"window of {' or '.join(map(str, windows))} tokens"
    if read.pruning.kind == "depth":
        raise ModelError(
            f"read.pruning.kind: depth leaves gaps between the tokens that go on, but {narrow}, in which tokens are "
            "neighbours; allowed for this model: none, gate"
        )
    if answer.positions == "original":
        raise ModelError(
            f"answer.positions: original leaves gaps between kept pairs, but {narrow}, counted in pairs; allowed for "
            "this model: compact"
        )
    if shape.full_layers:
        return
    looking = (
        ("keep.scorer.kind", keep.scorer.kind, ("streaming", "random")),
        ("read.pattern.kind", read.pattern.kind, ("dense",)),
        ("read.pruning.kind", read.pruning.kind, ("none",)),
        ("answer.reader.kind", answer.reader.kind, ("all",)),
    )
    for key, kind, allowed in looking:
        if kind not in allowed:
            raise ModelError(
                f"{key}: {kind} needs layers that read all earlier tokens, but {narrow}; allowed for this model: "
                f"{', '.join(allowed)}"
            )
