"""NetworkPolicy and PodMonitor, by their structure: their schemas (Kubernetes' and the Prometheus operator's) are not
here, so what is checked is what they select and admit, read as Kubernetes documents it."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from pipeline.kubernetes_pods import HEAD_PORTS, WORKER_PORTS
from tests.deploy.rendered import ROOT, ray_job, templates

POLICIES = list(yaml.safe_load_all((ROOT / "deploy" / "networkpolicy.yaml").read_text()))
MONITORS = list(yaml.safe_load_all((ROOT / "deploy" / "podmonitor.yaml").read_text()))
OURS, OPERATOR, PROMETHEUS, ELSEWHERE = "documents", "kuberay-system", "monitoring", "web"


def pods() -> dict[str, dict[str, str]]:
    """Labels of the pods of a job, as rendered."""
    spec = ray_job()["spec"]
    found = {**templates(spec["rayClusterSpec"]), "submitter": spec["submitterPodTemplate"]}
    return {name: pod["metadata"]["labels"] for name, pod in found.items()}


def selects(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    assert set(selector) <= {"matchLabels"}
    return set(selector.get("matchLabels", {}).items()) <= set(labels.items())


def admits(peer: dict[str, Any], namespace: str, labels: dict[str, str]) -> bool:
    """Whether a peer of a rule in our namespace is a pod with ``labels`` in ``namespace``."""
    assert set(peer) <= {"podSelector", "namespaceSelector"} and peer
    home = {"kubernetes.io/metadata.name": namespace}
    there = selects(peer["namespaceSelector"], home) if "namespaceSelector" in peer else namespace == OURS
    return there and selects(peer.get("podSelector", {}), labels)


def open_to(pod: str, port: int, namespace: str, labels: dict[str, str]) -> bool:
    """Whether some policy lets the traffic in; a pod that no policy selects lets in everything."""
    chosen = [policy["spec"] for policy in POLICIES if selects(policy["spec"]["podSelector"], pods()[pod])]
    rules = [rule for spec in chosen for rule in spec.get("ingress", [])]
    return not chosen or any(
        any(admits(peer, namespace, labels) for peer in rule["from"])
        and ("ports" not in rule or port in [each["port"] for each in rule["ports"]])
        for rule in rules
    )


THE_OPERATOR = {"app.kubernetes.io/name": "kuberay-operator"}
TRAFFIC = [
    ("head", 6379, OURS, "spot", True),
    ("head", 8265, OURS, "submitter", True),
    ("spot", 10_002, OURS, "head", True),
    ("spot", 10_002, OURS, "on-demand", True),
    ("head", 8265, OPERATOR, THE_OPERATOR, True),
    ("head", 6379, OPERATOR, THE_OPERATOR, False),
    ("head", 8265, OPERATOR, {"app.kubernetes.io/name": "another"}, False),
    ("head", 8265, ELSEWHERE, THE_OPERATOR, False),
    ("head", 8080, PROMETHEUS, {}, True),
    ("head", 44217, PROMETHEUS, {}, True),
    ("head", 8265, PROMETHEUS, {}, False),
    ("spot", 8080, PROMETHEUS, {}, True),
    ("spot", 10_002, PROMETHEUS, {}, False),
    ("head", 8265, OURS, {"app": "web"}, False),
    ("head", 10_001, ELSEWHERE, {"app.kubernetes.io/part-of": "foveate"}, False),
    ("spot", 10_002, OPERATOR, THE_OPERATOR, False),
    ("submitter", 80, OURS, "head", False),
]


@pytest.mark.parametrize(("pod", "port", "namespace", "who", "is_open"), TRAFFIC)
def test_who_may_talk_to_whom(pod: str, port: int, namespace: str, who: str | dict[str, str], is_open: bool) -> None:
    labels = pods()[who] if isinstance(who, str) else who
    assert open_to(pod, port, namespace, labels) == is_open


def test_policies_have_the_form_of_policies() -> None:
    assert len({policy["metadata"]["name"] for policy in POLICIES}) == len(POLICIES) == 3
    for policy in POLICIES:
        assert (policy["apiVersion"], policy["kind"]) == ("networking.k8s.io/v1", "NetworkPolicy")
        spec = policy["spec"]
        assert set(spec) <= {"podSelector", "policyTypes", "ingress"} and spec["policyTypes"] == ["Ingress"]
        for rule in spec.get("ingress", []):
            assert set(rule) <= {"from", "ports"} and rule["from"], "a rule without from admits everybody"
            assert all(set(port) == {"protocol", "port"} for port in rule.get("ports", []))


def test_every_port_that_a_policy_opens_is_one_that_pods_have() -> None:
    opened = {port["port"] for p in POLICIES for rule in p["spec"].get("ingress", []) for port in rule.get("ports", [])}
    assert opened == set(HEAD_PORTS.values()) - {HEAD_PORTS["gcs-server"]}


@pytest.mark.parametrize(("pod", "ports"), [("head", HEAD_PORTS), ("spot", WORKER_PORTS), ("on-demand", WORKER_PORTS)])
def test_monitors_find_every_metrics_port(pod: str, ports: dict[str, int]) -> None:
    template = templates(ray_job()["spec"]["rayClusterSpec"])[pod]
    declared = {port["name"]: port["containerPort"] for port in template["spec"]["containers"][0]["ports"]}
    assert declared == ports and all(len(name) <= 15 for name in declared)  # Kubernetes' limit for a port's name
    watching = [m["spec"] for m in MONITORS if selects(m["spec"]["selector"], template["metadata"]["labels"])]
    watched = [endpoint["port"] for spec in watching for endpoint in spec["podMetricsEndpoints"]]
    assert len(watching) == 1 and sorted(watched) == sorted(name for name in ports if name.endswith("metrics"))


def test_monitors_have_the_form_of_monitors() -> None:
    for monitor in MONITORS:
        assert (monitor["apiVersion"], monitor["kind"]) == ("monitoring.coreos.com/v1", "PodMonitor")
        assert set(monitor["spec"]) == {"selector", "podTargetLabels", "podMetricsEndpoints"}
        assert all(set(endpoint) == {"port", "interval"} for endpoint in monitor["spec"]["podMetricsEndpoints"])
