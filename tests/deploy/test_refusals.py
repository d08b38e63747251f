"""What cannot run on Kubernetes is refused before it gets there, by the key that is to blame."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from configs.errors import ConfigError
from configs.kubernetes import Values
from configs.load import load_job, load_values
from configs.text import dump
from pipeline.kubernetes import render_cluster, render_job
from tests.deploy.rendered import JOB, VALUES, VARIANTS, job, values

VOLUMES = values(**VARIANTS["volumes"])
ON_VOLUMES = ("corpus.path=/mnt/documents/*.parquet", "output.path=/mnt/answers/new")
BAD_JOBS = [
    ("pool={kind: local}", "pool.kind: local is one process on one machine; allowed on Kubernetes: ray"),
    ("pool.address=head:6379", "pool.address: head:6379; allowed on Kubernetes: auto"),
    ("pool.num_gpus=0", "model.device: cuda: pods have no GPU with pool.num_gpus: 0; allowed: 1"),
    ("corpus.path=corpus/*.parquet", "corpus.path: corpus/*.parquet is a path of this machine; allowed: a URL, or an"),
    ("corpus.path=~/c", "corpus.path: ~/c is a path of this machine"),
    ("corpus.path=[s3://example-documents/a, b]", "corpus.path[1]: b is a path of this machine"),
    ("corpus.path=/data/c", "corpus.path: /data/c is not on a volume that pods mount; allowed: a URL, or"),
    ("corpus.path=file:///data/c", "corpus.path: file:///data/c is not on a volume"),
    ("corpus.path=memory://c", "corpus.path: memory://c is no object storage that pods can reach; allowed: s3,"),
    ("corpus.path=hdfs://c/d", "corpus.path: hdfs://c/d is no object storage that pods can reach"),
    ("output.path=answers", "output.path: answers is a path of this machine"),
    ("output.path=s3://other/answers", "output.path: s3://other/answers is outside storage.bucket: s3://example-docu"),
    ("output.path=s3://example-documents-2/a", "output.path: s3://example-documents-2/a is outside storage.bucket"),
    ("store.tiers=[{kind: memory}, {kind: files, path: kept}]", "store.tiers[1].path: kept is a path of this machine"),
    ("store.tiers=[{kind: objects, url: 's3://other/k'}]", "store.tiers[0].url: s3://other/k is outside storage.buck"),
    ("model.source=./models/m", "model.source: ./models/m is a path of this machine; allowed: an absolute path on a m"),
    ("model.source=/models/m.gguf", "model.source: /models/m.gguf is not on a volume that pods mount"),
    ("model.source=m.gguf", "model.source: m.gguf is a path of this machine"),
    ("model.profile=heads.json", "model.profile: heads.json is a path of this machine"),
    ("keep.scorer={kind: gate, file: gate.bin}", "keep.scorer.file: gate.bin is a path of this machine"),
    ("answer.over=kept; store.tiers=[{kind: ray}]; keep.budget={kind: heads, map: m.json}", "keep.budget.map: m.json"),
    ("read.pruning={kind: gate, threshold: 0.1, file: gate.bin}", "read.pruning.file: gate.bin is a path of this"),
]  # fmt: skip


@pytest.mark.parametrize(("override", "message"), BAD_JOBS, ids=[bad[0] for bad in BAD_JOBS])
def test_a_job_of_this_machine_is_refused(override: str, message: str) -> None:
    pattern, bad = re.escape(f"{JOB}: {message}"), job(*override.split("; "))
    with pytest.raises(ConfigError, match=pattern):
        render_job(bad, JOB, "", values())
    with pytest.raises(ConfigError, match=pattern):
        render_cluster(bad, JOB, values())


def test_every_reason_is_given_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        render_job(job("corpus.path=a", "output.path=b", "pool.address=c:1"), JOB, "", values())
    assert len(str(caught.value).splitlines()) == 3


def test_a_file_that_lies_here_is_no_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    render_job(job("model.source=org/name"), JOB, "", values())
    (tmp_path / "org" / "name").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"model\.source: org/name is a path of this machine"):
        render_job(job("model.source=org/name"), JOB, "", values())


def test_paths_on_mounted_volumes_are_taken_where_they_may_be_written() -> None:
    accepted = [*ON_VOLUMES, "store.tiers=[{kind: files, path: /mnt/answers/kept}]", "model.source=/mnt/documents/m"]
    render_job(job(*accepted), JOB, "", VOLUMES)
    render_job(job(*ON_VOLUMES, "model.source='package:a/b.gguf'"), JOB, "", VOLUMES)
    for bad, message in (
        (
            "output.path=/mnt/documents/a",
            "output.path: /mnt/documents/a lies on /mnt/documents, which is mounted read-o",
        ),
        ("output.path=/mnt/answers/../x", "output.path: /mnt/answers/../x is not on a volume that pods mount"),
        ("output.path=/mnt/answersx", r"not on a volume that pods mount; .* \(/mnt/documents, /mnt/answers\)"),
    ):
        with pytest.raises(ConfigError, match=message):
            render_job(job(*ON_VOLUMES, bad), JOB, "", VOLUMES)


def test_without_a_bucket_any_is_taken() -> None:
    render_job(job("corpus.path=gs://elsewhere/a", "output.path=az://b/c"), JOB, "", values(storage={}))


def test_names_are_made_of_the_file_and_too_long_ones_refused(tmp_path: Path) -> None:
    for file, name in (("Q3 report.yaml", "foveate-q3-report"), ("2024.yaml", "foveate-2024"), ("ä.yaml", "foveate")):
        assert render_job(job(), tmp_path / file, "", values())[1]["metadata"]["name"] == name
    assert render_job(job(), JOB, "", values(name="nightly"))[1]["metadata"]["name"] == "nightly"
    with pytest.raises(ConfigError, match="allowed: 40 characters, or name in the values"):
        render_job(job(), Path(f"{'x' * 33}.yaml"), "", values())


GROUP = {"name": "a"}
BAD_VALUES: list[tuple[dict[str, Any], str]] = [
    ({"imag": {}}, "imag: unknown key; did you mean image?"),
    ({"image": {"cpu": "a", "gpu": "b", "ray": "latest"}}, "image.ray: 'latest'; allowed: a version, such as 2.60.0"),
    ({"image": {"cpu": "a", "ray": "2.60.0"}}, "image.gpu: missing"),
    ({"name": "Nightly"}, "name: 'Nightly'; allowed: 1 to 40 small letters"),
    ({"workers": {"groups": []}}, "workers.groups: []"),
    ({"workers": {"groups": [GROUP, GROUP]}}, "workers.groups[1].name: 'a' is already the name of workers.groups[0]"),
    ({"workers": {"groups": [{"name": "head"}]}}, "workers.groups[0].name: 'head' is the head's own"),
    ({"workers": {"groups": [GROUP | {"grace_seconds": 5}]}}, "workers.groups[0].grace_seconds: 5 is too small"),
    ({"workers": {"groups": [GROUP | {"minReplicas": 1}]}}, "workers.groups[0].minReplicas: unknown key"),
    ({"workers": {"groups": [GROUP], "memory": "32Gi"}}, "workers.memory: '32Gi' is not a size"),
    (
        {"storage": {"environment": {"A": 5}}},
        "storage.environment.A: 5 is an integer; allowed: a mapping of names to str",
    ),
    ({"storage": {"environment": []}}, "storage.environment: [] is a list; allowed: a mapping of names to strings"),
    ({"storage": {"bucket": "documents"}}, "storage.bucket: 'documents'; allowed: a URL, such as s3://bucket"),
    ({"storage": {"volumes": [{"claim": "c", "path": "mnt"}]}}, "storage.volumes[0].path: 'mnt'; allowed: an absolute"),
    ({"storage": {"volumes": [{"claim": c, "path": "/m"} for c in "cd"]}}, "storage.volumes[1].path: '/m' is already"),
    ({"job": {"submission": "Sidecar"}}, "job.submission: 'Sidecar'; allowed: K8sJobMode, SidecarMode, HTTPMode"),
]


@pytest.mark.parametrize(("changes", "message"), BAD_VALUES, ids=[bad[1][:40] for bad in BAD_VALUES])
def test_bad_values_are_refused_by_their_key(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    good = {"image": {"cpu": "a", "gpu": "b", "ray": "2.60.0"}, "workers": {"groups": [GROUP]}}
    file = tmp_path / "values.yaml"
    file.write_text(dump(good))
    assert isinstance(load_values(file), Values)
    file.write_text(dump(good | changes))
    with pytest.raises(ConfigError, match=re.escape(f"{file}: {message}")):
        load_values(file)


def test_a_job_is_no_values_file_and_the_other_way_round() -> None:
    with pytest.raises(ConfigError, match="corpus: unknown key"):
        load_values(JOB)
    with pytest.raises(ConfigError, match="workers: unknown key"):
        load_job(VALUES)
