"""Results as a page of Markdown tables.

Invariants: no number is an average over lengths, tasks or budgets; every score stands with its interval; a refused
method has its row and its reason; where BM25 is ahead of the default, a sentence says so. The same results give the
same page.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from pipeline.evaluation.metrics import Estimate
from pipeline.evaluation.results import Result
from pipeline.evaluation.summary import Cell, Place, Summary
from pipeline.quantities import in_bytes

LEXICAL = "bm25"
"""How the names of the lexical controls begin."""
_HOW = (
    "Scores are the share of the expected strings that the answer holds, with Wilson's 95 % interval. *Against* is the "
    "difference to `{default}` over the same items, in points, with its paired bootstrap 95 % interval; **bold** where "
    "that leaves out 0. *Gold kept*: share of the gold passages that lie whole in what was kept."
)
_COLUMNS = (
    "budget", "method", "score", "against", "gold kept", "relevance kept", "tokens kept", "bytes kept",
    "read s", "answer s", "KL", "top-1",
)  # fmt: skip


def results_page(results: Iterable[Result], default: str, title: str = "Results") -> str:
    """The whole page. ``default``: the method that the others are compared with. Raises ``ValueError`` if it has no
    results."""
    summary = Summary(results, default)
    lines = [f"# {title}", "", _HOW.format(default=default), "", *lexical_lines(summary), *_refusals(summary)]
    for length in summary.lengths:
        lines += [f"## Scores at {length:,} tokens", ""]
        for budget in summary.budgets:
            lines += overview(summary, length, budget)
    for task in summary.tasks:
        lines += [f"## {_escape(task)}", ""]
        for length in summary.lengths:
            lines += details(summary, task, length)
    return "\n".join(lines).rstrip() + "\n"


def overview(summary: Summary, length: int, budget: int | None) -> list[str]:
    """One table: a row for each method, a column for each task."""
    columns = [place for task in summary.tasks if (place := Place(task, length, budget)) in summary.places]
    rows = []
    for method in summary.methods:
        cells = [summary.cell(place, method) for place in columns]
        if any(cells):
            rows.append([f"`{_escape(method)}`", *(_score(cell) if cell else "" for cell in cells)])
    heading = "" if budget is None else f"Budget {budget:,} tokens:"
    return [heading, "", *table(["method", *(place.task for place in columns)], rows), ""] if rows else []


def details(summary: Summary, task: str, length: int) -> list[str]:
    """One table: a row for each budget and method, with everything that was measured."""
    rows = []
    for budget in summary.budgets:
        for method, cell in summary.row(Place(task, length, budget)):
            rows.append(["" if budget is None else f"{budget:,}", f"`{_escape(method)}`", *_measured(summary, cell)])
    items = max(
        (len(cell.results) for b in summary.budgets for _, cell in summary.row(Place(task, length, b))), default=0
    )
    return [f"### {_escape(task)} at {length:,} tokens, {items} items", "", *table(_COLUMNS, rows), ""] if rows else []


def _measured(summary: Summary, cell: Cell) -> list[str]:
    """The cells of one row, from the score on."""
    own = bool(cell.results) and cell.results[0].method == summary.default
    recall = cell.recall
    return [
        _score(cell),
        "" if own or cell.is_refused or (gain := cell.gain) is None else _points(gain),
        "" if recall is None else _percent(recall),
        _mean(cell, lambda r: r.relevance_kept, "{:.0%}".format),
        _mean(cell, lambda r: r.kept_tokens, "{:,.0f}".format),
        _mean(cell, lambda r: r.kept_bytes, lambda mean: in_bytes(round(mean))),
        _mean(cell, lambda r: r.seconds_read, "{:.2f}".format),
        _mean(cell, lambda r: r.seconds_answer, "{:.2f}".format),
        _mean(cell, lambda r: r.kl, "{:.3f}".format),
        _mean(cell, lambda r: r.top1, "{:.0%}".format),
    ]


def lexical_lines(summary: Summary) -> list[str]:
    """Where BM25 is ahead of the default, on answers and on passages kept; or that it is nowhere. Nothing where it did
    not run."""
    methods = [method for method in summary.methods if method.lower().startswith(LEXICAL) and method != summary.default]
    if not methods:
        return []
    wins = [line for method in methods for place in summary.places for line in _ahead(summary, place, method)]
    if not wins:
        return [f"BM25 is nowhere ahead of `{summary.default}`.", ""]
    return [f"BM25 is ahead of `{summary.default}` here:", "", *(f"* {line}" for line in wins), ""]


def _ahead(summary: Summary, place: Place, method: str) -> Iterator[str]:
    ours, theirs = summary.cell(place, summary.default), summary.cell(place, method)
    if ours is None or theirs is None:
        return
    if theirs.score.mean > ours.score.mean and (gain := theirs.gain) is not None:
        scores = f"`{method}` scores {theirs.score.mean:.0%}, `{summary.default}` {ours.score.mean:.0%}"
        yield f"{place}: {scores} ({_points(gain)})"
    if theirs.recall and ours.recall and theirs.recall.mean > ours.recall.mean:
        yield (
            f"{place}: `{method}` keeps {theirs.recall.mean:.0%} of the gold passages, `{summary.default}` "
            f"{ours.recall.mean:.0%}"
        )


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


def _score(cell: Cell) -> str:
    if cell.is_refused:
        return "refused"
    return _percent(cell.score) + (f" ({len(cell.errors)} failed)" if cell.errors else "")


def _percent(share: Estimate) -> str:
    return f"{share.mean:.0%} [{100 * share.low:.0f}, {100 * share.high:.0f}]"


def _points(gain: Estimate) -> str:
    text = f"{_signed(gain.mean)} [{_signed(gain.low)}, {_signed(gain.high)}]"
    return f"**{text}**" if gain.excludes_zero else text


def _signed(share: float) -> str:
    """Points with a sign; no sign at 0, and never minus nought."""
    points = round(100 * share)
    return f"{points:+d}" if points else "0"


def _mean(cell: Cell, value: Callable[[Result], float | None], shown: Callable[[float], str]) -> str:
    mean = cell.mean(value)
    return "" if mean is None else shown(mean)


def _escape(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
