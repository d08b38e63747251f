"""Results as small SVG figures: accuracy by method, against budget and against length, gold kept against budget, bytes.

Invariants: one panel for each task and each length or budget, so that nothing is averaged over them; lines are drawn
where they have two points, and methods below each other where there are few places to compare them at; a method has
the same colour and mark in every figure of lines; text is text; the same results give the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from pipeline.evaluation.metrics import Estimate
from pipeline.evaluation.results import Result
from pipeline.evaluation.summary import Cell, Place, Summary

# Okabe and Ito 2008: told apart by colour-blind readers too. The default comes first, in black.
_COLOURS = ("#000000", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#999999")
_MARKS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">")
_STYLE: Any = {"svg.hashsalt": "foveate", "svg.fonttype": "none", "font.size": 8, "axes.spines.top": False,
          "axes.spines.right": False, "lines.linewidth": 1.2, "lines.markersize": 4}  # fmt: skip
_PANEL = (2.5, 1.9)
"""Inches."""
_LEGEND_ENTRY = 1.7
"""Inches, at most: a legend has as many columns as fit."""
_FEW_PLACES = 4
"""Lengths times budgets that a figure with a row for each method has room for."""
_SHARES = FuncFormatter(lambda value, _: f"{value:.0%}")

Points = list[tuple[float, Estimate]]
Grid = Sequence[Sequence[tuple[str, Callable[[str], Points]]]]
"""Rows of panels: a title, and a method's points there."""


def write_plots(directory: Path, results: Iterable[Result], default: str) -> list[Path]:
    """Write every figure that the results have points for, and say which; one that an earlier page had and this one has
    not is removed. Raises ``ValueError`` if ``default`` has no results."""
    summary = Summary(results, default)
    with mpl.rc_context(_STYLE):
        figures = {
            "accuracy-by-method.svg": accuracy_by_method(summary),
            "accuracy-by-budget.svg": accuracy_by_budget(summary),
            "accuracy-by-length.svg": accuracy_by_length(summary),
            "recall-by-budget.svg": recall_by_budget(summary),
            "bytes.svg": bytes_by_method(summary),
        }
        directory.mkdir(parents=True, exist_ok=True)
        written = []
        for name, figure in figures.items():
            path = directory / name
            if figure is None:
                path.unlink(missing_ok=True)
            else:
                figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})
                written.append(path)
    return written


def accuracy_by_method(summary: Summary) -> Figure | None:
    """Score and gold kept of every method, in the methods' order: a row of panels for each length and budget, a column
    for each task. None where there are too many of these for a page."""
    wheres = [(length, budget) for length in summary.lengths for budget in summary.budgets]
    if len(wheres) > _FEW_PLACES:
        return None
    rows = {method: at for at, method in enumerate(summary.methods)}
    width, height = 1.6 + _PANEL[0] * len(summary.tasks), (0.7 + 0.15 * len(rows)) * len(wheres)
    figure = Figure(figsize=(width, height + 0.3), layout="constrained")
    panels = figure.subplots(len(wheres), len(summary.tasks), squeeze=False, sharey=True)
    drawn: dict[str, Any] = {}
    for axes_row, (length, budget) in zip(panels, wheres, strict=True):
        for axes, task in zip(axes_row, summary.tasks, strict=True):
            place = Place(task, length, budget)
            answered = [(rows[method], cell) for method, cell in summary.row(place) if not cell.is_refused]
            for at, cell in answered:
                score, kept = cell.score, cell.recall
                if kept is not None:
                    [drawn["gold passages kept"]] = axes.plot(kept.mean, at, "o", mfc="white", mec=_COLOURS[2], ms=6)
                interval = [[score.mean - score.low], [score.high - score.mean]]
                drawn["score"] = axes.errorbar(score.mean, at, xerr=interval, fmt="ok", elinewidth=0.8, ms=3)
            axes.set_yticks(range(len(rows)), list(rows))
            axes.set_ylim(len(rows) - 0.5, -0.5)
            axes.set_xlim(-0.03, 1.03)
            axes.xaxis.set_major_formatter(_SHARES)
            axes.grid(linewidth=0.3)
            axes.set_title(str(place), fontsize=8)
    figure.legend(list(drawn.values()), list(drawn), loc="outside upper center", ncols=2, frameon=False)
    return figure


def accuracy_by_budget(summary: Summary) -> Figure | None:
    """Score against budget: a row of panels for each task, a column for each length; None for a single budget."""
    return _by_budget(summary, lambda cell: cell.score, "score")


def recall_by_budget(summary: Summary) -> Figure | None:
    """Share of gold passages kept whole against budget, for the tasks that have gold; None for a single budget."""
    return _by_budget(summary, lambda cell: cell.recall, "gold passages kept")


def accuracy_by_length(summary: Summary) -> Figure | None:
    """Score against length: a row of panels for each task, a column for each budget; None for a single length."""

    def panel(task: str, budget: int | None) -> tuple[str, Callable[[str], Points]]:
        title = task if budget is None else f"{task}, budget {budget:,}"
        places = [Place(task, length, budget) for length in summary.lengths]
        return title, lambda method: _points(summary, places, method, lambda place: place.length, lambda c: c.score)

    if len(summary.lengths) < 2:
        return None
    return _lines(summary, [[panel(t, b) for b in summary.budgets] for t in summary.tasks], "length in tokens", "score")


