"""Which kv heads a model can do without, and what that costs: the measurement behind ``foveate calibrate --heads``.

A passage is read, then other text, then the passage again. What is said of the second copy can be copied from the
first, over a distance longer than a window: a head that can be held to sinks and a window there without loss does not
retrieve (after Xiao et al. 2024, "DuoAttention: Efficient Long-Context LLM Inference with Retrieval and Streaming
Heads", who train a gate for each head instead). A head whose output can be zeroed without loss is not needed (Michel,
Levy and Neubig 2019, "Are Sixteen Heads Really Better than One?"). Heads are restricted one at a time, all query heads
of a kv head together, because pairs are kept per kv head. Invariants: the model itself is never changed; losses are
taken on the copy and on the text between apart, so that a head is free only if neither needs it.

Shapes: T rows, N rows that are scored, H query heads, G key-value heads, D head dimension, V vocabulary, L layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import exp

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy, scaled_dot_product_attention

from workers.attention.base import Backend
from workers.errors import ModelError
from workers.hf import Pass
from workers.loaded import LoadedModel
from workers.selection.headmap import ROLES, HeadMap, Role

PRUNED_FRACTIONS = (0.0, 0.05, 0.1, 0.2, 0.4)

Report = Callable[[str], None]
Roles = Sequence[Sequence[Role]]


@dataclass(frozen=True)
class HeadTrial:
    """How heads are tried: streaming heads read ``sink_tokens`` and ``window_tokens``. At most ``max_free`` of all kv
    heads stream or are pruned; pruning may cost at most ``max_loss_rise``, in nats per token, all pruned together."""

    sink_tokens: int = 16
    window_tokens: int = 64
    max_free: float = 0.5
    max_loss_rise: float = 0.02


@dataclass(frozen=True)
class CopyText:
    """A passage, other text, and the passage again, behind an anchor. ``between`` and ``copy``: the ranges of tokens
    whose prediction is scored. ``anchor_tokens``: what every head reads, whatever its role."""

    token_ids: tuple[int, ...]
    anchor_tokens: int
    between: range
    copy: range

    @classmethod
    def of(cls, anchor: Sequence[int], token_ids: Sequence[int], passage_tokens: int, trial: HeadTrial) -> CopyText:
        """The first ``passage_tokens`` of a text are what is copied. Raises ``ModelError`` for a text that is too
        short for copying to need more than sinks and a window."""
        streamed = trial.sink_tokens + trial.window_tokens
        if len(token_ids) < passage_tokens + streamed or passage_tokens <= trial.sink_tokens + 1:
            raise ModelError(
                f"measuring heads: {len(token_ids)} tokens of text with a passage of {passage_tokens}; allowed: a "
                f"passage of at least {trial.sink_tokens + 2} tokens, and behind it at least {streamed} (keep.budget's "
                "sink_tokens + window_tokens)"
            )
        passage = tuple(token_ids[:passage_tokens])
        first, last = len(anchor) + passage_tokens, len(anchor) + len(token_ids)
        # The first token of the copy cannot be foreseen from the first reading.
        copy = range(last + 1, last + passage_tokens)
        return cls((*anchor, *token_ids, *passage), len(anchor), range(first, last), copy)


class RolePass(Pass):
    """One sequence in which every kv head reads what its role lets it read."""

    def __init__(self, backend: Backend, roles_LG: Roles, sinks: int, window: int) -> None:
        """``sinks``: how many of the first tokens streaming heads read, the anchor among them; ``window``: how many of
        the last ones, the row itself among them."""
        self._backend = backend
        self._roles_LG = roles_LG
        self._sinks = sinks
        self._window = window

    def attend(
        self, layer: int, q_THD: Tensor, k_TGD: Tensor, v_TGD: Tensor, scale: float, *, window: int | None
    ) -> Tensor:
        """As ``Pass.attend``; pruned heads say 0."""
        bounds, group = (0, len(q_THD)), q_THD.shape[1] // k_TGD.shape[1]
        out_THD = self._backend.attend(
            q_THD, k_TGD, v_TGD, bounds, bounds, causal=True, scale=scale, window=window
        ).out_THD
        for head, role in enumerate(self._roles_LG[layer]):
            rows = slice(head * group, (head + 1) * group)
            if role == "pruned":
                out_THD[:, rows] = 0
            elif role == "streaming":
                allowed_TT = self._allowed(len(q_THD), window, q_THD.device)
                q_RTD, k_RTD, v_RTD = (
                    x.transpose(0, 1) for x in (q_THD[:, rows], k_TGD[:, [head] * group], v_TGD[:, [head] * group])
                )
                out_RTD = scaled_dot_product_attention(q_RTD, k_RTD, v_RTD, allowed_TT, scale=scale)
                out_THD[:, rows] = out_RTD.transpose(0, 1)
        return out_THD

    def _allowed(self, num_rows: int, window: int | None, device: torch.device) -> Tensor:
        """Which keys a streaming head reads, [T, T]; a layer's own ``window`` holds for its sinks too."""
        keys_T = torch.arange(num_rows, device=device)
        back_TT = keys_T[:, None] - keys_T
        allowed_TT = (back_TT >= 0) & ((keys_T < self._sinks) | (back_TT < self._window))
        return allowed_TT if window is None else allowed_TT & (back_TT < window)


