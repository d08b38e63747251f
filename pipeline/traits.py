"""What a pool may know of a task without knowing what it means."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from workers.messages import Ask, Encode


@dataclass(frozen=True)
class Traits:
    """``num_pieces``: chunks to read or questions to answer, each of which may take as long as any other. ``leaves``:
    the name under which a task leaves something in the store where it was done (one piece each). ``near``: how many
    pieces of which name a task will fetch, so that it is best done where those lie."""

    num_pieces: int = 1
    leaves: str | None = None
    near: Mapping[str, int] = field(default_factory=dict)


PLAIN = Traits()
"""Of a task that is like any other."""


def traits_of(task: Encode | Ask) -> Traits:
    """A chunk leaves kept pairs under its document's name; a question over kept pairs fetches its document's."""
    if isinstance(task, Encode):
        return Traits(len(task.chunks), leaves=task.document)
    near: Counter[str] = Counter()
    for query in task.queries:
        if query.sources:
            near[query.document] += len(query.sources)
    return Traits(len(task.queries), near=near)
