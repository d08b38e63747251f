"""Why a job cannot run on a Kubernetes cluster as that cluster's values describe it, found before anything is applied.

Invariant: every refusal names a key of the job, its value and what is allowed; what passes names no place of this
machine.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Iterator
from pathlib import Path

from configs.kubernetes import Values
from configs.schema import Corpus, FilesTier, Job, Model, ObjectsTier, RayWorkers
from pipeline.objects import SCHEMES, is_url, local_path


def refusals(job: Job, values: Values) -> Iterator[str]:
    """One line for each key of ``job`` that cannot be what it is."""
    if job.pool.kind == "local":
        yield "pool.kind: local is one process on one machine; allowed on Kubernetes: ray"
    else:
        yield from _pool(job.pool)
        yield from _device(job.model, job.pool)
    for key, path in _read_paths(job.corpus):
        yield from _place(key, path, values, writes=False)
    yield from _place("output.path", job.output.path, values, writes=True)
    for index, tier in enumerate(job.store.tiers):
        if isinstance(tier, FilesTier):
            yield from _place(f"store.tiers[{index}].path", tier.path, values, writes=True)
        elif isinstance(tier, ObjectsTier):
            yield from _place(f"store.tiers[{index}].url", tier.url, values, writes=True)
    yield from _model_files(job, values)


def _pool(pool: RayWorkers) -> Iterator[str]:
    if pool.address != "auto":
        yield f"pool.address: {pool.address}; allowed on Kubernetes: auto, the cluster that the job brings"


def _device(model: Model, pool: RayWorkers) -> Iterator[str]:
    if model.device.startswith("cuda") and pool.num_gpus == 0:
        yield f"model.device: {model.device}: pods have no GPU with pool.num_gpus: 0; allowed: 1, or a fraction"


def _read_paths(corpus: Corpus) -> Iterable[tuple[str, str]]:
    if isinstance(corpus.path, str):
        return [("corpus.path", corpus.path)]
    return [(f"corpus.path[{index}]", path) for index, path in enumerate(corpus.path)]


def _model_files(job: Job, values: Values) -> Iterator[str]:
    """Files that a job names beside its data; a hub id, ``auto`` and ``package:`` are no files."""
    source = job.model.source
    local = source.startswith(("/", ".", "~")) or source.endswith(".gguf") or Path(source).exists()
    if local and not source.startswith("package:"):
        yield from _place("model.source", source, values, writes=False, urls=False)
    named = {
        "model.profile": job.model.profile,
        "keep.scorer.file": getattr(job.keep.scorer, "file", "auto"),
        "keep.budget.map": getattr(job.keep.budget, "map", "auto"),
        "read.pruning.file": getattr(job.read.pruning, "file", "auto"),
    }
    for key, path in named.items():
        if path != "auto":
            yield from _place(key, path, values, writes=False, urls=False)


def _place(key: str, path: str, values: Values, *, writes: bool, urls: bool = True) -> Iterator[str]:
    """Why pods do not find ``path``, or may not write there."""
    if urls and is_url(path):
        yield from _url(key, path, values.storage.bucket)
        return
    local = str(local_path(path)) if path.startswith("file://") else path
    mounts = ", ".join(volume.path for volume in values.storage.volumes) or "none in storage.volumes"
    allowed = f"allowed: {'a URL, or ' if urls else ''}an absolute path on a mounted volume ({mounts})"
    if not local.startswith("/"):
        yield f"{key}: {path} is a path of this machine; {allowed}"
        return
    volume = next((volume for volume in values.storage.volumes if volume.holds(posixpath.normpath(local))), None)
    if volume is None:
        yield f"{key}: {path} is not on a volume that pods mount; {allowed}"
    elif writes and volume.read_only:
        yield f"{key}: {path} lies on {volume.path}, which is mounted read-only; {allowed}"


def _url(key: str, url: str, bucket: str | None) -> Iterator[str]:
    schemes = [scheme for scheme in SCHEMES if scheme != "memory"]
    if url.partition("://")[0] not in schemes:
        yield f"{key}: {url} is no object storage that pods can reach; allowed: {', '.join(schemes)}"
    elif bucket is not None and not f"{url.rstrip('/')}/".startswith(f"{bucket.rstrip('/')}/"):
        yield f"{key}: {url} is outside storage.bucket: {bucket}; allowed: URLs below it, or storage.bucket: null"