@dataclass(frozen=True)
class Losses:
    """Cross entropy in nats per token of the text between and of the copy, and the most likely token of each [N]."""

    between: float
    copy: float
    best_N: Tensor

    def rise(self, base: Losses) -> float:
        """How much worse this is than ``base``, by the part that suffers more."""
        return max(self.between - base.between, self.copy - base.copy)

    def change(self, base: Losses) -> float:
        """How much another text would suffer: the greater change of the two parts, whichever way. A head without
        which the loss falls does something, as Michel et al. take the absolute value of a head's effect."""
        return max(abs(self.between - base.between), abs(self.copy - base.copy))


class HeadProbe:
    """One model reading one text with any roles."""

    def __init__(self, loaded: LoadedModel, text: CopyText, trial: HeadTrial) -> None:
        """Reads nothing yet. Raises ``ModelError`` for a text that is longer than the model's window."""
        self._loaded = loaded
        self._text = text
        self._trial = trial
        shape = loaded.weights.shape
        self.shape = (shape.num_layers, shape.num_kv_heads)
        self.intact = HeadMap.from_scores(loaded.source.weights, np.zeros(self.shape), 1.0)
        if len(text.token_ids) > shape.window:
            raise ModelError(f"measuring heads: {len(text.token_ids)} tokens; the model's window holds {shape.window}")

    def losses(self, head_map: HeadMap) -> Losses:
        """What the model makes of the text when its heads have these roles: one pass."""
        text, model = self._text, self._loaded.weights
        sinks = text.anchor_tokens + self._trial.sink_tokens
        reading = RolePass(self._loaded.backend, head_map.roles_LG, sinks, self._trial.window_tokens)
        scored = [*text.between, *text.copy]
        logits_NV = model.run(
            text.token_ids, range(len(text.token_ids)), reading, logits_of=[place - 1 for place in scored]
        )
        assert logits_NV is not None
        targets_N = torch.tensor([text.token_ids[place] for place in scored], device=logits_NV.device)
        loss_N = cross_entropy(logits_NV, targets_N, reduction="none").double()
        between, copy = loss_N[: len(text.between)].mean(), loss_N[len(text.between) :].mean()
        return Losses(between.item(), copy.item(), logits_NV.argmax(dim=-1).cpu())

    def changes(self, role: Role, base: Losses, report: Report = lambda line: None) -> NDArray[np.float64]:
        """How much the losses change when one kv head alone has this role, [L, G]: L * G passes."""
        change_LG = np.zeros(self.shape)
        for layer, head in np.ndindex(self.shape):
            change_LG[layer, head] = self.losses(self.intact.giving(role, [(layer, head)])).change(base)
            if head == self.shape[1] - 1:
                report(f"{role} heads: tried layer {layer + 1} of {self.shape[0]}")
        return change_LG


