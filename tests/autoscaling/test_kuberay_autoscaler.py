"""Pods come for a job and go after it: KubeRay's autoscaler process, told what to do by our own manifest."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from configs.load import load_values
from configs.schema import Job
from pipeline.driver import run
from pipeline.kubernetes import render_cluster
from pipeline.kubernetes_pods import Manifest
from tests.autoscaling.kubernetes_api import NAMESPACE, KubernetesApi, make_certificate, serving
from tests.autoscaling.pods import Pods
from tests.autoscaling.processes import end, start, start_ray, wait_until
from tests.autoscaling.watch import Watch, what_holds_nodes
from tests.deploy.rendered import VALUES, values
from tests.pipeline.jobs import Bench

pytestmark = pytest.mark.cluster

LENGTHS = [900, 700, 1100, 500, 800, 300]
PODS = 2


def manifest_of(job: Job, job_file: Path, volume: str) -> Manifest:
    """The RayCluster that `foveate render k8s --cluster` makes for ``job``, on deploy/values.yaml with these changes:
    a volume where the job's files are, pods of a size for two cores, and less patience with empty ones."""
    workers = load_values(VALUES).workers.model_dump() | {"memory": "1GiB", "idle_seconds": 3}
    storage = {"volumes": [{"claim": "files", "path": volume}]}
    [cluster] = render_cluster(job, job_file, values(workers=workers, storage=storage))
    return cluster


@contextmanager
def kuberay(cluster: Manifest) -> Iterator[tuple[KubernetesApi, Pods]]:
    """A Kubernetes with this RayCluster, its head, and the autoscaler that KubeRay puts beside it."""
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl to make a certificate")
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # socket paths must be short
    api = KubernetesApi(cluster)
    certificate = make_certificate(folder)
    try:
        with serving(api, certificate) as port:
            pods = Pods(api, folder)
            variables = {
                "KUBERNETES_SERVICE_HOST": "127.0.0.1",
                "KUBERNETES_SERVICE_PORT_HTTPS": str(port),
                "KUBERAY_CRD_VER": "v1",
                "RAY_KUBERAY_CA_CERT_PATH": str(certificate.chain),
                "RAY_KUBERAY_CLIENT_CERT_PATH": str(certificate.chain),
                "RAY_KUBERAY_CLIENT_KEY_PATH": str(certificate.key),
                "RAY_HEAD_POD_NAME": pods.head,
                "AUTOSCALER_UPDATE_INTERVAL_S": "1",
            }
            options = {"cluster-name": api.name, "cluster-namespace": NAMESPACE, "gcs-address": pods.address}
            with pods.running():
                autoscaler = start_ray("kuberay-autoscaler", options, folder / "autoscaler.log", variables)
                try:
                    yield api, pods
                finally:
                    end(autoscaler)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def test_pods_come_for_a_job_and_go_after_it(tmp_path: Path, tiny_model: Path) -> None:
    bench = Bench(tmp_path, tiny_model, LENGTHS)
    job = bench.job("pods", pool={"kind": "ray", "workers": PODS, "num_cpus": 1})
    job_file, log = bench.write_job(job), tmp_path / "driver.log"
    cluster = manifest_of(job, job_file, os.path.commonpath([tmp_path, tiny_model]))
    with kuberay(cluster) as (api, pods), Watch(pods.workers) as watch:

        def story() -> str:
            return f"{what_holds_nodes(pods.address)}\n{pods.logs()}\n{api.patches}\n{log.read_text()}"

        driver = start([sys.executable, "-m", "pipeline", "run", str(job_file)], log, {"RAY_ADDRESS": pods.address})
        try:
            wait_until(lambda: driver.poll() is not None, story)
        finally:
            end(driver)
        assert driver.returncode == 0, story()
        wait_until(lambda: watch.history[-1] == 0, story)
    assert watch.history[0] == 0 and max(watch.history) == PODS
    assert all("-spot-" in name for name in watch.seen), "the group of lower priority"
    grown = [patch["value"] for patch in api.patches if patch["path"] == "/spec/workerGroupSpecs/0/replicas"]
    assert max(grown) == PODS and grown[-1] == 0
    run(bench.job("local"))
    assert bench.rows("pods") == bench.rows("local")
