"""What block-sparse reading costs and what it misses: every pattern against dense, on one layer of a real model.

``python -m pipeline.evaluation sparse`` reads the reference text with the demo model up to one layer in its middle
and takes that layer's queries, keys and values, so that patterns which look at content meet real content. Invariants:
a measurement includes making the plan; patterns and dense take turns, so that a busy machine slows both; the share of
attention that a pattern covers is exact, by the log-sum-exps. Shapes: T rows, S keys, H heads, G kv heads, D depth.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from configs import methods
from pipeline.evaluation.tasks.reference import reference_text
from workers.attention.base import Backend, Partial, resolve
from workers.attention.patterns import pattern_of
from workers.attention.plan import BlockGrid, BlockPlan, attend_plan, full_plan
from workers.hf import Enough, LanguageModel, Pass, Tokenizer
from workers.source import locate

PATTERNS: tuple[methods.Pattern, ...] = (
    methods.DensePattern(),
    methods.SlidingWindowPattern(),
    methods.LongformerPattern(),
    methods.BigBirdPattern(),
    methods.TriShapePattern(),
    methods.RoutingPattern(),
    methods.TopBlocksPattern(),
)
"""All patterns, as a job has them by default."""


@dataclass(frozen=True)
class LayerInputs:
    """One layer's attention inputs. ``q_THD``, ``k_TGD`` rotated, ``v_TGD``."""

    q_THD: Tensor
    k_TGD: Tensor
    v_TGD: Tensor
    scale: float

    def first(self, num_tokens: int) -> LayerInputs:
        """The same layer over fewer tokens (a causal model's layer saw nothing of what followed)."""
        return LayerInputs(self.q_THD[:num_tokens], self.k_TGD[:num_tokens], self.v_TGD[:num_tokens], self.scale)


@dataclass(frozen=True)
class Measured:
    """One pattern at one length. ``covered``: mean share of dense attention that its blocks hold, over rows and heads.
    ``plan_ms`` is part of ``ms``; both are medians, and ``to_dense`` is the median of the turns' own ratios."""

    kind: str
    num_tokens: int
    blocks_read: int
    blocks_dense: int
    ms: float
    plan_ms: float
    to_dense: float
    covered: float


