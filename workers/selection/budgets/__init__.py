"""The budgets by the name a job gives them, imported when asked for: a new one is one file and one line here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from configs import methods

if TYPE_CHECKING:
    from configs.stages import Keep
    from workers.hf import ModelShape
    from workers.selection.budgets.base import Budget


@dataclass(frozen=True)
class Setting:
    """What a budget is made for: how blocks are widened, the model's shape and its fingerprint."""

    widen_tokens: int
    shape: ModelShape
    weights: str


def _uniform(settings: methods.UniformBudget, setting: Setting) -> Budget:
    from workers.selection.budgets.uniform import UniformBudget

    return UniformBudget(setting.widen_tokens, settings.min_blocks_per_chunk)


def _pyramid(settings: methods.PyramidBudget, setting: Setting) -> Budget:
    from workers.selection.budgets.pyramid import PyramidBudget

    return PyramidBudget(setting.shape.num_layers, settings.slope, setting.widen_tokens)


def _adaptive(settings: methods.AdaptiveBudget, setting: Setting) -> Budget:
    from workers.selection.budgets.adaptive import AdaptiveBudget

    return AdaptiveBudget(setting.shape.num_kv_heads, settings.safeguard, setting.widen_tokens)


def _heads(settings: methods.HeadsBudget, setting: Setting) -> Budget:
    from workers.selection.budgets.heads import HeadsBudget
    from workers.selection.headmap import find_head_map

    shape = (setting.shape.num_layers, setting.shape.num_kv_heads)
    head_map = find_head_map(settings.map, setting.weights, shape)
    return HeadsBudget(head_map, settings.sink_tokens, settings.window_tokens, setting.widen_tokens)


def _threshold(settings: methods.ThresholdBudget, setting: Setting) -> Budget:
    from workers.selection.budgets.threshold import ThresholdBudget

    return ThresholdBudget(settings.times_mean, setting.widen_tokens)


def _min_p(settings: methods.MinPBudget, setting: Setting) -> Budget:
    from workers.selection.budgets.min_p import MinPBudget

    return MinPBudget(settings.p, setting.widen_tokens)


_BUDGETS: dict[str, Callable[[Any, Setting], Budget]] = {
    "uniform": _uniform,
    "pyramid": _pyramid,
    "adaptive": _adaptive,
    "heads": _heads,
    "threshold": _threshold,
    "min_p": _min_p,
}


def budget_of(keep: Keep, *, shape: ModelShape, weights: str) -> Budget:
    """The budget that a job's ``keep.budget`` names. ``weights``: the model's fingerprint. Raises ``ModelError`` for
    a head map that is missing or does not fit."""
    return _BUDGETS[keep.budget.kind](keep.budget, Setting(keep.widen_tokens, shape, weights))
