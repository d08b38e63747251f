"""From a job's pool and a cluster's values to pods: their sizes, their templates, the specification of a RayCluster.

Invariants: no pod runs as root or may become it; no secret is written, only names of Secrets; the head offers Ray no
CPU, so that neither an engine nor the need for one lands on it; every worker group may be empty, and the engines of a
job always fit into whole pods.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from configs.kubernetes import GRACE_S, Group, Nodes, Toleration, Values
from configs.schema import RayWorkers

MODEL_CACHE = "/models"
"""Where pods mount the model cache; the image's HF_HOME and FOVEATE_CACHE lie below."""
JOB_FOLDER = "/etc/foveate"
JOB_FILE = "job.yaml"
HEAD_PORTS = {"gcs-server": 6379, "dashboard": 8265, "metrics": 8080, "as-metrics": 44217, "dash-metrics": 44227}
"""Names as KubeRay knows them; those in ``metrics`` are its own, the autoscaler's and the dashboard's."""
WORKER_PORTS = {"metrics": 8080}
_RAY_USER = {  # of the official images
    "runAsNonRoot": True,
    "runAsUser": 1000,
    "runAsGroup": 100,
    "fsGroup": 100,
    "fsGroupChangePolicy": "OnRootMismatch",  # a large model cache is not walked at every start
    "seccompProfile": {"type": "RuntimeDefault"},
}
_CONFINED = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
_STAY = {
    "cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
    "karpenter.sh/do-not-disrupt": "true",
}
"""Ray takes empty pods away itself; others must not tidy up those that work."""
_EMPTY: Mapping[str, str] = MappingProxyType({})
_GRAIN = 10_000  # Ray counts resources in ten-thousandths

Manifest = dict[str, Any]


@dataclass(frozen=True)
class Shape:
    """What one worker pod offers: whole CPUs and GPUs for ``engines`` engines."""

    cpus: int
    gpus: int
    engines: int


