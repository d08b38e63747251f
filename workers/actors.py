"""The engine as a Ray actor: a plain class, and the same class as ``ray.remote``.

Invariant: an actor never restarts by itself and never retries a task; the pool that owns it decides both.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import ray
import torch

from cache_store.store import TieredStore
from workers import logs
from workers.border import Works, attempt
from workers.metrics import StoreTeller
from workers.ray_metrics import RayMeter


class Place(NamedTuple):
    """Where an actor runs."""

    node_id: str
    process_id: int


@runtime_checkable
class HasStore(Protocol):
    """An engine that keeps what it reads."""

    store: TieredStore


class EngineHost:
    """One engine in a process of its own. Its methods run one after another, ``load`` before all that need it."""

    def __init__(self, make_engine: Callable[[], Works[Any, Any]], num_threads: int) -> None:
        torch.set_num_threads(num_threads)
        logs.known(engine=f"{ray.get_runtime_context().get_node_id()[:8]}/{os.getpid()}")
        logs.speak()
        self._make_engine = make_engine
        self._teller: StoreTeller | None = None

    def place(self) -> Place:
        """Where this is; answers as soon as it is somewhere."""
        return Place(ray.get_runtime_context().get_node_id(), os.getpid())

    def load(self) -> None:
        """Make the engine, which loads the model. Raises as ``make_engine`` does."""
        self._engine = self._make_engine()
        if isinstance(self._engine, HasStore):
            store = self._engine.store
            self._teller = StoreTeller(RayMeter(), lambda: store.counters)

    def attempt(self, task: Any) -> Any:
        """Do one task: a result, or a ``WorkError``."""
        result = attempt(self._engine, task)
        if self._teller is not None:
            self._teller.tell_sometimes()
        return result

    def free(self, keys: Sequence[str]) -> None:
        """Drop store entries."""
        self._engine.free(keys)

    def close(self) -> None:
        """Finish what goes on behind tasks."""
        self._engine.close()
        if self._teller is not None:
            self._teller.tell()


EngineActor = ray.remote(max_restarts=0, max_task_retries=0)(EngineHost)
