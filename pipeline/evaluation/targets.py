"""What the default is held to, and whether it holds: dense in the window, its own scores beyond it, passages kept.

Makes ``docs/results/targets.md`` from an evaluation's ``results.parquet``. Invariants: nothing is averaged over lengths
or budgets, and over tasks in one row that says so; every verdict stands beside the numbers that it is made of.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path

from pipeline.evaluation.metrics import Estimate, mean_share, ratio_of_means
from pipeline.evaluation.results import read_results
from pipeline.evaluation.summary import Cell, Place, Summary
from pipeline.evaluation.tables import percent, points, table
from workers.hf import model_shape
from workers.source import locate

DEFAULT, DENSE, BM25 = "default", "dense", "bm25"
NEEDLES = ("single_needle", "multi_key", "multi_value", "multi_query")
ABLE = 0.5
"""The score from which a task counts as one that dense can do."""
OWN_SHARE = 0.9
"""Of its score at the longest length in the window, what the default must have left beyond it."""
RECALL, RECALL_TASK, RECALL_BUDGET = 0.9, "real_text", 1024
"""The share of gold passages that must be kept whole, where, and in how many tokens."""


def write_targets(results: Path, model: str, out: Path) -> None:
    """Write the page. ``model``: whose results these are; its window is looked up. Raises ``ValueError`` for a file
    that is not ours or lacks the default."""
    summary = Summary(read_results(results), DEFAULT)
    window = model_shape(locate(model).directory).window
    made = f"Made by `python -m pipeline.evaluation targets --results {results} --model {model}`; do not edit."
    out.write_text("\n".join(["# Targets", "", made, "", *targets(summary, window)]).rstrip() + "\n", encoding="utf-8")


def targets(summary: Summary, window: int) -> Iterator[str]:
    """The three sections, as lines of Markdown."""
    yield from (f"## In the window of {window:,} tokens", "")
    yield f"The default is not below dense by more than chance where dense scores {ABLE:.0%} or more."
    yield from ("", *_against_dense(summary, window), "")
    yield from ("## Beyond the window", "")
    yield (
        f"The default has {OWN_SHARE:.0%} or more of its own score at the longest length in the window. In brackets: "
        "95 % intervals, of a share by bootstrap over both lengths' items. *Missed* within chance: the interval holds "
        f"{OWN_SHARE:.0%}."
    )
    yield from ("", *_against_itself(summary, window), "")
    yield from ("## Gold passages of real text", "")
    yield f"Kept whole in {RECALL_BUDGET:,} tokens: {RECALL:.0%} or more, and more than BM25 keeps in as many."
    yield from ("", *_recalls(summary))


def _against_dense(summary: Summary, window: int) -> list[str]:
    able = [
        (place, cell)
        for place in summary.places
        if place.length <= window and (cell := summary.cell(place, DENSE)) and cell.score.mean >= ABLE
    ]
    if not able:
        return [f"Dense scores {ABLE:.0%} nowhere in the window: there is nothing to be below of."]
    rows = []
    for place, cell in able:
        gain, own = cell.gain, summary.cell(place, DEFAULT)
        if gain is not None and own is not None:
            verdict = "missed" if gain.low > 0 else "met"
            ours = Estimate(-gain.mean, -gain.high, -gain.low, gain.count)
            rows.append([str(place), percent(cell.score), percent(own.score), points(ours), verdict])
    return table(["where", "dense", "default", "difference over the same items", "verdict"], rows)


def _against_itself(summary: Summary, window: int) -> list[str]:
    within = [length for length in summary.lengths if length <= window]
    beyond = [length for length in summary.lengths if length > window]
    if not within or not beyond:
        return ["There are no items on both sides of it."]
    tasks = [task for task in NEEDLES if task in summary.tasks]
    kinds = [(task, [task]) for task in tasks] + [("all of these items", tasks)]
    rows = []
    for budget, (name, own), length in product(summary.budgets, kinds, beyond):
        base, scores = (_scores(summary, own, at, budget) for at in (within[-1], length))
        if base and scores:
            share = ratio_of_means(scores, base)
            shown = [percent(mean_share(base)), f"{length:,}", percent(mean_share(scores))]
            granted = "" if budget is None else f"{budget:,}"
            rows.append([granted, name, *shown, percent(share) if share else "", _verdict(share)])
    return table(["budget", "task", f"at {within[-1]:,}", "length", "there", "share of its own", "verdict"], rows)


def _scores(summary: Summary, tasks: Sequence[str], length: int, budget: int | None) -> list[float]:
    """What the default scores on the items of these tasks."""
    cells = (summary.cell(Place(task, length, budget), DEFAULT) for task in tasks)
    return [result.score for cell in cells if cell for result in cell.results]


def _verdict(share: Estimate | None) -> str:
    if share is None or share.mean >= OWN_SHARE:
        return "met"
    return "missed, within chance" if share.high >= OWN_SHARE else "missed"


def _recalls(summary: Summary) -> list[str]:
    rows = []
    for length in summary.lengths:
        place = Place(RECALL_TASK, length, RECALL_BUDGET)
        ours, theirs = _recall(summary.cell(place, DEFAULT)), _recall(summary.cell(place, BM25))
        if ours is not None and theirs is not None:
            is_met = ours.mean >= RECALL and ours.mean > theirs.mean
            verdict = (
                "met" if is_met else "missed, within chance" if ours.high >= max(RECALL, theirs.mean) else "missed"
            )
            rows.append([f"{length:,}", f"{ours.count}", percent(ours), percent(theirs), verdict])
    if not rows:
        return [f"There are no results of {RECALL_TASK} at this budget."]
    return table(["length", "items", "default keeps", "BM25 keeps", "verdict"], rows)


def _recall(cell: Cell | None) -> Estimate | None:
    return None if cell is None else cell.recall
