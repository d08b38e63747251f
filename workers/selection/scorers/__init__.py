"""The scorers by the name a job gives them, imported when asked for: a new one is one file and one line here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any

from configs import methods
from workers.errors import ModelError
from workers.hf import ModelShape
from workers.selection.profile import Profile
from workers.selection.scorers.base import Scorer


@dataclass(frozen=True)
class Setting:
    """What a scorer is made for: the model's shape and fingerprint, its retrieval heads (None where no calibration is
    needed), and whether the question is known while reading."""

    shape: ModelShape
    weights: str
    profile: Profile | None
    question_known: bool


def _probe(settings: methods.ProbeScorer, setting: Setting) -> Scorer:
    from workers.selection.scorers.probe import ProbeScorer

    if settings.heads == "calibrated":
        assert setting.profile is not None, "calibrated heads need a profile"
        _check_heads(setting.profile, setting.shape)
        return ProbeScorer(setting.profile, settings.lexical)
    every = product(setting.shape.full_layers, range(setting.shape.num_heads))
    return ProbeScorer(Profile(setting.weights, tuple(every)), settings.lexical)


def _index(settings: methods.IndexScorer, setting: Setting) -> Scorer:
    from workers.selection.scorers.index import IndexScorer

    assert setting.profile is not None, "an index needs a profile"
    chosen = setting.profile.index
    if chosen is None:
        raise ModelError(
            "model.profile: this profile has no heads for keep.scorer.kind: index, since it was made before they were "
            "looked for; make it again with `foveate calibrate`"
        )
    _check_heads(chosen, setting.shape)
    return IndexScorer(chosen, settings.lexical)


def _check_heads(profile: Profile, shape: ModelShape) -> None:
    """Raise ``ModelError`` for heads that cannot look over a chunk."""
    for layer, head in profile.heads:
        if layer not in shape.full_layers:
            raise ModelError(
                f"model.profile: head {head} of layer {layer} cannot look over a whole chunk: this layer of "
                f"model.source reads a window; allowed: heads of the layers {[*shape.full_layers]}"
            )


def _window(settings: methods.WindowScorer, setting: Setting) -> Scorer:
    from workers.selection.scorers.window import WindowScorer

    return WindowScorer(setting.shape, setting.question_known, settings.window_tokens, settings.pool_tokens)


def _accumulated(settings: methods.AccumulatedScorer, setting: Setting) -> Scorer:
    from workers.selection.scorers.accumulated import AccumulatedScorer

    return AccumulatedScorer(setting.shape)


def _streaming(settings: methods.StreamingScorer, setting: Setting) -> Scorer:
    from workers.selection.scorers.streaming import StreamingScorer

    return StreamingScorer(settings.sink_tokens)


def _expected(settings: methods.ExpectedScorer, setting: Setting) -> Scorer:
    from workers.selection.scorers.expected import ExpectedScorer

    return ExpectedScorer(setting.shape, settings.future_tokens, settings.use_covariance, settings.epsilon)


def _reconstruct(settings: methods.ReconstructScorer, setting: Setting) -> Scorer:
    from workers.selection.scorers.reconstruct import ReconstructScorer

    return ReconstructScorer(setting.shape)


def _keydiff(settings: methods.KeyDiffScorer, setting: Setting) -> Scorer:
    from workers.selection.scorers.keydiff import KeyDiffScorer

    return KeyDiffScorer(setting.shape)


def _gate(settings: methods.GateScorer, setting: Setting) -> Scorer:
    from workers.selection.scorers.gate import open_gate

    return open_gate(settings, setting.shape, setting.weights)


def _random(settings: methods.RandomScorer, setting: Setting) -> Scorer:
    from workers.selection.scorers.random import RandomScorer

    return RandomScorer(settings.seed)


_SCORERS: dict[str, Callable[[Any, Setting], Scorer]] = {
    "probe": _probe,
    "index": _index,
    "window": _window,
    "accumulated": _accumulated,
    "streaming": _streaming,
    "expected": _expected,
    "reconstruct": _reconstruct,
    "keydiff": _keydiff,
    "gate": _gate,
    "random": _random,
}


def scorer_of(
    settings: methods.Scorer, *, question_known: bool, shape: ModelShape, profile: Profile | None, weights: str
) -> Scorer:
    """The scorer that a job's ``keep.scorer`` names. ``weights``: the model's fingerprint; ``profile``: its retrieval
    heads, needed by ``probe`` with calibrated heads and by ``index``. Raises ``ModelError`` for a gate or a profile
    that does not fit."""
    return _SCORERS[settings.kind](settings, Setting(shape, weights, profile, question_known))