def shape_of(pool: RayWorkers) -> Shape:
    """The smallest pod that an engine fits into, filled with engines: with GPUs as many as share them, else as
    many as share a CPU."""
    each = pool.num_gpus or pool.num_cpus
    whole = math.ceil(each)
    engines = min(pool.workers, whole * _GRAIN // max(1, round(each * _GRAIN)))
    return Shape(math.ceil(engines * pool.num_cpus), whole if pool.num_gpus else 0, engines)


def labels(name: str, component: str) -> dict[str, str]:
    """By which policies and monitors find the pods of the job or cluster ``name``."""
    return {
        "app.kubernetes.io/part-of": "foveate",
        "app.kubernetes.io/instance": name,
        "app.kubernetes.io/component": component,
    }


def cluster_spec(name: str, pool: RayWorkers, values: Values, config_map: str | None = None) -> Manifest:
    """A RayClusterSpec with as many workers at most as ``pool`` asks for, and none at first. ``config_map``: holds the
    job file, which the head mounts."""
    return {
        "rayVersion": values.image.ray,
        "authOptions": {"mode": "token"},
        "enableInTreeAutoscaling": True,
        "autoscalerOptions": {
            "version": "v2",
            "upscalingMode": "Default",
            "idleTimeoutSeconds": values.workers.idle_seconds,
            "resources": _same({"cpu": "500m", "memory": "1Gi"}),
            "securityContext": _CONFINED,
        },
        "headGroupSpec": {
            "serviceType": "ClusterIP",
            "rayStartParams": {"num-cpus": "0", "dashboard-host": "0.0.0.0"},
            "template": _head(name, pool, values, config_map),
        },
        "workerGroupSpecs": [_group(name, group, pool, values) for group in values.workers.groups],
    }


def submitter(name: str, pool: RayWorkers, values: Values) -> Manifest:
    """The pod that hands the job to the head and follows its log. KubeRay fills in the command."""
    container = {
        "name": "submitter",
        "image": image_of(pool, values),
        "resources": _same({"cpu": "1", "memory": "1Gi"}),
        "securityContext": _CONFINED,
    }
    alone = {"restartPolicy": "Never", "automountServiceAccountToken": False}
    return {"metadata": {"labels": labels(name, "submitter")}, "spec": _pod(values, container, []) | alone}


def image_of(pool: RayWorkers, values: Values) -> str:
    """The image of all pods of a job."""
    return values.image.gpu if pool.num_gpus else values.image.cpu


def _head(name: str, pool: RayWorkers, values: Values, config_map: str | None) -> Manifest:
    size = {"cpu": str(values.head.cpus), "memory": quantity(values.head.memory)}
    container = _container("ray-head", image_of(pool, values), size, HEAD_PORTS, values)
    container["env"].append(_drain(0))  # when the head goes there is nobody to hand work back to
    volumes = _volumes(values)
    if config_map is not None:
        container["volumeMounts"].append({"name": "job", "mountPath": JOB_FOLDER, "readOnly": True})
        volumes.append({"name": "job", "configMap": {"name": config_map}})
    spec = _pod(values, container, volumes) | _placed(values.head)
    return {"metadata": {"labels": labels(name, "head"), "annotations": _STAY}, "spec": spec}


def _group(name: str, group: Group, pool: RayWorkers, values: Values) -> Manifest:
    pods = math.ceil(pool.workers / shape_of(pool).engines)
    return {
        "groupName": group.name,
        "replicas": 0,
        "minReplicas": 0,
        "maxReplicas": min(pods, group.max_pods or pods),
        "priority": group.priority,
        "rayStartParams": {},
        "template": _worker(name, group, pool, values),
    }


def _worker(name: str, group: Group, pool: RayWorkers, values: Values) -> Manifest:
    shape, gpu = shape_of(pool), values.workers.gpu
    size = {"cpu": str(shape.cpus), "memory": quantity(shape.engines * values.workers.memory)}
    if shape.gpus:
        size[gpu.resource] = str(shape.gpus)
    container = _container("ray-worker", image_of(pool, values), size, WORKER_PORTS, values)
    container["env"].append(_drain(group.grace_seconds - GRACE_S))
    spec = _pod(values, container, _volumes(values))
    spec |= _placed(group, gpu.node_selector, gpu.tolerations) if shape.gpus else _placed(group)
    spec["terminationGracePeriodSeconds"] = group.grace_seconds
    spec["automountServiceAccountToken"] = False  # workers have no business with the API server
    return {"metadata": {"labels": labels(name, "worker"), "annotations": _STAY}, "spec": spec}


def _drain(seconds: int) -> Manifest:
    """How long `ray start --block`, told to end, lets work finish on its node, which gets no new work: the node is
    announced as preempted, so that the document at work is not blamed for the loss."""
    return {"name": "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S", "value": str(seconds)}


def _container(name: str, image: str, size: dict[str, str], ports: dict[str, int], values: Values) -> Manifest:
    storage = values.storage
    container: Manifest = {
        "name": name,
        "image": image,
        "ports": [{"name": port, "containerPort": number} for port, number in ports.items()],
        "env": [{"name": key, "value": value} for key, value in storage.environment.items()],
        "resources": _same(size),
        "securityContext": _CONFINED,
        "volumeMounts": [{"name": "models", "mountPath": MODEL_CACHE}],
    }
    if storage.secrets:
        container["envFrom"] = [{"secretRef": {"name": secret}} for secret in storage.secrets]
    container["volumeMounts"] += [
        {"name": f"volume-{index}", "mountPath": volume.path, "readOnly": volume.read_only}
        for index, volume in enumerate(storage.volumes)
    ]
    return container


def _pod(values: Values, container: Manifest, volumes: list[Manifest]) -> Manifest:
    """What the specifications of all pods have in common."""
    spec: Manifest = {
        "securityContext": _RAY_USER,
        "containers": [container],
    }
    if volumes:
        spec["volumes"] = volumes
    if values.service_account is not None:
        spec["serviceAccountName"] = values.service_account
    if values.image.pull_secrets:
        spec["imagePullSecrets"] = [{"name": secret} for secret in values.image.pull_secrets]
    return spec


def _volumes(values: Values) -> list[Manifest]:
    cache = values.model_cache
    kept = {"persistentVolumeClaim": {"claimName": cache.claim}}
    models = {"emptyDir": {"sizeLimit": quantity(cache.size)}} if cache.claim is None else kept
    mounted = [
        {"name": f"volume-{index}", "persistentVolumeClaim": {"claimName": volume.claim, "readOnly": volume.read_only}}
        for index, volume in enumerate(values.storage.volumes)
    ]
    return [{"name": "models", **models}, *mounted]


def _placed(nodes: Nodes, selector: Mapping[str, str] = _EMPTY, tolerated: Sequence[Toleration] = ()) -> Manifest:
    """Where a pod may run, and before whom; ``selector`` and ``tolerated`` are added to those of ``nodes``."""
    taints = [toleration.model_dump(exclude_none=True) for toleration in (*nodes.tolerations, *tolerated)]
    placed: Manifest = {}
    if nodes.node_selector or selector:
        placed["nodeSelector"] = {**nodes.node_selector, **selector}
    if taints:
        placed["tolerations"] = taints
    if nodes.priority_class is not None:
        placed["priorityClassName"] = nodes.priority_class
    return placed


def _same(size: dict[str, str]) -> Manifest:
    """Requests and limits alike: Ray counts on what the limits say."""
    return {"requests": dict(size), "limits": dict(size)}


def quantity(num_bytes: int) -> str:
    """Bytes as Kubernetes writes them, in the largest unit that divides them."""
    for power, unit in ((4, "Ti"), (3, "Gi"), (2, "Mi"), (1, "Ki")):
        if num_bytes % 1024**power == 0:
            return f"{num_bytes // 1024**power}{unit}"
    return str(num_bytes)
