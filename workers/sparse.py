"""Reading less of a chunk than all earlier tokens: by a block-sparse pattern, or without what a gate dropped.

Both are ways in which the rows of a pass read each other (``passes.Own``); what stands before the chunk (anchor,
preface) is always read in full. Carried pairs belong to what a pattern chooses from: with a sliding window that is
StreamingLLM, with top blocks InfLLM.

Shapes: T rows of the chunk, S keys (carried pairs and the chunk), G kv heads, Q blocks of rows.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from workers.attention.base import Backend, Partial
from workers.attention.plan import BlockGrid, Pattern, attend_picks, attend_plan
from workers.passes import Sight
from workers.segments import Segment
from workers.selection.gate import Gate, visible
from workers.windowed import OwnRows

GATE_ROWS = 128
"""Rows of a block that share what a gate lets them read."""


@dataclass
class BlockCount:
    """How many pairs of blocks were computed in all layers, and how many dense attention would have computed."""

    read: int = 0
    dense: int = 0


@dataclass(frozen=True)
class PatternOwn:
    """Rows read the blocks that a pattern chooses, among ``carried`` pairs and themselves."""

    backend: Backend
    pattern: Pattern
    carried: Segment | None
    count: BlockCount = field(default_factory=BlockCount)
    wants_hidden: ClassVar[bool] = False

    def attend(self, sight: Sight) -> Partial:
        """As ``Own.attend``, over carried pairs too."""
        k_SGD, v_SGD, _ = self.rows(sight)
        grid = BlockGrid.of(len(sight.q_THD), len(k_SGD), self.pattern.block_tokens)
        plan = self.pattern.plan(grid, sight.q_THD, k_SGD, sight.scale)
        self.count.read += plan.blocks_read
        self.count.dense += plan.blocks_dense
        return attend_plan(self.backend, sight.q_THD, k_SGD, v_SGD, plan, sight.scale)

    def rows(self, sight: Sight) -> OwnRows:
        """As ``Own.rows``: carried pairs, and the rows behind them."""
        k_SGD, v_SGD = sight.k_TGD, sight.v_TGD
        if self.carried is not None:
            k_SGD = torch.cat([self.carried.keys[sight.layer], k_SGD])
            v_SGD = torch.cat([self.carried.values[sight.layer], v_SGD])
        return OwnRows(k_SGD, v_SGD, (0, len(k_SGD)))


@dataclass(frozen=True)
class GateDrop:
    """Dynamic Context Pruning while reading: what a trained gate predicts to matter less than ``threshold`` (a share
    of attention) is gone for rows more than ``delay_tokens`` behind it (Anagnostidis et al. 2023)."""

    gate: Gate
    threshold: float
    delay_tokens: int


@dataclass(frozen=True)
class GateOwn:
    """Rows read what the gate let live, and the delay window."""

    backend: Backend
    drop: GateDrop
    wants_hidden: ClassVar[bool] = True

    def attend(self, sight: Sight) -> Partial:
        """As ``Own.attend``."""
        assert sight.hidden_TE is not None
        predicted_log_TG: Tensor = self.drop.gate.predict(sight.layer, sight.hidden_TE)
        bounds = (*range(0, len(sight.q_THD), GATE_ROWS), len(sight.q_THD))
        picks = visible(predicted_log_TG, bounds, self.drop.threshold, self.drop.delay_tokens)
        return attend_picks(self.backend, sight.q_THD, sight.k_TGD, sight.v_TGD, picks, sight.scale)

    def rows(self, sight: Sight) -> OwnRows:
        """As ``Own.rows``: nothing is dropped from a window, which is short already."""
        return OwnRows(sight.k_TGD, sight.v_TGD, (0, len(sight.k_TGD)))
