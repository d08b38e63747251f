"""Results as a page of Markdown tables.

Invariants: no number is an average over lengths, tasks or budgets; every score stands with its interval; a refused
method has its row and its reason; where BM25 is ahead of the default, a sentence says so. The same results give the
same page.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.evaluation.metrics import Estimate
from pipeline.evaluation.results import Result
from pipeline.evaluation.summary import Cell, Place, Summary
from pipeline.quantities import in_bytes

_HOW = (
    "Scores are the share of the expected strings that the answer holds, with Wilson's 95 % interval, and in brackets "
    "the number of items where it is not all of them. *Against* is the difference to `{default}` over the items that "
    "both have, in points, with its paired bootstrap 95 % interval; **bold** where that leaves out 0. An item that a "
    "method failed on scores 0, also there; a method that was *refused*, on every item, has no score. *Gold kept*: "
    "share of the gold passages that lie whole in what was kept, where runs that touch are one, on average over layers "
    "and kv heads where these keep different tokens. *Tokens kept*: per layer and kv head. *Bytes kept*: of key-value "
    "pairs, in all layers; none where text is kept and read again. *KL*, in nats, and *top-1*: how far the method's "
    "next-token distributions are from the dense model's, and how often both say the same, over the tokens of the "
    "dense answer. Seconds are medians, and left out where methods shared a reading or a batch of answers."
)
_COLUMNS = (
    "budget", "method", "items", "score", "against", "gold kept", "relevance kept", "tokens kept", "bytes kept",
    "read s", "answer s", "KL", "top-1",
)  # fmt: skip


@dataclass(frozen=True)
class Front:
    """What a page says before its tables. ``made``: paragraphs on how it was made; ``methods``: names and settings;
    ``lexical``: those that keep what words find; ``window``: of the model, in tokens; ``figures``: names of SVG files
    beside the page."""

    title: str = "Results"
    made: tuple[str, ...] = ()
    methods: tuple[tuple[str, str], ...] = ()
    lexical: tuple[str, ...] = ()
    window: int | None = None
    figures: tuple[str, ...] = ()


def results_page(results: Iterable[Result], default: str, front: Front = Front()) -> str:
    """The whole page. ``default``: the method that the others are compared with. Raises ``ValueError`` if it has no
    results."""
    summary = Summary(results, default)
    lines = [f"# {front.title}", ""]
    for paragraph in (*front.made, _HOW.format(default=default)):
        lines += [paragraph, ""]
    lines += [*lexical_lines(summary, front.lexical), *_refusals(summary)]
    for name in front.figures:
        lines += [f"![{Path(name).stem.replace('-', ' ')}]({name})", ""]
    for length in summary.lengths:
        beyond = front.window is not None and length > front.window
        lines += [f"## Scores at {length:,} tokens{', beyond the window' if beyond else ''}", ""]
        for budget in summary.budgets:
            lines += overview(summary, length, budget)
    for task in summary.tasks:
        lines += [f"## {_escape(task)}", ""]
        for length in summary.lengths:
            lines += details(summary, task, length)
    if front.methods:
        rows = [
            [f"`{_escape(name)}`", f"`{_escape(settings)}`" if settings else "nothing"]
            for name, settings in front.methods
        ]
        lines += ["## Methods", "", *table(["method", "what it changes"], rows)]
    return "\n".join(lines).rstrip() + "\n"


def overview(summary: Summary, length: int, budget: int | None) -> list[str]:
    """One table: a row for each method, a column for each task."""
    columns = [place for task in summary.tasks if (place := Place(task, length, budget)) in summary.places]
    rows = []
    for method in summary.methods:
        cells = [summary.cell(place, method) for place in columns]
        if any(cells):
            shown = [
                _score(cell, summary.items(place.task, length)) if cell else ""
                for place, cell in zip(columns, cells, strict=True)
            ]
            rows.append([f"`{_escape(method)}`", *shown])
    heading = "" if budget is None else f"Budget {budget:,} tokens:"
    return [heading, "", *table(["method", *(place.task for place in columns)], rows), ""] if rows else []


def details(summary: Summary, task: str, length: int) -> list[str]:
    """One table: a row for each budget and method, with everything that was measured."""
    rows = []
    items = summary.items(task, length)
    for budget in summary.budgets:
        for method, cell in summary.row(Place(task, length, budget)):
            count = "" if len(cell.results) == items else f"{len(cell.results)}"
            granted = "" if budget is None else f"{budget:,}"
            rows.append([granted, f"`{_escape(method)}`", count, *_measured(summary, cell)])
    return [f"### {_escape(task)} at {length:,} tokens, {items} items", "", *table(_COLUMNS, rows), ""] if rows else []


def _measured(summary: Summary, cell: Cell) -> list[str]:
    """The cells of one row, from the score on."""
    own = bool(cell.results) and cell.results[0].method == summary.default
    recall = cell.recall
    return [
        _score(cell),
        "" if own or cell.is_refused or (gain := cell.gain) is None else points(gain),
        "" if recall is None else percent(recall),
        _shown(cell.mean(lambda r: r.relevance_kept), "{:.0%}".format),
        _shown(cell.mean(lambda r: r.kept_tokens), "{:,.0f}".format),
        _shown(cell.mean(lambda r: r.kept_bytes), lambda mean: in_bytes(round(mean))),
        _shown(cell.median(lambda r: r.seconds_read), "{:.2f}".format),
        _shown(cell.median(lambda r: r.seconds_answer), "{:.2f}".format),
        _shown(cell.mean(lambda r: r.kl), "{:.3f}".format),
        _shown(cell.mean(lambda r: r.top1), "{:.0%}".format),
    ]


def lexical_lines(summary: Summary, methods: Sequence[str]) -> list[str]:
    """Where BM25 is ahead of the default, on answers and on passages kept; or that it is nowhere. Nothing where it did
    not run."""
    cells = [
        (place, method, cell)
        for method in methods
        for place in summary.places
        if method != summary.default and (cell := summary.cell(place, method)) and cell.gain is not None
    ]
    if not cells:
        return []
    wins = [line for place, method, cell in cells for line in _ahead(summary.default, place, method, cell)]
    if not wins:
        return [f"BM25 is nowhere ahead of `{summary.default}`.", ""]
    return [f"BM25 is ahead of `{summary.default}` here:", "", *(f"* {line}" for line in wins), ""]


def _ahead(default: str, place: Place, method: str, cell: Cell) -> Iterator[str]:
    """Over the items that both have, however little it is ahead by."""
    if (gain := cell.gain) is not None and gain.mean > 0:
        yield f"{place}: `{method}` scores {points(gain)} points more than `{default}`"
    if (gain := cell.recall_gain) is not None and gain.mean > 0:
        yield f"{place}: `{method}` keeps {points(gain)} points more of the gold passages than `{default}`"


def _refusals(summary: Summary) -> list[str]:
    """Why items have no answer: each method's reasons, with where and how often."""
    found: dict[tuple[str, str], list[str]] = {}
    for place in summary.places:
        for method, cell in summary.row(place):
            for reason in dict.fromkeys(cell.errors):
                count = f"{cell.errors.count(reason)} of {len(cell.results)}"
                found.setdefault((method, reason), []).append(f"{place} ({count})")
    lines = [f"* `{method}`: {_escape(reason)}: {'; '.join(where)}" for (method, reason), where in found.items()]
    return ["No answer, which scores 0:", "", *lines, ""] if lines else []


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Markdown; columns that are empty in every row are left out."""
    used = [index for index in range(len(columns)) if any(row[index] for row in rows)]
    lines = ["| " + " | ".join(_escape(columns[index]) for index in used) + " |", "|---" * len(used) + "|"]
    return lines + ["| " + " | ".join(row[index] for index in used) + " |" for row in rows]


def _score(cell: Cell, items: int | None = None) -> str:
    """``items``: how many other methods have."""
    if cell.is_refused:
        return "refused"
    fewer = f" ({len(cell.results)})" if items is not None and len(cell.results) < items else ""
    return percent(cell.score) + fewer + (f" ({len(cell.errors)} failed)" if cell.errors else "")


def percent(share: Estimate) -> str:
    """A share with its interval."""
    return f"{share.mean:.0%} [{100 * share.low:.0f}, {100 * share.high:.0f}]"


def points(gain: Estimate) -> str:
    """A difference with its interval, in points; bold where that leaves out 0."""
    text = f"{_signed(gain.mean)} [{_signed(gain.low)}, {_signed(gain.high)}]"
    return f"**{text}**" if gain.excludes_zero else text


def _signed(share: float) -> str:
    """Points with a sign; no sign at 0, and never minus nought."""
    points = round(100 * share)
    return f"{points:+d}" if points else "0"


def _shown(number: float | None, shown: Callable[[float], str]) -> str:
    return "" if number is None else shown(number)


def _escape(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
