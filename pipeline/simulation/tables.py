"""Reports as tables of Markdown, and the scenes that docs/operations.md shows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from statistics import median

from pipeline.quantities import duration, in_bytes
from pipeline.simulation.costs import CPU_CORE, GPU, Costs
from pipeline.simulation.run import Report, joined, simulate
from pipeline.simulation.settings import CorpusShape, Faults, Scene

FAULTS: Mapping[str, Faults] = {
    "none": Faults(),
    "stragglers": Faults(straggler_share=0.05),
    "crashes": Faults(worker_mtbf_s=6 * 3600),
    "spot": Faults(node_mtbf_s=2 * 3600),
    "all": Faults(straggler_share=0.05, worker_mtbf_s=6 * 3600, node_mtbf_s=2 * 3600),
}
"""By name: 5 % of the workers three times slower; each crashes every six hours, back after a minute; each node vanishes
every two hours, replaced after five minutes; or all of these, and one document in 10,000 is poison."""

_COLUMNS = (
    "scene", "documents", "workers", "drivers", "makespan", "of the bound", "work lost", "tasks to workers",
    "relevance back", "kept sets moved", "events/s", "driver busy", "µs an event",
)  # fmt: skip
_PER_NODE = 100
"""Documents for each worker in the tables: enough that beginning and end weigh little."""


def scene_of(documents: int, nodes: int, faults: str = "none", costs: Costs = CPU_CORE) -> Scene:
    """A scene by name of what goes wrong."""
    poison = documents // 10_000 if faults == "all" else 0
    return Scene(CorpusShape(documents, poison=poison), FAULTS[faults], costs, nodes)


def page(num_seeds: int = 1) -> Iterator[str]:
    """All tables, a line at a time; about four minutes of one core for each seed."""
    yield "### What goes wrong: 100 workers of one CPU core"
    yield from table(((name, scene_of(100 * _PER_NODE, 100, name), 1) for name in FAULTS), num_seeds)
    yield "### A larger cluster under one driver, all faults"
    yield from table(_under_one_driver(), num_seeds)
    yield "### The same plan under several drivers, or with less for the one to do; all faults"
    yield from table(_shared(), num_seeds)
    yield "### What one driver can feed"
    yield from feeding()


def _under_one_driver() -> Iterator[tuple[str, Scene, int]]:
    for nodes in (250, 500, 1000, 2000):
        yield "CPU core", scene_of(nodes * _PER_NODE, nodes, "all"), 1
    for nodes in (16, 32, 64, 128):
        yield "GPU (assumed)", scene_of(nodes * _PER_NODE, nodes, "all", GPU), 1


def _shared() -> Iterator[tuple[str, Scene, int]]:
    for drivers in (1, 2, 4, 8):
        yield "CPU core", scene_of(2000 * _PER_NODE, 2000, "all"), drivers
    for drivers in (1, 4, 8, 16):
        yield "GPU (assumed)", scene_of(128 * _PER_NODE, 128, "all", GPU), drivers
    unprepared = replace(GPU, prepare_s=0.0)
    yield "GPU, prepared elsewhere", scene_of(128 * _PER_NODE, 128, "all", unprepared), 1
    unchosen = replace(unprepared, choose_s=0.0)
    yield "GPU, prepared and chosen elsewhere", scene_of(128 * _PER_NODE, 128, "all", unchosen), 1


def table(runs: Iterator[tuple[str, Scene, int]], num_seeds: int = 1) -> Iterator[str]:
    """One row for each (name, scene, drivers), as each is done: of the scene's seed, or of as many from there on, with
    median and range."""
    yield from _head(_COLUMNS)
    for name, scene, drivers in runs:
        seeds = range(scene.seed, scene.seed + num_seeds)
        yield _row(_cells(name, drivers, [joined(simulate(replace(scene, seed=seed), drivers)) for seed in seeds]))
    yield ""


def feeding() -> Iterator[str]:
    """Workers that one driver keeps busy, by what it still does itself: engine seconds of the work, divided by the
    driver's seconds for the same work."""
    yield from _head(("scene", "the driver does", "seconds per million tokens", "workers it can feed"))
    for name, costs in (("CPU core", CPU_CORE), ("GPU (assumed)", GPU)):
        [report] = simulate(scene_of(8 * _PER_NODE, 8, costs=costs))
        spent = {"loop and scheduler alone": report.real_s}
        for what, kinds in (
            ("and messages of Ray", ("messages", "looking for results")),
            ("and chooses what is kept", ("choose", "answer rows")),
            ("and prepares documents, in threads beside it (today)", ("prepare",)),
        ):
            spent[what] = list(spent.values())[-1] + sum(report.driver_s[kind] for kind in kinds)
        apart_s = costs.prepare_apart_s * report.tokens / 1000
        spent["and prepares documents, without threads"] = list(spent.values())[-1] + apart_s
        for what, seconds in spent.items():
            yield _row((name, what, f"{seconds / report.tokens * 1e6:.3f}", f"{report.work_s / seconds:,.0f}"))
    yield ""


def _cells(name: str, drivers: int, reports: Sequence[Report]) -> Sequence[str]:
    def spread(of: Callable[[Report], float], shown: Callable[[float], str]) -> str:
        values = [of(report) for report in reports]
        middle, least, most = (shown(value) for value in (median(values), min(values), max(values)))
        return middle if least == most else f"{middle} ({least} to {most})"

    def size(number: float) -> str:
        return in_bytes(round(number))

    return (
        name,
        f"{reports[0].documents:,}",
        f"{reports[0].workers:,}",
        f"{drivers}",
        spread(lambda report: report.makespan_s, duration),
        spread(lambda report: report.makespan_s / report.bound_s, "{:.2f}".format),
        spread(lambda report: report.toll.lost_s / (report.toll.busy_s + report.toll.lost_s), "{:.2%}".format),
        spread(lambda report: report.moved.tokens, size),
        spread(lambda report: report.moved.relevance, size),
        spread(lambda report: report.moved.kept, size),
        spread(lambda report: report.toll.num_events / report.makespan_s, "{:,.0f}".format),
        spread(lambda report: report.driver_share, "{:.0%}".format),
        spread(lambda report: report.real_s / report.toll.num_events * 1e6, "{:.0f}".format),
    )


def _head(columns: Sequence[str]) -> Iterator[str]:
    yield ""
    yield _row(columns)
    yield _row(["---"] * len(columns))


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
