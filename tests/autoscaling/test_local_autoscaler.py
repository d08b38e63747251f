"""Nodes come for a job and go after it, though the driver lives on: Ray's autoscaler, with raylets for machines."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.driver import run
from tests.autoscaling.fake_multi_node import autoscaling_cluster
from tests.autoscaling.patience import answering, patient_engines, reading_the_last_document
from tests.autoscaling.processes import wait_until
from tests.autoscaling.watch import ACTORS, OBJECTS, Watch, activities, what_holds_nodes, worker_nodes
from tests.pipeline.jobs import Bench

pytestmark = pytest.mark.cluster

NODES = 2
IDLE_S = 2.0
LENGTHS = [900, 700, 1100, 500, 800, 3000]
POOL = {"kind": "ray", "workers": NODES, "num_cpus": 1, "idle_seconds": 1}
CARRIED: dict[str, Any] = {"read": {"chunk_tokens": 128, "context": "carried"}}
KEPT: dict[str, Any] = {
    "read": {"chunk_tokens": 512},  # entries of more than 100 KB: smaller ones would not stay on their node
    "keep": {"block_tokens": 16, "budget": {"kind": "uniform", "tokens": 1536}},
    "answer": {"over": "kept", "batch_size": 3},
}


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    with autoscaling_cluster(NODES, IDLE_S) as address:
        yield address


@pytest.fixture
def address(cluster: str) -> str:
    """Of a cluster that has no worker nodes, whatever an earlier test left."""
    wait_until(lambda: not worker_nodes(), lambda: what_holds_nodes(cluster))
    return cluster


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Bench:
    return Bench(tmp_path_factory.mktemp("autoscaler"), tiny_model, LENGTHS)


def test_an_engine_without_work_gives_its_node_back_while_another_still_reads(address: str, bench: Bench) -> None:
    run(bench.job("local", **CARRIED))
    job = bench.job("ray", pool=POOL, **CARRIED)
    with Watch(worker_nodes) as watch:

        def one_of_two_has_gone() -> bool:
            return watch.history[-2:] == [2, 1]

        with patient_engines(job, reading_the_last_document, one_of_two_has_gone, lambda: what_holds_nodes(address)):
            run(job)
        wait_until(lambda: watch.history[-1] == 0, lambda: what_holds_nodes(address))
    assert watch.history[0] == 0 and max(watch.history) == NODES and watch.history[-3:] == [2, 1, 0]
    assert bench.rows("ray") == bench.rows("local")


def test_what_engines_keep_in_rays_memory_holds_no_node_after_the_job(address: str, bench: Bench) -> None:
    run(bench.job("kept-local", **KEPT))
    store = {"tiers": [{"kind": "memory"}, {"kind": "ray"}], "keep": True}  # nothing is freed before the end
    job = bench.job("kept-ray", pool=POOL, store=store, **KEPT)

    def entries_lie_on_two_nodes() -> bool:
        return sum({ACTORS, OBJECTS} <= reasons for reasons in activities(address).values()) == NODES

    with Watch(worker_nodes) as watch:
        with patient_engines(job, answering, entries_lie_on_two_nodes, lambda: what_holds_nodes(address)):
            run(job)
        wait_until(lambda: watch.history[-1] == 0, lambda: what_holds_nodes(address))
    assert watch.history[0] == 0 and max(watch.history) == NODES
    assert bench.rows("kept-ray") == bench.rows("kept-local")
    assert not ray.util.list_named_actors(), "the store's books are open still"


class Seat:
    """Takes a node for itself, with one CPU."""

    def node(self) -> str:
        return ray.get_runtime_context().get_node_id()

    def megabyte(self) -> bytes:
        return bytes(2**20)


class Squatter:
    """Sits on a node, without CPUs."""

    def sit(self) -> None:
        pass


def test_a_living_actor_without_cpus_holds_its_node_and_so_does_an_object(address: str) -> None:
    """What the tests above would find. Both nodes have no work for as long."""
    seat_class: Any = ray.remote(num_cpus=1)(Seat)
    squatter_class: Any = ray.remote(num_cpus=0)(Squatter)
    seats = [seat_class.remote() for _ in range(NODES)]
    first, second = ray.get([seat.node.remote() for seat in seats])
    squatter = squatter_class.options(scheduling_strategy=NodeAffinitySchedulingStrategy(first, soft=False)).remote()
    kept = seats[1].megabyte.remote()
    ray.get([squatter.sit.remote(), kept])
    del seats
    wait_until(lambda: activities(address) == {first: {ACTORS}, second: {OBJECTS}}, lambda: what_holds_nodes(address))
    assert "Squatter" in what_holds_nodes(address)
    del kept
    wait_until(lambda: worker_nodes() == {first}, lambda: what_holds_nodes(address))
    del squatter
    wait_until(lambda: not worker_nodes(), lambda: what_holds_nodes(address))
