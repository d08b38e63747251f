"""``python -m pipeline.telemetry``: what watching a run costs its driver.

The real loop drives simulated engines (``pipeline.simulation``), several times for each way of watching. What is
measured is CPU time in the code of loop, scheduler and watch, divided by the results that came back. Starts a Ray of
its own.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Sequence

from pipeline.pool import Result
from pipeline.simulation.corpus import Corpus
from pipeline.simulation.run import drive
from pipeline.simulation.settings import Scene
from pipeline.simulation.tables import scene_of
from pipeline.telemetry.metrics import MetricsWatch
from pipeline.telemetry.watch import Watch
from workers.messages import Ask, Encode
from workers.metrics import Meter
from workers.ray_metrics import RayMeter


class _Counting(Watch):
    """Nobody watches, but results are counted."""

    num_results = 0

    def finished(self, task_id: int, task: Encode | Ask, result: Result) -> None:
        """Count it."""
        self.num_results += 1


WAYS: dict[str, Callable[[], Watch]] = {
    "nobody": Watch,
    "metrics, without Ray": lambda: MetricsWatch(Meter()),
    "metrics, through Ray": lambda: MetricsWatch(RayMeter()),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table: the least of several runs each, because a shared machine only ever adds."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.telemetry", description=__doc__)
    parser.add_argument("--documents", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=5)
    chosen = parser.parse_args(arguments)
    import ray

    scene = scene_of(chosen.documents, nodes=16)
    counting = _Counting()
    _real_s(scene, counting)
    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    try:
        least = dict.fromkeys(WAYS, float("inf"))
        for _ in range(chosen.repeats):
            for name, make in WAYS.items():
                least[name] = min(least[name], _real_s(scene, make()))
    finally:
        ray.shutdown()
    print("| who watches | µs of the driver for a result |\n| --- | --- |")
    for name, seconds in least.items():
        print(f"| {name} | {seconds / counting.num_results * 1e6:.1f} |")


def _real_s(scene: Scene, watch: Watch) -> float:
    """CPU seconds of the driver's own code."""
    corpus = Corpus.drawn(scene.corpus, scene.part_tokens, scene.seed)
    return drive(scene, corpus, range(len(corpus.parts)), watch).real_s


if __name__ == "__main__":
    main()
