"""Small Ray clusters for tests, with nothing left behind. Their socket paths must be short."""

from __future__ import annotations

import contextlib
import logging
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster

from cache_store.tiers.object_store import open_ledger

STORE_BYTES = 100 * 2**20
"""Of each node: about the least that Ray allows."""


@contextlib.contextmanager
def ray_cluster(**head: Any) -> Iterator[Cluster]:
    """A cluster of one node with one CPU, which this process joins. ``head``: further settings of that node."""
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.delenv("RAY_ADDRESS", raising=False)
        cluster = Cluster()
        try:
            settings: dict[str, Any] = {
                "num_cpus": 1,
                "object_store_memory": STORE_BYTES,
                "include_dashboard": False,
                **head,
            }
            cluster.add_node(temp_dir=folder, **settings)
            ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
            yield cluster
        finally:
            ray.shutdown()
            cluster.shutdown()  # type: ignore[no-untyped-call]
            shutil.rmtree(folder, ignore_errors=True)


_shared = contextlib.ExitStack()


def join_shared_cluster() -> None:
    """Start a cluster, with a ledger that stays, unless this process has joined one."""
    if not ray.is_initialized():
        _shared.enter_context(ray_cluster())
        ledger = open_ledger()
        _shared.callback(lambda: ray.kill(ledger))


def leave_shared_cluster() -> None:
    """Stop what ``join_shared_cluster`` started."""
    _shared.close()
