"""A head with Ray's autoscaler (v2), whose machines are raylets on this one: Ray's fake multi-node provider.

``ray.cluster_utils.AutoscalingCluster`` would do the same, but the wheel of Ray 2.60 lacks the example.yaml that it
begins with; and it stops every Ray on the machine before it starts.
"""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray
from ray.autoscaler._private.fake_multi_node import node_provider

from tests.autoscaling.processes import end, start_ray, wait_for_head
from tests.cache_store.clusters import STORE_BYTES
from tests.pipeline.nodes import free_ports


@contextlib.contextmanager
def autoscaling_cluster(max_nodes: int, idle_s: float) -> Iterator[str]:
    """The address of a head without CPUs, which this process has joined, and which may have so many worker nodes of
    one CPU; each goes when it was idle for ``idle_s``."""
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # socket paths must be short
    port, client_port, agent_port = free_ports(3)
    address = f"127.0.0.1:{port}"
    config = folder / "autoscaling.json"
    config.write_text(json.dumps(_config(address, max_nodes, idle_s)))
    options = {
        "head": None,
        "block": None,
        "port": port,
        "ray-client-server-port": client_port,
        "dashboard-agent-listen-port": agent_port,
        "include-dashboard": "false",
        "num-cpus": 0,
        "object-store-memory": STORE_BYTES,
        "temp-dir": folder,
        "autoscaling-config": config,
    }
    own = {
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_FAKE_CLUSTER": "1",
        "RAY_enable_autoscaler_v2": "1",
        "RAY_CLOUD_INSTANCE_ID": node_provider.FAKE_HEAD_NODE_ID,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": node_provider.FAKE_HEAD_NODE_ID,
    }
    head = start_ray("start", options, folder / "head.log", own)
    try:
        wait_for_head(address, head, folder / "head.log")
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        yield address
    finally:
        ray.shutdown()
        end(head)
        shutil.rmtree(folder, ignore_errors=True)


def _config(address: str, max_nodes: int, idle_s: float) -> dict[str, Any]:
    worker = {"CPU": 1, "object_store_memory": STORE_BYTES}
    required = ("setup_commands", "head_setup_commands", "worker_setup_commands", "cluster_synced_files")
    return {
        "cluster_name": "foveate",
        "provider": {
            "type": "external",
            "module": f"{node_provider.__name__}.FakeMultiNodeProvider",
            "gcs_address": address,
            "head_node_id": node_provider.FAKE_HEAD_NODE_ID,
            "launch_multiple": True,
            "disable_node_updaters": True,
        },
        "max_workers": max_nodes,
        "idle_timeout_minutes": idle_s / 60,
        "head_node_type": node_provider.FAKE_HEAD_NODE_TYPE,
        "available_node_types": {
            node_provider.FAKE_HEAD_NODE_TYPE: {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "worker": {"resources": worker, "node_config": {}, "min_workers": 0, "max_workers": max_nodes},
        },
        **{key: [] for key in required},
    }