def write_sparse(source: str, out: Path, lengths: Sequence[int] = (2048, 4096, 8192), layer: int = 12) -> str:
    """Measure every pattern on that layer of the model that ``source`` names, write the table to ``out`` (Markdown) and
    return it. About two minutes for the demo model on one core."""
    inputs = layer_inputs(locate(source).directory, max(lengths), layer)
    T, H, D = inputs.q_THD.shape
    page = (
        f"Block-sparse attention, layer {layer} of {source} over the first {T:,} tokens of the reference text: "
        f"{H} heads, {inputs.k_TGD.shape[1]} kv heads of {D}, {str(inputs.q_THD.dtype)[6:]}, "
        f"{torch.get_num_threads()} thread(s)."
        f"\n\n{table(measure_patterns(inputs, lengths))}"
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(page)
    return page


def layer_inputs(directory: Path, num_tokens: int, layer: int) -> LayerInputs:
    """What attention gets in that layer when the model reads the first ``num_tokens`` of the reference text."""
    model = LanguageModel(directory, dtype=torch.float32, device=torch.device("cpu"))
    ids = Tokenizer(directory).encode(reference_text("held_out", whole=True))[:num_tokens]
    reading = _UpTo(layer, resolve("cpu", model.device))
    model.run(ids, range(len(ids)), reading)
    assert reading.inputs is not None
    return reading.inputs


class _UpTo(Pass):
    """Plain causal attention that ends at a layer and keeps what it was given there."""

    def __init__(self, layer: int, backend: Backend) -> None:
        self._layer, self._backend = layer, backend
        self.inputs: LayerInputs | None = None

    def attend(
        self, layer: int, q_THD: Tensor, k_TGD: Tensor, v_TGD: Tensor, scale: float, *, window: int | None
    ) -> Tensor:
        inputs = LayerInputs(q_THD, k_TGD, v_TGD, scale)
        if layer == self._layer:
            self.inputs = inputs
            raise Enough
        return _dense(self._backend, inputs, window).out_THD


def measure_patterns(
    inputs: LayerInputs,
    lengths: Sequence[int] = (2048, 4096, 8192),
    patterns: Sequence[methods.Pattern] = PATTERNS,
    repeats: int = 5,
) -> list[Measured]:
    """Every pattern over the first tokens of ``inputs``, for each length, on the best backend of its device."""
    backend = resolve("auto", inputs.q_THD.device)
    return [
        _measure(backend, inputs.first(num_tokens), settings, repeats)
        for num_tokens in lengths
        for settings in patterns
    ]


@torch.inference_mode()
def _measure(backend: Backend, inputs: LayerInputs, settings: methods.Pattern, repeats: int) -> Measured:
    dense = _dense(backend, inputs)
    reads, plan = _reader(backend, inputs, settings)
    sparse, dense_s, plan_s, sparse_s = reads(plan()), [], [], []
    for _ in range(repeats):
        dense_s.append(_seconds(lambda: _dense(backend, inputs)))
        plan_s.append(_seconds(plan))
        sparse_s.append(_seconds(lambda: reads(plan())))
    made = plan()
    return Measured(
        kind=settings.kind,
        num_tokens=len(inputs.q_THD),
        blocks_read=made.blocks_read,
        blocks_dense=made.blocks_dense,
        ms=1e3 * median(sparse_s),
        plan_ms=1e3 * median(plan_s),
        to_dense=median(mine / other for mine, other in zip(sparse_s, dense_s, strict=True)),
        covered=float((sparse.lse_TH.double() - dense.lse_TH.double()).exp().mean()),
    )


def _reader(
    backend: Backend, inputs: LayerInputs, settings: methods.Pattern
) -> tuple[Callable[[BlockPlan], Partial], Callable[[], BlockPlan]]:
    """How a pattern reads, and how it plans; dense is a plain causal call."""
    q_THD, k_TGD, v_TGD, scale = inputs.q_THD, inputs.k_TGD, inputs.v_TGD, inputs.scale
    pattern = pattern_of(settings)
    if pattern is None:
        full = full_plan(BlockGrid.of(len(q_THD), len(k_TGD), 64))
        return lambda _: _dense(backend, inputs), lambda: full
    grid = BlockGrid.of(len(q_THD), len(k_TGD), pattern.block_tokens)
    return (
        lambda plan: attend_plan(backend, q_THD, k_TGD, v_TGD, plan, scale),
        lambda: pattern.plan(grid, q_THD, k_TGD, scale),
    )


def _dense(backend: Backend, inputs: LayerInputs, window: int | None = None) -> Partial:
    q_THD, k_TGD, v_TGD, bounds = inputs.q_THD, inputs.k_TGD, inputs.v_TGD, (0, len(inputs.q_THD))
    return backend.attend(q_THD, k_TGD, v_TGD, bounds, bounds, causal=True, scale=inputs.scale, window=window)


def _seconds(work: Callable[[], object]) -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    started = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def table(rows: Sequence[Measured]) -> str:
    """The measurements as Markdown."""
    lines = [
        "| keys | pattern | blocks read | of dense | ms | of which plan | time to dense | attention covered |",
        "|---:|---|---:|---:|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {row.num_tokens:,} | {row.kind} | {row.blocks_read:,} | {row.blocks_read / row.blocks_dense:.1%} "
        f"| {row.ms:.1f} | {row.plan_ms:.1f} | {row.to_dense:.2f} | {row.covered:.1%} |"
        for row in rows
    ]
    return "\n".join(lines) + "\n"
