"""What a Kubernetes cluster says once for all jobs that run on it: images, storage, sizes, queues.

What one job needs (engines, CPUs and GPUs of each, paths) stands in the job and is not repeated here; an example is
deploy/values.yaml. Invariants: as in ``schema``, models are closed and frozen and defaults are written here only.
Imports neither torch nor ray.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import Annotated, Literal

from pydantic import ByteSize, Field, model_validator

from configs.closed import Closed, Conflict, Impossible, Natural, Positive
from configs.schema import Bytes

Text = Annotated[str, Field(min_length=1)]
_LABEL = "1 to 40 small letters, digits or '-', the first a letter, the last not '-'"
Label = Annotated[str, Field(max_length=40, pattern=r"^[a-z]([a-z0-9-]*[a-z0-9])?$", description=_LABEL)]
OptionalLabel = Annotated[Label | None, Field(description=f"{_LABEL}; null")]
Bucket = Annotated[str, Field(pattern=r"^[a-z0-9]+://[^/]")]
Words = Annotated[dict[str, str], Field(description="a mapping of names to strings")]
GRACE_S = 10
"""What is left of a pod's grace, after its engines had theirs, to end processes and unmount."""
_TAKEN = ("head", "headgroup")


class Image(Closed):
    """What pods run: ``gpu`` for jobs whose engines have GPUs, else ``cpu``, on all pods of a job alike. ``ray``: the
    version of Ray in both. ``pull_secrets``: names of Secrets with which they are pulled."""

    cpu: Text
    gpu: Text
    ray: Annotated[str, Field(pattern=r"^\d+\.\d+\.\d+$", description="a version, such as 2.60.0")]
    pull_secrets: tuple[Text, ...] = ()


class Volume(Closed):
    """A PersistentVolumeClaim that every pod mounts at ``path``."""

    claim: Text
    path: Annotated[str, Field(pattern=r"^/[^/]", description="an absolute path")]
    read_only: bool = False

    def holds(self, path: str) -> bool:
        """Whether ``path`` (absolute, without ``..``) lies on it."""
        return PurePosixPath(path).is_relative_to(self.path)


class Storage(Closed):
    """Where corpora, answers and stores may lie. ``bucket``: the URL below which every URL of a job must lie; none:
    anywhere. ``environment`` and the keys of the Secrets named in ``secrets`` become environment variables of every
    pod: regions, endpoints, credentials."""

    bucket: Annotated[Bucket | None, Field(description="a URL, such as s3://bucket; null")] = None
    environment: Words = Field(default_factory=dict)
    secrets: tuple[Text, ...] = ()
    volumes: tuple[Volume, ...] = ()


class ModelCache(Closed):
    """Weights, converted and calibrated models. ``claim``: a PersistentVolumeClaim that all pods share; none: each pod
    has its own, which goes with it, of at most ``size``."""

    claim: Text | None = None
    size: Bytes = ByteSize(20 * 2**30)


class Toleration(Closed):
    """A taint that pods accept, as Kubernetes writes it."""

    key: Text
    operator: Literal["Exists", "Equal"] = "Exists"
    value: str | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None


class Nodes(Closed):
    """On which machines pods may run. ``priority_class``: a PriorityClass of the cluster."""

    node_selector: Words = Field(default_factory=dict)
    tolerations: tuple[Toleration, ...] = ()
    priority_class: Text | None = None


class Head(Nodes):
    """The pod with Ray's head and the driver, which tokenizes and commits; no engine runs there."""

    cpus: Positive = 2
    memory: Bytes = ByteSize(8 * 2**30)


class Group(Nodes):
    """Worker pods of one kind. ``priority``: of the groups that can serve a need the highest grows first, those that
    lately got no machine last. ``grace_seconds``: from the notice that a pod must go to its end; engines have
    all but the last ten. ``max_pods``: none: as many as the job has use for."""

    name: Label
    priority: Natural = 0
    grace_seconds: Annotated[int, Field(ge=GRACE_S + 5)] = 60
    max_pods: Positive | None = None


class Gpu(Closed):
    """What pods with GPUs need beside them. ``resource``: as the cluster's device plugin calls a GPU."""

    resource: Annotated[str, Field(pattern=r"gpu$", description="a resource whose name ends in gpu")] = "nvidia.com/gpu"
    node_selector: Words = Field(default_factory=dict)
    tolerations: tuple[Toleration, ...] = (Toleration(key="nvidia.com/gpu", effect="NoSchedule"),)


class Workers(Closed):
    """The pods with engines. ``memory``: of one engine, its object store included. ``idle_seconds``: after which a pod
    without work is given back."""

    groups: Annotated[tuple[Group, ...], Field(min_length=1)]
    memory: Bytes = ByteSize(8 * 2**30)
    idle_seconds: Positive = 60
    gpu: Gpu = Gpu()


class Lifecycle(Closed):
    """How a job is submitted, tried again and cleared away. ``retries``: new clusters after one that failed; each goes
    on from the committed parts. ``deadline_seconds``: of all attempts together. The cluster of a job that ended is kept
    for ``keep_succeeded_seconds`` or ``keep_failed_seconds``, to look at; in a queue, whose quota it holds, for the
    first of them however it ended."""

    submission: Literal["K8sJobMode", "SidecarMode", "HTTPMode"] = "K8sJobMode"
    retries: Natural = 2
    deadline_seconds: Positive | None = None
    keep_succeeded_seconds: Natural = 60
    keep_failed_seconds: Natural = 3600


class Values(Closed):
    """One Kubernetes cluster, as a YAML file says it. ``name``: of the objects made; none: ``foveate-`` and the job
    file's. ``namespace``: none: that of `kubectl`. ``service_account``: of all pods, and must exist; none: KubeRay
    makes one for the head. ``queue``: a LocalQueue of Kueue."""

    name: OptionalLabel = None
    namespace: OptionalLabel = None
    image: Image
    storage: Storage = Storage()
    model_cache: ModelCache = ModelCache()
    service_account: Text | None = None
    queue: Text | None = None
    head: Head = Head()
    workers: Workers
    job: Lifecycle = Lifecycle()

    @model_validator(mode="after")
    def _possible(self) -> Values:
        """Refuse what no cluster takes; each message names the keys to change."""
        conflicts = [*_name_conflicts(self.workers.groups), *_volume_conflicts(self.storage.volumes)]
        if conflicts:
            raise Impossible(conflicts)
        return self


def _name_conflicts(groups: tuple[Group, ...]) -> Iterable[Conflict]:
    names = [group.name for group in groups]
    for index, name in enumerate(names):
        key = f"workers.groups[{index}].name"
        if name in _TAKEN:
            yield Conflict((key,), f"{key}: {name!r} is the head's own; allowed: other names")
        if name in names[:index]:
            first = f"workers.groups[{names.index(name)}]"
            yield Conflict((key,), f"{key}: {name!r} is already the name of {first}; allowed: unique names")


def _volume_conflicts(volumes: tuple[Volume, ...]) -> Iterable[Conflict]:
    paths = [volume.path for volume in volumes]
    for index, path in enumerate(paths):
        if path in paths[:index]:
            key = f"storage.volumes[{index}].path"
            first = f"storage.volumes[{paths.index(path)}]"
            yield Conflict((key,), f"{key}: {path!r} is already the path of {first}; allowed: unique paths")
