"""Agreement as a page of Markdown.

Invariants: the same rows give the same page; a method that agrees on less than ``ENOUGH`` of what is kept either has
its difference explained or is called unexplained.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pipeline.evaluation.agreement.comparing import Row
from pipeline.evaluation.agreement.measures import Agreement, mean_known
from pipeline.evaluation.agreement.methods import Compared
from pipeline.evaluation.metrics import mean_share, paired_difference
from pipeline.evaluation.tables import percent, points

ENOUGH = 0.95


@dataclass(frozen=True)
class Agreed:
    """All rows of a comparison, and the methods in the order of the page."""

    rows: Sequence[Row]
    methods: Sequence[Compared]

    def of(self, method: Compared, *, as_run: bool) -> list[Row]:
        """The rows of a method: as the product runs it, or as the other side defines it."""
        pinned = "anchor" if as_run else method.pinned
        return [row for row in self.rows if (row.method, row.pinned) == (method.name, pinned)]


def agreement_lines(agreed: Agreed) -> list[str]:
    """Both tables, and what is not the same."""
    return [
        "## The same definition",
        "",
        "Everything that one side does and the other does not is taken away: a document is one chunk, its tokens are "
        "blocks, nothing is widened, and what kvpress leaves out of its choice (*pinned*) Foveate reads as an anchor. "
        "*Overlap*: share of the pairs of a layer that one side keeps and the other keeps too (of the side that keeps "
        "fewer). *Jaccard*: kept by both over kept by either, per layer and head; in brackets the head of all items "
        "that agrees least. *Order*: Spearman's rank correlation of the scores. *Same answer*: letter for letter, "
        "with kvpress's `KeyRerotationPress` around its press, since Foveate moves kept pairs together and kvpress "
        "leaves them where they were.",
        "",
        "| method | kvpress | pinned | overlap | Jaccard | order | same answer |",
        "|---|---|---|---|---|---|---|",
        *(_definition(method, agreed.of(method, as_run=False)) for method in agreed.methods),
        "",
        "## As each is run",
        "",
        "Foveate pins all words before the document and chooses among the document; kvpress chooses among all. Both "
        "keep as many pairs. Kept pairs stay where they stood on both sides. Scores with Wilson's "
        "95 % interval; the difference (Foveate - kvpress) with its paired bootstrap 95 % interval, in points.",
        "",
        "| method | overlap | Foveate | kvpress | difference |",
        "|---|---|---|---|---|",
        *(_run(method, agreed.of(method, as_run=True)) for method in agreed.methods),
        "",
        "## What is not the same",
        "",
        *_differences(agreed),
    ]


def _definition(method: Compared, rows: Sequence[Row]) -> str:
    found = [row.agreement for row in rows if row.agreement is not None]
    cells = ["not in Foveate", "", "", ""]
    if found:
        same = [one.same_answer for one in found if one.same_answer is not None]
        jaccard = _mean(found, lambda one: one.jaccard)
        cells = [
            _mean(found, lambda one: one.overlap),
            f"{jaccard} [{min(one.least_jaccard for one in found):.3f}]",
            _mean(found, lambda one: one.order),
            f"{sum(same)} of {len(same)}" if same else "",
        ]
    return "| " + " | ".join([f"`{method.name}`", method.press, method.pinned, *cells]) + " |"


def _run(method: Compared, rows: Sequence[Row]) -> str:
    found = [row.agreement for row in rows if row.agreement is not None]
    own = [row.own_score for row in rows if row.own_score is not None]
    other = [row.other_score for row in rows if row.other_score is not None]
    both = [(row.own_score, row.other_score) for row in rows]
    pairs = [(mine, yours) for mine, yours in both if mine is not None and yours is not None]
    gain = paired_difference([mine for mine, _ in pairs], [yours for _, yours in pairs]) if pairs else None
    cells = [
        _mean(found, lambda one: one.overlap) if found else "",
        percent(mean_share(own)) if own else "not here",
        percent(mean_share(other)) if other else "no answer",
        "" if gain is None else points(gain),
    ]
    return "| " + " | ".join([f"`{method.name}`", *cells]) + " |"


def _differences(agreed: Agreed) -> list[str]:
    """A line for each difference, after the methods that have it."""
    names: dict[str, list[str]] = {}
    for method in agreed.methods:
        rows = agreed.of(method, as_run=False)
        overlap = mean_known([row.agreement.overlap for row in rows if row.agreement is not None])
        words = [method.difference] if method.difference else []
        if not words and overlap is not None and overlap < ENOUGH:
            words = [f"**Unexplained**: they agree on {overlap:.0%} of what is kept."]
        errors = sorted({row.error for row in rows if row.error is not None})
        for line in [*words, *(f"kvpress gives no answer: `{error}`." for error in errors)]:
            names.setdefault(line, []).append(f"`{method.name}`")
    return [f"* {', '.join(methods)}: {line}" for line, methods in names.items()]


def _mean(found: Sequence[Agreement], value: Callable[[Agreement], float | None]) -> str:
    mean = mean_known([value(one) for one in found])
    return "" if mean is None else f"{mean:.3f}"
