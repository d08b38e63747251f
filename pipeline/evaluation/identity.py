"""What a row was made of, as a digest: by it a resumed evaluation knows what it need not measure again.

Everything that decides a row is in it: the item, prompt and model by content, how numbers are computed, the method with
the heads, gate or head map that it found, the budget. Where files lie and who works is not, nor is Foveate's version:
after changing code or a default, start in a new directory.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict

from blake3 import blake3
from pydantic import BaseModel

from configs.evaluation import Evaluation, Method
from configs.schema import Job
from pipeline.evaluation.tasks.base import Item
from workers.encoder import observation_record
from workers.errors import ModelError
from workers.loading import Reading, load_method, resolve_runtime
from workers.selection.profile import Profile

Key = tuple[str, int | None]
"""A method's name and its budget."""


class Identity:
    """The digests of an evaluation's rows."""

    def __init__(self, evaluation: Evaluation, reading: Reading, profile: Profile | None) -> None:
        """``profile``: retrieval heads, where any method needs them."""
        self._reading = reading
        self._profile = profile
        shared = [
            [reading.source.weights, reading.source.tokenizer],
            _computing(evaluation),
            evaluation.base.prompt.model_dump(mode="json"),
            evaluation.share_reading,
        ]
        self._methods: Mapping[Key, str] = {
            (method.name, budget): _digest(shared, self._method(method, evaluation.job(method, budget)))
            for method in evaluation.methods
            for budget in evaluation.budgets_of(method)
        }

    def of(self, item: Item, *, compares: bool) -> dict[Key, str]:
        """The digest of each of an item's rows. ``compares``: fidelity to dense is measured too."""
        own = _digest(asdict(item), compares)
        return {key: _digest(method, own) for key, method in self._methods.items()}

    def _method(self, method: Method, job: Job) -> list[object]:
        """All that a method is; a reason where it cannot be had, so that it is tried again when that changes."""
        settings = [_said(part) for part in (job.read, job.keep, job.answer)]
        if method.baseline is not None:
            return [method.baseline, settings]
        try:
            parts = load_method(job, self._reading, self._profile)
        except ModelError as error:
            return ["refused", settings, str(error)]
        observed = observation_record(parts.scorer, self._reading.frame)
        return ["method", settings, parts.record, observed, parts.scorer.record, parts.budget.record]


def _computing(evaluation: Evaluation) -> list[str]:
    """Device kind, dtype and kernel. Workers of a cluster may have what this machine has not: then as they were asked
    for."""
    model = evaluation.base.model
    if evaluation.pool.kind == "local":
        runtime = resolve_runtime(model)
        return [runtime.device.partition(":")[0], runtime.dtype, runtime.attention]
    return [model.device.partition(":")[0], model.dtype, model.attention]


def _said(part: BaseModel) -> dict[str, object]:
    """What a part of a job says that it would not be by itself: a setting that a later Foveate adds changes no row."""
    said: dict[str, object] = {}
    for name, info in type(part).model_fields.items():
        value = getattr(part, name)
        if name == "kind" or value != info.default:
            said[name] = _said(value) if isinstance(value, BaseModel) else value
    return said


def _digest(*parts: object) -> str:
    return blake3(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:32]