def bytes_by_method(summary: Summary) -> Figure | None:
    """Mean bytes kept of a document, as bars: a panel for each task and length, a bar for each budget of a method."""
    tasks, lengths = summary.tasks, summary.lengths
    grid = [[_bars(summary, task, length) for length in lengths] for task in tasks]
    tallest = max(len(bars) for row in grid for bars in row)
    if not tallest:
        return None
    height = 0.7 + 0.16 * tallest
    figure = Figure(figsize=(1.3 + _PANEL[0] * len(lengths), height * len(tasks)), layout="constrained")
    panels = figure.subplots(len(tasks), len(lengths), squeeze=False)
    for task, axes_row, row in zip(tasks, panels, grid, strict=True):
        for length, axes, bars in zip(lengths, axes_row, row, strict=True):
            colours = [_look(summary, method)[0] for method, _, _ in bars]
            axes.barh(range(len(bars)), [mebibytes for _, _, mebibytes in bars], color=colours)
            axes.set_yticks(range(len(bars)), [label for _, label, _ in bars])
            axes.invert_yaxis()
            axes.set_title(f"{task}, {length:,} tokens", fontsize=8)
            axes.set_xlabel("MiB kept of a document")
    return figure


def _bars(summary: Summary, task: str, length: int) -> list[tuple[str, str, float]]:
    """(method, label, MiB) of a panel, method by method; a method without a budget has one bar."""
    bars: dict[tuple[str, int | None], tuple[str, str, float]] = {}
    for method in summary.methods:
        for budget in summary.budgets:
            cell = summary.cell(Place(task, length, budget), method)
            if cell is not None and (mean := cell.mean(_kept_bytes)) is not None:
                granted = cell.results[0].budget
                label = method if granted is None else f"{method}, {granted:,}"
                bars[method, granted] = (method, label, mean / 2**20)
    return list(bars.values())


def _kept_bytes(result: Result) -> float | None:
    return result.kept_bytes


def _by_budget(summary: Summary, value: Callable[[Cell], Estimate | None], label: str) -> Figure | None:
    def panel(task: str, length: int) -> tuple[str, Callable[[str], Points]]:
        places = [Place(task, length, budget) for budget in summary.budgets]
        title = f"{task}, {length:,} tokens"
        return title, lambda method: _points(summary, places, method, lambda place: place.budget or 0, value)

    if len(summary.budgets) < 2:
        return None
    grid = [[panel(task, length) for length in summary.lengths] for task in summary.tasks]
    return _lines(summary, grid, "budget in tokens", label)


def _points(
    summary: Summary,
    places: Sequence[Place],
    method: str,
    where: Callable[[Place], float],
    value: Callable[[Cell], Estimate | None],
) -> Points:
    """A method's points over ``places``, without those it was refused at."""
    cells = [(place, summary.cell(place, method)) for place in places]
    found = [(where(place), value(cell)) for place, cell in cells if cell is not None and not cell.is_refused]
    return [(at, estimate) for at, estimate in found if estimate is not None]


def _lines(summary: Summary, grid: Grid, x_label: str, y_label: str) -> Figure | None:
    """A grid of panels with a line for each method; rows without a point are left out, and None is for no row."""
    rows = [row for row in grid if any(points(method) for _, points in row for method in summary.methods)]
    if not rows:
        return None
    width = max(1.3 + _PANEL[0] * len(rows[0]), 3 * _LEGEND_ENTRY)
    figure = Figure(figsize=(width, 0.6 + _PANEL[1] * len(rows)), layout="constrained")
    panels = figure.subplots(len(rows), len(rows[0]), squeeze=False, sharey=True)
    drawn: dict[str, ErrorbarContainer] = {}
    for axes_row, row in zip(panels, rows, strict=True):
        for axes, (title, points) in zip(axes_row, row, strict=True):
            found = {method: points(method) for method in summary.methods}
            for method, own in found.items():
                if own:
                    drawn[method] = _line(axes, own, _look(summary, method))
            _dress(axes, title, sorted({at for own in found.values() for at, _ in own}))
            axes.set_xlabel(x_label)
        axes_row[0].set_ylabel(y_label)
    handles: list[Any] = list(drawn.values())  # a container is no artist to the types, but is to a legend
    figure.legend(handles, list(drawn), loc="outside upper center", ncols=int(width / _LEGEND_ENTRY), frameon=False)
    return figure


def _line(axes: Axes, points: Points, look: tuple[str, str]) -> ErrorbarContainer:
    colour, mark = look
    below = [estimate.mean - estimate.low for _, estimate in points]
    above = [estimate.high - estimate.mean for _, estimate in points]
    return axes.errorbar(
        [at for at, _ in points],
        [estimate.mean for _, estimate in points],
        yerr=[below, above],
        color=colour,
        marker=mark,
        elinewidth=0.5,
        capsize=1.5,
    )


def _dress(axes: Axes, title: str, ticks: Sequence[float]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [f"{tick:,.0f}" for tick in ticks])
    axes.minorticks_off()
    axes.set_ylim(-0.03, 1.03)
    axes.yaxis.set_major_formatter(_SHARES)
    axes.grid(axis="y", linewidth=0.3)
    axes.set_title(title, fontsize=8)


def _look(summary: Summary, method: str) -> tuple[str, str]:
    """Colour and mark: the default's black, the others' in their order."""
    others = [name for name in summary.methods if name != summary.default]
    index = 0 if method == summary.default else 1 + others.index(method)
    return _COLOURS[index % len(_COLOURS)], _MARKS[index % len(_MARKS)]
