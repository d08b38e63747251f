"""Who is tried on an item, and what each found in it.

Shapes: L layers, G key-value heads.
"""

from __future__ import annotations

from dataclasses import dataclass

from configs.evaluation import Method
from configs.schema import Job
from workers.engine import Engine
from workers.messages import Interval, Query


@dataclass(frozen=True)
class Contender:
    """A method at a budget, as a job. ``budget``: None for a method that reads everything."""

    method: Method
    budget: int | None
    job: Job


@dataclass(frozen=True)
class Found:
    """What a contender keeps of an item, ready to be answered by ``engine``. ``kept``: intervals of the document in
    tokens, one entry per layer and kv head or one for all, none where the answer is given over something else than
    the document; ``kept_bytes``: of kept pairs, None where text is kept; ``seconds_read``: until here, None where the
    reading was shared and nobody can say what was whose."""

    contender: Contender
    query: Query
    kept: tuple[tuple[Interval, ...], ...]
    engine: Engine
    seconds_read: float | None
    relevance_kept: float | None = None
    kept_bytes: int | None = None
