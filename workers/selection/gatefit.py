"""Fitting a gate to samples of what a model's tokens looked like, and how much attention each then got.

Each layer's head is a ridge regression; an inner layer is trained beside it on what the regression leaves, and stays
only where that predicts better. Invariants: chunks are split in the order of the text, and the last fifth, on which
the gate is measured, has no part in training or choosing; the same samples give the same gate.

Shapes: N sampled tokens, E width of the model, G kv heads, W inner width, L layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import log

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import mse_loss, silu

from workers.selection.gate import Gate, GateHead

THRESHOLDS = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
INNER_WIDTH = 32
BATCH_TOKENS, LEARNING_RATE = 256, 1e-3
MAX_EPOCHS, PATIENCE = 40, 5

Report = Callable[[str], None]


@dataclass(frozen=True)
class Samples:
    """Sampled tokens of chunks, in order. Per layer, ``hidden_NE`` (any float dtype) and ``target_NG`` (float32, log
    relevance, finite); ``chunk_N``: the chunk of each token, ascending from 0; ``text_tokens``: how many were read."""

    hidden_NE: tuple[Tensor, ...]
    target_NG: tuple[Tensor, ...]
    chunk_N: NDArray[np.int64]
    text_tokens: int

    def split(self) -> tuple[slice, slice, slice]:
        """Tokens to train on, to choose by, and to measure on: the last fifth of the chunks is held out, and the last
        eighth of those before it chooses; at least one chunk each."""
        chunks = int(self.chunk_N[-1]) + 1
        held_out = chunks - max(1, chunks // 5)
        choose = held_out - max(1, held_out // 8)
        assert choose > 0, f"{chunks} chunks cannot be split in three"
        first, last = (int(row) for row in np.searchsorted(self.chunk_N, (choose, held_out)))
        return slice(0, first), slice(first, last), slice(last, len(self.chunk_N))


def fit(samples: Samples, weights: str, report: Report = lambda line: None) -> Gate:
    """The gate of the model with this fingerprint, and in ``measured`` what ``measure`` says of the held-out chunks.
    ``report`` is called with a line of progress per layer."""
    train, choose, held_out = samples.split()
    heads: list[GateHead] = []
    predicted = []
    for hidden_NE, target_NG in zip(samples.hidden_NE, samples.target_NG, strict=True):
        heads.append(_fit_head(hidden_NE.float(), target_NG, train, choose))
        predicted.append(heads[-1].predict(hidden_NE[held_out]).numpy())
        report(f"trained layer {len(heads)} of {len(samples.hidden_NE)}")
    size = {
        "text_tokens": samples.text_tokens,
        "sampled_tokens": len(samples.chunk_N),
        "held_out_tokens": held_out.stop - held_out.start,
        "layers_with_inner": sum(1 for head in heads if len(head.outer_WG)),
    }
    truth = [target_NG[held_out].numpy() for target_NG in samples.target_NG]
    return Gate(weights, tuple(heads), size | measure(predicted, truth))


def measure(
    predicted_LNG: Sequence[NDArray[np.float32]], truth_LNG: Sequence[NDArray[np.float32]]
) -> dict[str, object]:
    """How well log relevance is predicted, per layer [N, G]: Pearson's and Spearman's correlation (each the mean over
    kv heads of the correlation over tokens; overall: the mean over layers), and the fraction of tokens and heads that
    each threshold keeps where the gate judges, and where the truth does."""
    layers = list(zip(predicted_LNG, truth_LNG, strict=True))
    pearson = [float(_correlation(ours_NG, true_NG).mean()) for ours_NG, true_NG in layers]
    spearman = [float(_correlation(_ranks(ours_NG), _ranks(true_NG)).mean()) for ours_NG, true_NG in layers]
    return {
        "pearson": round(float(np.mean(pearson)), 4),
        "spearman": round(float(np.mean(spearman)), 4),
        "pearson_by_layer": [round(value, 4) for value in pearson],
        "spearman_by_layer": [round(value, 4) for value in spearman],
        "kept_fraction": _kept(np.stack(predicted_LNG)),
        "kept_fraction_of_target": _kept(np.stack(truth_LNG)),
    }


def _kept(log_LNG: NDArray[np.float32]) -> dict[str, float]:
    return {f"{threshold:g}": round(float((log_LNG >= log(threshold)).mean()), 4) for threshold in THRESHOLDS}


def _correlation(a_NG: NDArray[np.floating], b_NG: NDArray[np.floating]) -> NDArray[np.float64]:
    """Pearson's correlation per column [G]; 0 where one side does not vary."""
    a, b = (x.astype(np.float64) - x.mean(axis=0, dtype=np.float64) for x in (a_NG, b_NG))
    norm_G = np.sqrt((a * a).sum(axis=0) * (b * b).sum(axis=0))
    return np.asarray((a * b).sum(axis=0) / np.where(norm_G > 0, norm_G, np.inf))


