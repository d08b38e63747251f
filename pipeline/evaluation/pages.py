"""What an evaluation leaves for people to read: a page of tables and figures beside ``results.parquet``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import yaml

from configs.closed import Closed
from configs.evaluation import Evaluation, Method
from pipeline.errors import JobError
from pipeline.evaluation.results import Result
from pipeline.evaluation.tables import Front, results_page
from pipeline.objects import local_path
from workers.hf import model_shape
from workers.source import locate


def write_pages(evaluation: Evaluation, results: Sequence[Result], title: str, command: str) -> list[Path]:
    """Write tables and figures into the evaluation's directory, and say where; nothing while the first method has no
    result. ``command``: what made them. Raises ``JobError`` where matplotlib is missing."""
    default = evaluation.methods[0].name
    if not any(row.method == default for row in results):
        return []
    directory = local_path(evaluation.output.path)
    page, front = directory / "results.md", _front(evaluation, results, title, command)
    try:
        from pipeline.evaluation.plots import write_plots
    except ImportError as error:
        page.write_text(results_page(results, default, front), encoding="utf-8")
        raise JobError(
            f"{page} is written; figures need matplotlib ({error}): pip install 'foveate[evaluate]'"
        ) from error
    figures = write_plots(directory, results, default)
    front = replace(front, figures=tuple(path.name for path in figures))
    page.write_text(results_page(results, default, front), encoding="utf-8")
    return [directory / "results.parquet", page, *figures]


def _front(evaluation: Evaluation, results: Sequence[Result], title: str, command: str) -> Front:
    """How the page was made: enough to make it again."""
    base, window = evaluation.base, model_shape(locate(evaluation.base.model.source).directory).window
    counts = ", ".join(f"{count:,} at {length:,} tokens" for length, count in evaluation.counts.items())
    tried = len({row.item for row in results})
    machines = "; ".join(dict.fromkeys(row.machine for row in results if row.machine)) or "not recorded"
    prompt = _flow(base.prompt.model_dump(mode="json"))
    shared = _changes(("read", base.read), ("keep", base.keep), ("answer", base.answer))
    made = (
        f"Made by `{command}`; do not edit.",
        f"Model `{base.model.source}`, window {window:,} tokens; prompt `{prompt}`; settings of all methods: "
        f"{f'`{shared}`' if shared else 'the defaults'}. Items of each task: {counts}; {tried:,} items in all; seed "
        f"{evaluation.seed}. Measured on {machines}.",
    )
    return Front(
        title=title,
        made=made,
        methods=tuple((method.name, _settings(method)) for method in evaluation.methods),
        lexical=tuple(method.name for method in evaluation.methods if method.baseline == "bm25"),
        window=window,
    )


def _settings(method: Method) -> str:
    """What a method changes, as its file says it."""
    baseline = [f"baseline: {method.baseline}"] if method.baseline else []
    changed = _changes(("read", method.read), ("keep", method.keep), ("answer", method.answer))
    return ", ".join([*baseline, *([changed] if changed else [])])


def _changes(*parts: tuple[str, Closed | None]) -> str:
    """The keys that were given, as YAML on one line."""
    given = {name: part.model_dump(mode="json", exclude_unset=True) for name, part in parts if part is not None}
    return ", ".join(f"{name}: {_flow(keys)}" for name, keys in given.items() if keys)


def _flow(value: object) -> str:
    text: str = yaml.safe_dump(value, default_flow_style=True, width=float("inf"), allow_unicode=True, sort_keys=False)
    return text.strip()