def measure_heads(
    loaded: LoadedModel,
    token_ids: Sequence[int],
    *,
    passage_tokens: int = 256,
    trial: HeadTrial | None = None,
    report: Report = lambda line: None,
) -> HeadMap:
    """Roles for all kv heads of a model, and what they cost, measured on a text (its first ``passage_tokens`` are what
    is read twice). Two passes for each kv head and a dozen more; ``report`` is called with a line per layer."""
    trial = trial or HeadTrial()
    probe = HeadProbe(loaded, CopyText.of(loaded.frame.anchor, token_ids, passage_tokens, trial), trial)
    base = probe.losses(probe.intact)
    zeroed_LG = probe.changes("pruned", base, report)
    streamed_LG = probe.changes("streaming", base, report)
    least = [divmod(int(index), probe.shape[1]) for index in np.argsort(zeroed_LG, axis=None, kind="stable")]
    max_free = int(trial.max_free * len(least))
    pruned = least[: _most_prunable(probe, least[:max_free], base, trial.max_loss_rise)]
    report(f"{len(pruned)} of {len(least)} kv heads can be pruned together")
    # Pruned heads are free already: they rank lowest, so that only what is left of the allowance streams.
    ranked_LG = streamed_LG.copy()
    for head in pruned:
        ranked_LG[head] = -1.0
    head_map = HeadMap.from_scores(loaded.source.weights, ranked_LG, 1 - max_free / len(least)).giving("pruned", pruned)
    measured = {
        "text": {"tokens": len(token_ids), "passage_tokens": passage_tokens},
        "trial": vars(trial),
        "map": _shares(head_map) | _cost(probe.losses(head_map), base),
        "pruning": _pruning_curve(probe, least, base, report),
        "change_pruned_LG": np.round(zeroed_LG, 5).tolist(),
        "change_streaming_LG": np.round(streamed_LG, 5).tolist(),
    }
    return replace(head_map, measured=measured)


def _pruning_curve(
    probe: HeadProbe, least: Sequence[tuple[int, int]], base: Losses, report: Report
) -> list[dict[str, float]]:
    """What it costs to prune more and more of the heads that are needed least, all others being left as they are."""
    curve = []
    for fraction in PRUNED_FRACTIONS:
        pruned = least[: round(fraction * len(least))]
        curve.append({"pruned": fraction, **_cost(probe.losses(probe.intact.giving("pruned", pruned)), base)})
        report(f"pruned {fraction:.0%} of the kv heads: top-1 agreement {curve[-1]['top1_agreement']:.3f}")
    return curve


def _most_prunable(probe: HeadProbe, least: Sequence[tuple[int, int]], base: Losses, max_rise: float) -> int:
    """How many of the least needed heads can be zeroed together at no more than ``max_rise``, by bisection."""
    fits, too_many = 0, len(least) + 1
    while too_many - fits > 1:
        count = (fits + too_many) // 2
        if probe.losses(probe.intact.giving("pruned", least[:count])).rise(base) <= max_rise:
            fits = count
        else:
            too_many = count
    return fits


def _shares(head_map: HeadMap) -> dict[str, float]:
    return {role: round(head_map.fraction_of(role), 4) for role in ROLES}


def _cost(losses: Losses, base: Losses) -> dict[str, float]:
    """What a map costs, as a profile records it: perplexities, and agreement with the model as it is."""
    return {
        "perplexity_between": round(exp(losses.between), 4),
        "perplexity_copy": round(exp(losses.copy), 4),
        "top1_agreement": round((losses.best_N == base.best_N).double().mean().item(), 4),
    }
