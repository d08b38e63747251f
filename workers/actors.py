"""The engine as a Ray actor: a plain class, and the same class as ``ray.remote``.

Invariant: an actor never restarts by itself and never retries a task; the pool that owns it decides both.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import ray
import torch

from workers.border import Works, attempt


class Place(NamedTuple):
    """Where an actor runs."""

    node_id: str
    process_id: int


class EngineHost:
    """One engine in a process of its own. Its methods run one after another, ``load`` before all that need it."""

    def __init__(self, make_engine: Callable[[], Works[Any, Any]], num_threads: int) -> None:
        torch.set_num_threads(num_threads)
        self._make_engine = make_engine

    def place(self) -> Place:
        """Where this is; answers as soon as it is somewhere."""
        return Place(ray.get_runtime_context().get_node_id(), os.getpid())

    def load(self) -> None:
        """Make the engine, which loads the model. Raises as ``make_engine`` does."""
        self._engine = self._make_engine()

    def attempt(self, task: Any) -> Any:
        """Do one task: a result, or a ``WorkError``."""
        return attempt(self._engine, task)

    def free(self, keys: Sequence[str]) -> None:
        """Drop store entries."""
        self._engine.free(keys)

    def close(self) -> None:
        """Finish what goes on behind tasks."""
        self._engine.close()


EngineActor = ray.remote(max_restarts=0, max_task_retries=0)(EngineHost)