def _ranks(values_NG: NDArray[np.float32]) -> NDArray[np.float64]:
    """Ranks within each column; equal values share their mean rank."""
    columns = []
    for values_N in values_NG.T:
        _, index_N, counts = np.unique(values_N, return_inverse=True, return_counts=True)
        columns.append((np.cumsum(counts) - (counts - 1) / 2.0)[index_N])
    return np.stack(columns, axis=1)


# -- one head ------------------------------------------------------------------------------------------------


def _fit_head(hidden_NE: Tensor, target_NG: Tensor, train: slice, choose: slice) -> GateHead:
    """Ridge on the standardised input, and an inner layer beside it where ``choose`` prefers that."""
    mean_E, std_E = hidden_NE[train].mean(dim=0), hidden_NE[train].std(dim=0).clamp(min=1e-6)
    x_NE = (hidden_NE - mean_E) / std_E
    linear_EG, bias_G = _ridge(x_NE, target_NG, train, choose)
    width, heads = linear_EG.shape
    nothing = (torch.zeros(width, 0), torch.zeros(0), torch.zeros(0, heads))
    ridge = GateHead(mean_E, std_E, linear_EG, bias_G, *nothing)
    return _deepened(ridge, x_NE, target_NG - (x_NE @ linear_EG + bias_G), train, choose)


def _ridge(x_NE: Tensor, target_NG: Tensor, train: slice, choose: slice) -> tuple[Tensor, Tensor]:
    """Slopes and intercepts in closed form, with the penalty that predicts ``choose`` best."""
    bias_G = target_NG[train].mean(dim=0)
    x, y = x_NE[train], target_NG[train] - bias_G
    values_E, vectors_EE = torch.linalg.eigh((x.T @ x).double() / len(x))
    moments_EG = vectors_EE.T @ (x.T @ y).double() / len(x)
    trials = [(vectors_EE @ (moments_EG / (values_E[:, None] + ridge))).float() for ridge in RIDGES]
    losses = [float(mse_loss(x_NE[choose] @ linear_EG + bias_G, target_NG[choose])) for linear_EG in trials]
    return trials[int(np.argmin(losses))], bias_G


def _deepened(ridge: GateHead, x_NE: Tensor, left_NG: Tensor, train: slice, choose: slice) -> GateHead:
    """The head with an inner layer that learns what is ``left_NG`` of the target, as of the epoch that predicts
    ``choose`` best: ``ridge`` itself, if no epoch is better than none.

    The slopes stay as they are: trained along, they fit noise sooner than the inner layer finds anything (two chunks
    through SmolLM2-135M, three layers: squared error against ridge alone -6 % with fixed slopes, -1 % without).
    """
    random = torch.Generator().manual_seed(0)
    width, heads = ridge.linear_EG.shape
    inner_EW = (torch.randn(width, INNER_WIDTH, generator=random) / width**0.5).requires_grad_()
    inner_bias_W = torch.zeros(INNER_WIDTH, requires_grad=True)
    outer_WG = torch.zeros(INNER_WIDTH, heads, requires_grad=True)
    learned = (inner_EW, inner_bias_W, outer_WG)

    def loss(rows: slice | Tensor) -> Tensor:
        return mse_loss(silu(x_NE[rows] @ inner_EW + inner_bias_W) @ outer_WG, left_NG[rows])

    adam = torch.optim.Adam(learned, lr=LEARNING_RATE)
    best, best_loss, best_epoch = ridge, float(loss(choose).detach()), 0
    for epoch in range(1, MAX_EPOCHS + 1):
        for batch in torch.randperm(train.stop, generator=random).split(BATCH_TOKENS):  # type: ignore[no-untyped-call]
            adam.zero_grad()
            loss(batch).backward()  # type: ignore[no-untyped-call]
            adam.step()
        if (now := float(loss(choose).detach())) < best_loss:
            names = ("inner_EW", "inner_bias_W", "outer_WG")
            copies = {name: tensor.detach().clone() for name, tensor in zip(names, learned, strict=True)}
            best, best_loss, best_epoch = replace(ridge, **copies), now, epoch
        if epoch - best_epoch >= PATIENCE:
            break
    return best
