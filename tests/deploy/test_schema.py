"""What is rendered is what KubeRay v1.7 takes, by its own schemas and rules; and the check sees what is wrong."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import pytest

from tests.deploy.crds import needs_crds, num_rules, problems
from tests.deploy.rendered import POOLS, VARIANTS, job_on, ray_cluster, ray_job, values

Manifest = dict[str, Any]
pytestmark = needs_crds


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("pool", POOLS)
def test_every_rendering_is_taken(pool: str, variant: str) -> None:
    site = values(**VARIANTS[variant])
    job = job_on(pool)
    if variant == "volumes":
        job = job.model_copy(update={"output": job.output.model_copy(update={"path": "/mnt/answers/new"})})
    for manifest in (ray_job(job, site), ray_cluster(job, site)):
        assert problems(manifest) == []


def test_rules_were_tried() -> None:
    """Two of the strategy, two of each of its three rules' conditions."""
    assert num_rules("RayJob", ray_job()) == 8


def cluster(manifest: Manifest) -> Manifest:
    found: Manifest = manifest["spec"]["rayClusterSpec"]
    return found


def group(manifest: Manifest) -> Manifest:
    found: Manifest = cluster(manifest)["workerGroupSpecs"][1]
    return found


def pod(manifest: Manifest) -> Manifest:
    found: Manifest = group(manifest)["template"]["spec"]
    return found


def rule(manifest: Manifest) -> Manifest:
    found: Manifest = manifest["spec"]["deletionStrategy"]["deletionRules"][0]
    return found


def misspell(where: Callable[[Manifest], Manifest], right: str, wrong: str) -> Callable[[Manifest], None]:
    def edit(manifest: Manifest) -> None:
        place = where(manifest)
        place[wrong] = place.pop(right)

    return edit


def put(where: Callable[[Manifest], Manifest], key: str, value: Any) -> Callable[[Manifest], None]:
    def edit(manifest: Manifest) -> None:
        where(manifest)[key] = value

    return edit


def spec(manifest: Manifest) -> Manifest:
    found: Manifest = manifest["spec"]
    return found


def container(manifest: Manifest) -> Manifest:
    found: Manifest = pod(manifest)["containers"][0]
    return found


PLANTED: dict[str, tuple[Callable[[Manifest], None], str]] = {
    "top": (misspell(spec, "backoffLimit", "backOffLimit"), r"\$\.spec: .*'backOffLimit' was unexpected"),
    "metadata": (misspell(lambda m: m["metadata"], "labels", "label"), r"\$\.metadata: .*'label' was unexpected"),
    "group": (misspell(group, "minReplicas", "minReplica"), r"workerGroupSpecs\[1\]: .*'minReplica' was unexpected"),
    "missing": (misspell(group, "groupName", "name"), r"workerGroupSpecs\[1\]: 'groupName' is a required property"),
    "container": (misspell(container, "image", "imagee"), r"containers\[0\]: .*'imagee' was unexpected"),
    "mount": (
        misspell(lambda m: container(m)["volumeMounts"][0], "mountPath", "mountpath"),
        r"volumeMounts\[0\]: .*'mountpath' was unexpected",
    ),
    "deepest": (
        misspell(lambda m: container(m)["securityContext"]["capabilities"], "drop", "drops"),
        r"securityContext\.capabilities: .*'drops' was unexpected",
    ),
    "condition": (misspell(lambda m: rule(m)["condition"], "ttlSeconds", "ttl"), r"condition: .*'ttl' was unexpected"),
    "text for number": (put(group, "maxReplicas", "4"), r"maxReplicas: '4' is not of type 'integer'"),
    "number for text": (put(lambda m: cluster(m)["headGroupSpec"]["rayStartParams"], "num-cpus", 0), "num-cpus"),
    "number as variable": (put(lambda m: container(m)["env"][0], "value", 30), "30 is not of type 'string'"),
    "text for boolean": (put(cluster, "enableInTreeAutoscaling", "yes"), "'yes' is not of type 'boolean'"),
    "too large": (put(group, "maxReplicas", 2**31), "greater than the maximum"),
    "no such word": (put(rule, "policy", "DeletePods"), "'DeletePods' is not one of"),
    "no such version": (put(lambda m: cluster(m)["autoscalerOptions"], "version", "v3"), "'v3' is not one of"),
    "no quantity": (put(lambda m: container(m)["resources"]["limits"], "memory", "32 GiB"), "does not match"),
    "rule: two ways": (
        put(lambda m: m["spec"]["deletionStrategy"], "onSuccess", {"policy": "DeleteCluster"}),
        r"\$\.spec\.deletionStrategy: legacy policies",
    ),
    "rule: no way": (
        lambda m: m["spec"]["deletionStrategy"].pop("deletionRules"),
        r"\$\.spec\.deletionStrategy: deletionStrategy requires either",
    ),
    "rule: two conditions": (
        put(lambda m: rule(m)["condition"], "jobDeploymentStatus", "Failed"),
        r"deletionRules\[0\]\.condition: JobStatus and JobDeploymentStatus cannot be used together",
    ),
    "rule: no condition": (
        lambda m: rule(m)["condition"].pop("jobStatus"),
        r"deletionRules\[0\]\.condition: the deletion condition requires",
    ),
    "rule: a stranger manages": (
        put(spec, "managedBy", "me"),
        r"\$\.spec\.managedBy: the managedBy field value must be",
    ),
}


@pytest.mark.parametrize("name", PLANTED)
def test_what_is_planted_is_found(name: str) -> None:
    edit, message = PLANTED[name]
    wrong = copy.deepcopy(ray_job())
    edit(wrong)
    assert any(re.search(message, problem) for problem in problems(wrong)), problems(wrong)


def test_a_typo_in_a_cluster_is_found() -> None:
    wrong = copy.deepcopy(ray_cluster())
    misspell(lambda m: m["spec"]["autoscalerOptions"], "idleTimeoutSeconds", "idleTimeout")(wrong)
    assert any("'idleTimeout' was unexpected" in problem for problem in problems(wrong))
