"""What KubeRay's operator and the machines' kubelets do: pods as a RayCluster asks for them, each a raylet here.

A pod's process has what the operator reads from the pod's group: CPUs and memory from the container's limits, the
start parameters, the container's variables, and the names by which the autoscaler knows it. What cannot be had without
containers is left out: image, volumes, users, node selectors; the same ports in every pod; the dashboard, and with it
the address it would listen on; the token (``authOptions``), which would need KubeRay's Secret.

Invariants: a pod that works is taken away only if the autoscaler named it, and gets its grace; one whose process ended
is replaced; no process outlives its scope.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from subprocess import Popen

from pipeline.kubernetes_pods import Manifest
from tests.autoscaling.kubernetes_api import KubernetesApi
from tests.autoscaling.processes import end, start_ray, wait_for_head
from tests.cache_store.clusters import STORE_BYTES
from tests.pipeline.nodes import free_ports

HEAD_GROUP = "headgroup"
_STEP_S = 0.2
_UNITS = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


@dataclass(eq=False)
class _Process:
    """``killed_at_s``: when the grace of one that was told to end is over."""

    process: Popen[bytes]
    grace_s: float
    killed_at_s: float | None = None


class Pods:
    """The pods of the RayCluster in ``api``, and their processes. ``folder``: for Ray and for logs."""

    def __init__(self, api: KubernetesApi, folder: Path) -> None:
        self._api, self._folder = api, folder
        port, client_port, agent_port = free_ports(3)
        self.address = f"127.0.0.1:{port}"
        """Where the head is."""
        self.head = f"{api.name}-head"
        """The name of its pod."""
        self._ports = {
            "port": port,
            "ray-client-server-port": client_port,
            "dashboard-agent-listen-port": agent_port,
        }
        self._processes: dict[str, _Process] = {}
        self._numbers = itertools.count()
        self._over = threading.Event()
        self._failure: Exception | None = None

    def workers(self) -> set[str]:
        """Names of the worker pods."""
        with self._api.lock:
            return self._api.pods.keys() - {self.head}

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """A head pod, and worker pods as they are asked for."""
        thread = threading.Thread(target=self._reconcile_for_ever, daemon=True)
        try:
            self._create(self.head, HEAD_GROUP, self._api.cluster["spec"]["headGroupSpec"])
            wait_for_head(self.address, self._processes[self.head].process, self._folder / f"{self.head}.log")
            thread.start()
            yield
        finally:
            self._over.set()
            if thread.ident is not None:
                thread.join()
            for pod in self._processes.values():
                end(pod.process)
        if self._failure is not None:
            raise self._failure

    def logs(self) -> str:
        """What all pods wrote, those that are gone too, and what became of who makes them."""
        failure = f"no more pods are made: {self._failure!r}\n" if self._failure else ""
        return failure + "\n".join(
            f"--- {log.name}\n{log.read_text()[-2000:]}" for log in sorted(self._folder.glob("*.log"))
        )

    def _reconcile_for_ever(self) -> None:
        try:
            while not self._over.wait(_STEP_S):
                with self._api.lock:
                    self._remove_ended()
                    for group in self._api.cluster["spec"]["workerGroupSpecs"]:
                        self._reconcile(group)
        except Exception as error:  # this thread's border: the test that made it must not wait for nothing
            self._failure = error

    def _reconcile(self, group: Manifest) -> None:
        for name in group.get("scaleStrategy", {}).get("workersToDelete", ()):
            if name in self._processes and self._processes[name].killed_at_s is None:
                self._delete(name)
        names = [
            name
            for name, pod in self._api.pods.items()
            if pod["metadata"]["labels"]["ray.io/group"] == group["groupName"]
            and "deletionTimestamp" not in pod["metadata"]
        ]
        for _ in range(group["replicas"] - len(names)):
            self._create(f"{self._api.name}-{group['groupName']}-{next(self._numbers)}", group["groupName"], group)

    def _create(self, name: str, group: str, spec: Manifest) -> None:
        kind = "head" if name == self.head else "worker"
        pod = {"apiVersion": "v1", "kind": "Pod"} | copy.deepcopy(spec["template"])
        pod["metadata"]["name"] = name
        pod["metadata"]["labels"] |= {
            "ray.io/cluster": self._api.name,
            "ray.io/node-type": kind,
            "ray.io/group": group,
        }
        pod["status"] = {"phase": "Running", "containerStatuses": [{"name": f"ray-{kind}", "state": {"running": {}}}]}
        [container] = pod["spec"]["containers"]
        variables = {variable["name"]: variable["value"] for variable in container["env"]}
        variables |= {
            "RAY_CLOUD_INSTANCE_ID": name,
            "RAY_NODE_TYPE_NAME": group,
            "RAY_enable_autoscaler_v2": "1",  # autoscalerOptions.version
        }
        options = {**_limits(container), **spec["rayStartParams"], **self._where(kind)}
        options.pop("dashboard-host", None)
        process = start_ray("start", options, self._folder / f"{name}.log", variables)
        self._processes[name] = _Process(process, pod["spec"].get("terminationGracePeriodSeconds", 30))
        self._api.pods[name] = pod
        self._api.changed(pod)

    def _where(self, kind: str) -> dict[str, object]:
        shared: dict[str, object] = {"block": None, "object-store-memory": STORE_BYTES, "temp-dir": self._folder}
        if kind == "worker":
            return shared | {"address": self.address, "dashboard-agent-listen-port": 0}
        return shared | {"head": None, "no-monitor": None, "include-dashboard": "false"} | self._ports

    def _delete(self, name: str) -> None:
        pod, process = self._api.pods[name], self._processes[name]
        pod["metadata"]["deletionTimestamp"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        self._api.changed(pod)
        process.killed_at_s = time.monotonic() + process.grace_s
        process.process.send_signal(signal.SIGTERM)

    def _remove_ended(self) -> None:
        """Pods that were told to end and did, or had their grace; and those that ended by themselves: others take
        their place."""
        for name, own in list(self._processes.items()):
            overdue = own.killed_at_s is not None and time.monotonic() > own.killed_at_s
            if overdue or own.process.poll() is not None:
                assert name != self.head, f"the head ended with {own.process.returncode}"
                end(own.process)
                del self._processes[name], self._api.pods[name]


def _limits(container: Manifest) -> dict[str, object]:
    """What the operator makes of a container's limits."""
    limits = container["resources"]["limits"]
    number, unit = limits["memory"][:-2], limits["memory"][-2:]
    return {"num-cpus": limits["cpu"], "memory": int(number) * _UNITS[unit]}
