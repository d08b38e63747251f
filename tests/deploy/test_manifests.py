"""What the manifests say beyond their schema: what the operator, Ray's autoscaler and Kueue make of them."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from configs.text import parse
from pipeline.kubernetes import as_yaml, render_job
from pipeline.kubernetes_pods import JOB_FILE, JOB_FOLDER, Shape, quantity, shape_of
from tests.deploy.rendered import JOB, POOLS, VARIANTS, job, job_on, ray_cluster, ray_job, templates, values


def test_the_job_travels_as_it_is_written() -> None:
    text = JOB.read_text()
    config_map, submitted = render_job(job(), JOB, text, values())
    assert config_map["data"] == {JOB_FILE: text}
    head = templates(submitted["spec"]["rayClusterSpec"])["head"]["spec"]
    assert {"name": "job", "configMap": {"name": config_map["metadata"]["name"]}} in head["volumes"]
    assert submitted["spec"]["entrypoint"] == f"python -m pipeline run {JOB_FOLDER}/{JOB_FILE}"


@pytest.mark.parametrize(
    ("pool", "shape", "pods"),
    [
        ("workers: 16, num_cpus: 4, num_gpus: 1", Shape(4, 1, 1), 16),
        ("workers: 3, num_cpus: 8, num_gpus: 2", Shape(8, 2, 1), 3),
        ("workers: 5, num_cpus: 1, num_gpus: 0.25", Shape(4, 1, 4), 2),
        ("workers: 30, num_cpus: 0.5, num_gpus: 0.1", Shape(5, 1, 10), 3),
        ("workers: 2, num_cpus: 1, num_gpus: 0.1", Shape(2, 1, 2), 1),
        ("workers: 7, num_cpus: 1", Shape(1, 0, 1), 7),
        ("workers: 3, num_cpus: 0.5", Shape(1, 0, 2), 2),
        ("workers: 3, num_cpus: 2.5", Shape(3, 0, 1), 3),
    ],
)
def test_pods_hold_whole_engines_and_groups_whole_jobs(pool: str, shape: Shape, pods: int) -> None:
    asked = job_on(pool)
    assert asked.pool.kind == "ray" and shape_of(asked.pool) == shape
    spot, on_demand = ray_cluster(asked)["spec"]["workerGroupSpecs"]
    assert (spot["minReplicas"], spot["replicas"], spot["maxReplicas"]) == (0, 0, pods)
    assert on_demand["maxReplicas"] == min(4, pods)  # of deploy/values.yaml
    limits = spot["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert limits["cpu"] == str(shape.cpus) and limits["memory"] == f"{32 * shape.engines}Gi"
    assert limits.get("nvidia.com/gpu") == (str(shape.gpus) if shape.gpus else None)


def test_gpu_jobs_and_others_have_their_images_and_tolerations() -> None:
    for pool, image, keys in (
        (POOLS[0], "registry.example.com/foveate:0.1.0-cuda", {"node.example.com/market", "nvidia.com/gpu"}),
        (POOLS[2], "registry.example.com/foveate:0.1.0-cpu", {"node.example.com/market"}),
    ):
        submitted = ray_job(job_on(pool))["spec"]
        pods = [*templates(submitted["rayClusterSpec"]).values(), submitted["submitterPodTemplate"]]
        assert {pod["spec"]["containers"][0]["image"] for pod in pods} == {image}
        spot = templates(submitted["rayClusterSpec"])["spot"]["spec"]
        assert {toleration["key"] for toleration in spot["tolerations"]} == keys


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_operator_refuses_none(variant: str) -> None:
    """What KubeRay v1.7 checks in its code, not in its schema (validation.go): of what we write."""
    spec = ray_job(values_=values(**VARIANTS[variant]), job=on_volumes() if variant == "volumes" else None)["spec"]
    cluster = spec["rayClusterSpec"]
    rules = spec.get("deletionStrategy", {}).get("deletionRules", [])
    assert bool(rules) != spec["shutdownAfterJobFinishes"]
    assert "ttlSecondsAfterFinished" not in spec or spec["shutdownAfterJobFinishes"]
    assert all(rule["policy"] != "DeleteWorkers" for rule in rules)  # not with an autoscaler
    conditions = [(rule["policy"], next(iter(rule["condition"].items()))) for rule in rules]
    assert len(set(conditions)) == len(conditions)
    assert ("submitterPodTemplate" in spec) == ("submitterConfig" in spec) == (spec["submissionMode"] == "K8sJobMode")
    for template in templates(cluster).values():
        assert "restartPolicy" not in template["spec"]  # the operator sets Never
        names = {variable["name"] for variable in template["spec"]["containers"][0]["env"]}
        assert not {"RAY_enable_autoscaler_v2", "RAY_REDIS_ADDRESS", "RAY_AUTH_TOKEN"} & names
    assert cluster["authOptions"] == {"mode": "token"} and cluster["rayVersion"] == "2.60.0"
    for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        assert not ("resources" in group and {"num-cpus", "num-gpus"} & set(group["rayStartParams"]))


def on_volumes() -> Any:
    return job("corpus.path=/mnt/documents/*.parquet", "output.path=/mnt/answers/new")


def test_kueue_admits_a_queued_job() -> None:
    """Its webhooks ask for a cluster that goes with the job, and of a job with an autoscaler that it is elastic."""
    queued = ray_job(values_=values(queue="documents"))
    assert queued["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "documents"
    assert queued["metadata"]["annotations"] == {"kueue.x-k8s.io/elastic-job": "true"}
    assert queued["spec"]["shutdownAfterJobFinishes"] and queued["spec"]["ttlSecondsAfterFinished"] == 60
    assert "annotations" not in ray_job()["metadata"]
    assert ray_cluster(values_=values(queue="q"))["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "q"


def test_rays_autoscaler_reads_what_is_meant() -> None:
    """The configuration that `ray kuberay-autoscaler` derives from our RayCluster, by Ray's own code."""
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

    cluster = ray_cluster()
    cluster["metadata"]["namespace"] = "default"
    derived = _derive_autoscaling_config_from_ray_cr(cluster)
    types = derived["available_node_types"]
    assert types["headgroup"]["resources"]["CPU"] == 0
    gib = 2**30
    for name, most, priority in (("spot", 16, 10), ("on-demand", 4, 0)):
        resources = types[name]["resources"]
        assert (resources["CPU"], resources["GPU"], resources["memory"]) == (4, 1, 32 * gib)
        assert (types[name]["min_workers"], types[name]["max_workers"], types[name]["priority"]) == (0, most, priority)
    assert derived["idle_timeout_minutes"] == 1.0 and derived["max_workers"] == 20


