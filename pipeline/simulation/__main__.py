"""``python -m pipeline.simulation``: one simulated job as a table, or with ``--page`` those of docs/operations.md."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import replace

from pipeline.simulation.costs import COSTS
from pipeline.simulation.tables import FAULTS, page, scene_of, table


def main(arguments: Sequence[str] | None = None) -> None:
    """Simulate what the arguments say; None takes those of the process."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.simulation", description=__doc__)
    parser.add_argument("--page", action="store_true", help="all tables of docs/operations.md; only --seeds counts")
    parser.add_argument("--documents", type=int, default=10_000)
    parser.add_argument("--nodes", type=int, default=100)
    parser.add_argument("--workers-per-node", type=int, default=1)
    parser.add_argument("--drivers", type=int, nargs="+", default=[1], help="each number is a run of its own")
    parser.add_argument("--costs", choices=COSTS, default="cpu-core")
    parser.add_argument("--faults", choices=FAULTS, default="all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seeds", type=int, default=1, help="so many from --seed on: median and range of each number")
    chosen = parser.parse_args(arguments)
    if chosen.seeds < 1:
        parser.error(f"--seeds: {chosen.seeds}; allowed: 1 or more")
    try:
        for line in page(chosen.seeds) if chosen.page else _lines(chosen):
            print(line, flush=True)
    except ValueError as error:
        parser.error(str(error))


def _lines(chosen: argparse.Namespace) -> Iterator[str]:
    scene = scene_of(chosen.documents, chosen.nodes, chosen.faults, COSTS[chosen.costs])
    scene = replace(scene, workers_per_node=chosen.workers_per_node, seed=chosen.seed)
    return table(((chosen.costs, scene, drivers) for drivers in chosen.drivers), chosen.seeds)


if __name__ == "__main__":
    main()
