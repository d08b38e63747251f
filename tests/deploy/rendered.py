"""Jobs and values of many kinds, rendered."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from configs.kubernetes import Values
from configs.load import load_job, load_values
from configs.schema import Job
from pipeline.kubernetes import render_cluster, render_job
from pipeline.kubernetes_pods import Manifest

ROOT = Path(__file__).parents[2]
JOB = ROOT / "configs" / "kubernetes.yaml"
VALUES = ROOT / "deploy" / "values.yaml"

VARIANTS: dict[str, dict[str, Any]] = {
    "as shipped": {},
    "queue": {"queue": "documents"},
    "sidecar": {"job": {"submission": "SidecarMode"}},
    "http": {"job": {"submission": "HTTPMode", "deadline_seconds": 86_400, "retries": 0}},
    "identities": {"service_account": "foveate", "storage": {}, "namespace": "documents", "name": "nightly"},
    "volumes": {
        "storage": {
            "volumes": [
                {"claim": "documents", "path": "/mnt/documents", "read_only": True},
                {"claim": "answers", "path": "/mnt/answers"},
            ]
        },
        "model_cache": {"claim": "models"},
        "image": {"cpu": "a:1", "gpu": "b:1", "ray": "2.60.0", "pull_secrets": ["registry"]},
    },
    "one group": {"workers": {"groups": [{"name": "all", "priority_class": "low"}]}},
}
"""What differs from deploy/values.yaml, whole sections at a time."""
POOLS = ["workers: 16, num_cpus: 4, num_gpus: 1", "workers: 5, num_gpus: 0.25", "workers: 3, num_cpus: 0.5"]


def job(*settings: str) -> Job:
    return load_job(JOB, settings)


def job_on(pool: str) -> Job:
    """The example on another pool, on a CPU where that has no GPUs."""
    device = "auto" if "num_gpus" not in pool else "cuda"
    return job(f"pool={{kind: ray, {pool}}}", f"model.device={device}")


def values(**changes: Any) -> Values:
    """deploy/values.yaml with whole sections replaced."""
    return Values.model_validate(load_values(VALUES).model_dump() | changes)


def ray_job(job: Job | None = None, values_: Values | None = None) -> Manifest:
    return render_job(job or load_job(JOB), JOB, "text", values_ or values())[1]


def ray_cluster(job: Job | None = None, values_: Values | None = None) -> Manifest:
    return render_cluster(job or load_job(JOB), JOB, values_ or values())[0]


def templates(cluster: Manifest) -> dict[str, Manifest]:
    """The pod templates of a RayClusterSpec by group; the head's is ``head``."""
    groups = {group["groupName"]: group["template"] for group in cluster["workerGroupSpecs"]}
    return {"head": cluster["headGroupSpec"]["template"], **groups}
