"""A job as objects of Kubernetes: its file in a ConfigMap, and a RayJob of KubeRay (v1.7, ``ray.io/v1``) that brings a
cluster along and takes it away; or a RayCluster that stays, for `foveate submit`.

Invariants: the job that runs is the one that the file says, mounted as it is; the same file and values make the same
bytes; every text that some YAML reader might take for a number, a boolean or a date is quoted.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from configs.errors import ConfigError
from configs.kubernetes import Values
from configs.schema import Job, RayWorkers
from pipeline.kubernetes_pods import JOB_FILE, JOB_FOLDER, Manifest, cluster_spec, submitter
from pipeline.kubernetes_refusals import refusals
from pipeline.submit import entrypoint

MAX_NAME = 40
"""KubeRay's limit is 47 for a RayJob; a little is left for names made from ours."""
_QUEUE = "kueue.x-k8s.io/queue-name"
_ELASTIC = "kueue.x-k8s.io/elastic-job"


def render_job(job: Job, job_file: Path, text: str, values: Values) -> list[Manifest]:
    """The ConfigMap and the RayJob that run ``job``, whose file ``job_file`` says ``text``. Raises ``ConfigError``."""
    name, pool = _accepted(job, job_file, values)
    config_map = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": _metadata(name, values),
        "data": {JOB_FILE: text},
    }
    spec: Manifest = {
        "entrypoint": entrypoint(Path(JOB_FOLDER) / JOB_FILE, ()),
        "submissionMode": values.job.submission,
        "backoffLimit": values.job.retries,
        **_ending(values),
        "rayClusterSpec": cluster_spec(name, pool, values, config_map=name),
    }
    if values.job.deadline_seconds is not None:
        spec["activeDeadlineSeconds"] = values.job.deadline_seconds
    if values.job.submission == "K8sJobMode":
        spec["submitterConfig"] = {"backoffLimit": 2}
        spec["submitterPodTemplate"] = submitter(name, pool, values)
    ray_job = {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": _queued(name, values), "spec": spec}
    return [config_map, ray_job]


def render_cluster(job: Job, job_file: Path, values: Values) -> list[Manifest]:
    """A RayCluster with room for ``job``. Raises ``ConfigError``."""
    name, pool = _accepted(job, job_file, values)
    spec = cluster_spec(name, pool, values)
    return [{"apiVersion": "ray.io/v1", "kind": "RayCluster", "metadata": _queued(name, values), "spec": spec}]


def _accepted(job: Job, job_file: Path, values: Values) -> tuple[str, RayWorkers]:
    reasons = [f"{job_file}: {reason}" for reason in refusals(job, values)]
    name = values.name or "-".join(["foveate", *re.findall(r"[a-z0-9]+", job_file.stem.lower())])
    if len(name) > MAX_NAME:
        reasons.append(
            f"{job_file}: {name!r} is too long a name; allowed: {MAX_NAME} characters, or name in the values"
        )
    if reasons:
        raise ConfigError("\n".join(reasons))
    assert isinstance(job.pool, RayWorkers), "a local pool is refused"
    return name, job.pool


def _metadata(name: str, values: Values) -> Manifest:
    own: Manifest = {"name": name}
    if values.namespace is not None:
        own["namespace"] = values.namespace
    return own | {"labels": {"app.kubernetes.io/part-of": "foveate", "app.kubernetes.io/instance": name}}


def _queued(name: str, values: Values) -> Manifest:
    """Metadata of what Kueue may have to admit. With an autoscaler it admits only jobs that say they are elastic."""
    own = _metadata(name, values)
    if values.queue is not None:
        own["labels"][_QUEUE] = values.queue
        own["annotations"] = {_ELASTIC: "true"}
    return own


def _ending(values: Values) -> Manifest:
    """What becomes of the cluster when the job has ended. Kueue knows only the older way, and KubeRay takes one of the
    two."""
    kept = values.job
    if values.queue is not None:
        return {"shutdownAfterJobFinishes": True, "ttlSecondsAfterFinished": kept.keep_succeeded_seconds}
    ended = [
        {"jobStatus": "SUCCEEDED", "ttlSeconds": kept.keep_succeeded_seconds},
        {"jobStatus": "FAILED", "ttlSeconds": kept.keep_failed_seconds},
        {"jobDeploymentStatus": "Failed", "ttlSeconds": kept.keep_failed_seconds},  # it never began, or took too long
    ]
    rules = [{"policy": "DeleteCluster", "condition": condition} for condition in ended]
    return {"shutdownAfterJobFinishes": False, "deletionStrategy": {"deletionRules": rules}}


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


def _scalar(dumper: _Dumper, text: str) -> yaml.Node:
    """PyYAML quotes what YAML 1.1 would misread; Go's reader knows more numbers, each beginning with one of these."""
    style = "|" if "\n" in text else '"' if text[:1] in "0123456789+-." else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _scalar)


def as_yaml(manifests: list[Manifest], origin: str) -> str:
    """The file that `kubectl apply` takes. ``origin``: the command that made it, for its first line."""
    documents = [yaml.dump(each, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120) for each in manifests]
    return f"# Made by `{origin}`; change the job or the values and make it again.\n" + "---\n".join(documents)