def test_pods_are_confined_and_tell_no_secrets() -> None:
    submitted = ray_job(values_=values(**VARIANTS["volumes"]), job=on_volumes())["spec"]
    pods = {**templates(submitted["rayClusterSpec"]), "submitter": submitted["submitterPodTemplate"]}
    for name, pod in pods.items():
        spec = pod["spec"]
        assert spec["securityContext"]["runAsNonRoot"] and spec["securityContext"]["runAsUser"] == 1000
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in spec["containers"]:
            confined = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
            assert container["securityContext"] == confined
            assert container["resources"]["requests"] == container["resources"]["limits"]
            mounted = {mount["name"] for mount in container.get("volumeMounts", [])}
            assert mounted == {volume["name"] for volume in spec.get("volumes", [])}
        assert name == "head" or spec["automountServiceAccountToken"] is False  # the head's autoscaler needs it
    secrets = ray_job()["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["envFrom"]
    assert secrets == [{"secretRef": {"name": "foveate-storage"}}]


def test_engines_have_all_of_the_grace_but_the_last_seconds() -> None:
    for name, grace in (("spot", 30), ("on-demand", 120)):
        spec = templates(ray_cluster()["spec"])[name]["spec"]
        drain = {"name": "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S", "value": str(grace - 10)}
        assert spec["terminationGracePeriodSeconds"] == grace and drain in spec["containers"][0]["env"]


def test_ray_still_drains_a_node_that_is_told_to_end() -> None:
    """Our grace rests on a setting of Ray's own: does this version have it?"""
    from ray._private import ray_constants

    assert ray_constants.RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S > 0


@pytest.mark.parametrize(
    "text", ["yes", "0x1F", "1e3", "010", "0o10", "1:30", "2024-01-01", "~", "no", "-5", ".5", "+1"]
)
def test_every_reader_of_yaml_sees_the_same_text(text: str) -> None:
    """YAML 1.1 and 1.2 disagree about these, and Go's reader is of neither; so none of them stands bare."""
    made = as_yaml([{"a": text, "b": [text], text: {"c": f"{text}\n# two lines\n"}}], "foveate")
    expected = {"a": text, "b": [text], text: {"c": f"{text}\n# two lines\n"}}
    assert yaml.safe_load(made) == expected == parse(made, "made")
    assert f"a: '{text}'" in made or f'a: "{text}"' in made


def test_several_objects_are_several_documents() -> None:
    shared = {"x": 1}
    made = as_yaml([{"a": shared, "b": shared}, {"c": 2}], "foveate render k8s x.yaml")
    assert list(yaml.safe_load_all(made)) == [{"a": shared, "b": shared}, {"c": 2}] and "&" not in made
    assert made.startswith("# Made by `foveate render k8s x.yaml`")


@pytest.mark.parametrize(
    ("num_bytes", "text"), [(2**30, "1Gi"), (2**40, "1Ti"), (1536 * 2**20, "1536Mi"), (3 * 1024, "3Ki"), (1001, "1001")]
)
def test_quantities(num_bytes: int, text: str) -> None:
    assert quantity(num_bytes) == text
