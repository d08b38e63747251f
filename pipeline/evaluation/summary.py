"""Results by task, length, budget and method: what a table's row and a plot's point are.

Invariants: nothing is averaged over tasks, lengths or budgets; a method without a budget stands beside the others at
every budget; differences are taken over the items that both methods have.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from pipeline.evaluation.metrics import Estimate, mean_share, paired_difference
from pipeline.evaluation.results import Result


class Place(NamedTuple):
    """Where methods are compared. ``budget``: tokens; None where no method has one."""

    task: str
    length: int
    budget: int | None

    def __str__(self) -> str:
        budget = "" if self.budget is None else f", budget {self.budget:,}"
        return f"{self.task} at {self.length:,} tokens{budget}"


@dataclass(frozen=True)
class Cell:
    """What one method made of the items of one place, in the items' order; ``default`` made ``rivals`` of them."""

    results: tuple[Result, ...]
    rivals: tuple[Result, ...]

    @property
    def score(self) -> Estimate:
        """Mean score; items without an answer score 0."""
        return mean_share([result.score for result in self.results])

    @property
    def recall(self) -> Estimate | None:
        """Mean recall of gold passages, where any item has it."""
        known = self._known(lambda result: result.recall)
        return mean_share(known) if known else None

    @property
    def gain(self) -> Estimate | None:
        """Score beyond the default's, item by item; None without an item in common, or where the default was refused.
        An item without an answer scores 0 here too, so that nobody gains by failing."""
        return self._beyond(lambda result: result.score)

    @property
    def recall_gain(self) -> Estimate | None:
        """Gold passages kept beyond the default's, over the items where both are known."""
        return self._beyond(lambda result: result.recall)

    @property
    def errors(self) -> tuple[str, ...]:
        """Why items have no answer, one reason for each such item."""
        return tuple(result.error for result in self.results if result.error is not None)

    @property
    def is_refused(self) -> bool:
        """Whether no item has an answer."""
        return len(self.errors) == len(self.results)

    def _beyond(self, value: Callable[[Result], float | None]) -> Estimate | None:
        if all(result.error is not None for result in self.rivals):
            return None
        theirs = {result.item: value(result) for result in self.rivals}
        pairs = [(value(result), theirs.get(result.item)) for result in self.results]
        known = [(own, other) for own, other in pairs if own is not None and other is not None]
        return paired_difference([own for own, _ in known], [other for _, other in known]) if known else None

    def median(self, value: Callable[[Result], float | None]) -> float | None:
        """Median over the items that have the value, for seconds, which other work on the machine may stretch."""
        known = self._known(value)
        return statistics.median(known) if known else None

    def mean(self, value: Callable[[Result], float | None]) -> float | None:
        """Mean over the items that have the value; None where none has."""
        known = self._known(value)
        return sum(known) / len(known) if known else None

    def _known(self, value: Callable[[Result], float | None]) -> list[float]:
        return [found for result in self.results if (found := value(result)) is not None]


class Summary:
    """All results of an evaluation. Methods, tasks in the order of their first row; lengths, budgets by size."""

    def __init__(self, results: Iterable[Result], default: str) -> None:
        """``default``: the method that the others are compared with. Raises ``ValueError`` if it has no row."""
        rows = list(results)
        self.default = default
        self.methods = tuple(dict.fromkeys(row.method for row in rows))
        self.tasks = tuple(dict.fromkeys(row.task for row in rows))
        self.lengths = tuple(sorted({row.length for row in rows}))
        self.budgets: tuple[int | None, ...] = tuple(sorted({r.budget for r in rows if r.budget is not None})) or (
            None,
        )
        if default not in self.methods:
            raise ValueError(f"method {default!r} has no results; there are: {', '.join(self.methods) or 'none'}")
        self._rows: dict[tuple[Place, str], list[Result]] = {}
        for row in rows:
            for budget in self.budgets if row.budget is None else (row.budget,):
                self._rows.setdefault((Place(row.task, row.length, budget), row.method), []).append(row)
        for (place, method), found in self._rows.items():
            if len({row.item for row in found}) < len(found):
                raise ValueError(f"{method}: {place}: an item has two results; allowed: one for each budget")
            found.sort(key=lambda row: row.item)

    def cell(self, place: Place, method: str) -> Cell | None:
        """What a method made of a place; None where it has no rows."""
        found = self._rows.get((place, method))
        return Cell(tuple(found), tuple(self._rows.get((place, self.default), ()))) if found else None

    def row(self, place: Place, methods: Sequence[str] | None = None) -> Iterator[tuple[str, Cell]]:
        """The methods that have results there, in their order."""
        for method in self.methods if methods is None else methods:
            if (cell := self.cell(place, method)) is not None:
                yield method, cell

    def items(self, task: str, length: int) -> int:
        """How many items there are, by the method that was tried on most."""
        cells = (cell for budget in self.budgets for _, cell in self.row(Place(task, length, budget)))
        return max((len(cell.results) for cell in cells), default=0)

    @property
    def places(self) -> tuple[Place, ...]:
        """Every place that has results: by task, then length, then budget."""
        places = (Place(t, n, b) for t in self.tasks for n in self.lengths for b in self.budgets)
        return tuple(place for place in places if any(True for _ in self.row(place)))
