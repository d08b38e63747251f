"""What becomes of nodes over time, and what keeps those that stay."""

from __future__ import annotations

import threading
from collections.abc import Callable, Set
from types import TracebackType
from typing import Any, Self

import ray
from ray._private.internal_api import get_state_from_address, memory_summary
from ray.autoscaler.v2.sdk import get_cluster_status
from ray.autoscaler.v2.utils import ClusterStatusFormatter

OBJECTS = "Resource: object_store_memory currently in use."
ACTORS = "Busy workers on node."
"""Why Ray says that a node is not idle."""
_HEAD = "node:__internal_head__"


class Watch:
    """A thread that looks ten times a second which nodes there are. ``history``: their number, without repetitions;
    ``seen``: all that ever were. Does not outlive its context."""

    def __init__(self, look: Callable[[], Set[str]]) -> None:
        self._look = look
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.history: list[int] = [len(look())]
        self.seen: set[str] = set()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.1):
            nodes = self._look()
            self.seen |= nodes
            if len(nodes) != self.history[-1]:
                self.history.append(len(nodes))


def worker_nodes() -> set[str]:
    """Ids of the nodes that are alive, without the head's. This process is part of the cluster."""
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return {node["NodeID"] for node in nodes if node["Alive"] and _HEAD not in node["Resources"]}


def activities(address: str) -> dict[str, set[str]]:
    """Why each living node is not idle, by node id."""
    status = get_cluster_status(address)
    return {str(node.node_id): set(node.node_activity or ()) for node in status.active_nodes}


def what_holds_nodes(address: str) -> str:
    """For the message of a failed test: what Ray's autoscaler sees, the living actors, the references to objects."""
    state = get_state_from_address(address)  # type: ignore[no-untyped-call]
    actors = "\n".join(
        f"{actor['ActorClassName']} {actor['Name']} on {actor['Address']['NodeID']} ({actor['State']})"
        for actor in state.actor_table(None).values()
        if actor["State"] != "DEAD"
    )
    status: str = ClusterStatusFormatter.format(get_cluster_status(address), verbose=True)
    return f"{status}\n\nLiving actors:\n{actors}\n\n{memory_summary(address)}"  # type: ignore[no-untyped-call]
