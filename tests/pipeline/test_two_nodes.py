"""Two real Ray nodes, an engine on each: the second one answers from what the first one read, and reads nothing."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cache_store.store import StoreCounters
from cache_store.tiers.object_store import open_ledger
from configs.schema import Job
from pipeline.document import Asked, Document
from pipeline.reading import DocumentReader
from tests.cache_store.clusters import ray_cluster
from tests.pipeline.jobs import Bench, sentence
from workers.actors import EngineHost
from workers.engine import Engine
from workers.loading import find_or_calibrate, load_engine, load_method, load_reading
from workers.messages import Answered, Ask, Encode, Encoded

pytestmark = pytest.mark.cluster

METHODS: dict[str, dict[str, Any]] = {
    "kept pairs": {"keep": {"question": "unknown", "scorer": {"kind": "reconstruct"}}, "answer": {"over": "kept"}},
    "index": {"keep": {"question": "unknown", "scorer": {"kind": "index"}}},
}


class CountingHost(EngineHost):
    """An engine that says where it is and what its store saw."""

    def node_and_counters(self) -> tuple[str, StoreCounters]:
        return self.place().node_id, self._engine.store.counters  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with ray_cluster(num_cpus=0) as cluster:
        for _ in range(2):
            cluster.add_node(num_cpus=1, object_store_memory=100 * 2**20)
        cluster.wait_for_nodes()
        ledger = open_ledger()
        yield cluster
        del ledger


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Bench:
    return Bench(tmp_path_factory.mktemp("nodes"), tiny_model, [10])


def start(job: Job, node: str) -> Any:
    there = NodeAffinitySchedulingStrategy(node, soft=False)
    make_engine = partial(load_engine, job, find_or_calibrate(job, load_reading(job)))
    host = ray.remote(CountingHost).options(num_cpus=1, scheduling_strategy=there).remote(make_engine, 1)
    host.load.remote()
    return host


@pytest.mark.parametrize("method", METHODS)
def test_the_second_node_answers_from_what_the_first_one_read(cluster: Cluster, bench: Bench, method: str) -> None:
    job = bench.job(store={"tiers": [{"kind": "memory"}, {"kind": "ray"}]}, **METHODS[method])
    reading = load_reading(job)
    parts = load_method(job, reading, find_or_calibrate(job, reading))
    reader = DocumentReader(job, reading, parts.scorer, parts.budget)
    prepared = reader.prepare(Document(method, sentence(1500, 3), "corpus", 0, (Asked("who", "Who?", "", 6),)))
    assert len(prepared.encodes) > 8
    there, here = (node["NodeID"] for node in ray.nodes() if node["Resources"].get("CPU"))
    first, second = start(job, there), start(job, here)
    alone: Engine = load_engine(bench.job(store={"tiers": []}, **METHODS[method]), find_or_calibrate(job, reading))

    def outcome(work: Any) -> tuple[list[Encoded], Answered]:
        encoded = [work(task) for task in prepared.encodes]
        [selection] = reader.advance(prepared, encoded)  # type: ignore[misc]
        return encoded, work(Ask((selection.query,)))  # type: ignore[union-attr]

    try:
        encoded: list[Encoded] = [ray.get(first.attempt.remote(task)) for task in prepared.encodes]
        assert not any(message.cache_hits for message in encoded)

        def ask(task: Encode | Ask) -> Any:
            return ray.get(second.attempt.remote(task))

        again, answered = outcome(ask)
        assert [message.cache_hits for message in again] == [1] * len(prepared.encodes)
        nodes, counters = zip(*(ray.get(engine.node_and_counters.remote()) for engine in (first, second)), strict=True)
        assert nodes == (there, here)
        assert counters[1].hits["ray"] == len(prepared.encodes) and not counters[1].misses
        by_itself, expected = outcome(alone.work)
        assert [answer.text for answer in answered.answers] == [answer.text for answer in expected.answers]
        for one, other in zip(again, by_itself, strict=True):
            for mine, its in zip(one.relevance, other.relevance, strict=True):
                assert [r.log_RHB.tobytes() for r in mine] == [r.log_RHB.tobytes() for r in its]
    finally:
        for engine in (first, second):
            ray.kill(engine)
