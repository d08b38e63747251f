"""One simulated job under one driver or under several, each with its share of the parts and of the nodes.

Parts are committed one by one and share nothing, so a plan divides between drivers that do not know of each other.
Invariants: the same scene gives the same report, but for ``real_s``; parts and nodes are dealt out whole, each to one
driver.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

import numpy as np

from pipeline.errands import NOTHING, Extent
from pipeline.loop import Loop
from pipeline.reading import DocumentReader
from pipeline.simulation.clock import Clock
from pipeline.simulation.corpus import FILE, Corpus, SimulatedErrand
from pipeline.simulation.pool import SimulatedPool, Toll
from pipeline.simulation.reader import SimulatedReader
from pipeline.simulation.settings import Scene
from pipeline.simulation.traffic import Moved
from pipeline.telemetry.watch import Watch
from workers.messages import Ask, Encode


@dataclass(frozen=True)
class Report:
    """What became of a job under one driver, or of all its shares.

    ``tokens`` and ``work_s`` (engine seconds) are what the plan asks for, poison left out; ``capacity``: engine seconds
    done in a second while all workers are there; ``chain_s``: the least that the longest chunk and an answer take, one
    after the other. ``driver_s``: virtual seconds that the driver worked, by what at; of several drivers, those of the
    busiest. ``real_s``: CPU seconds of this machine in the code of loop and scheduler."""

    documents: int
    tokens: int
    answered: int
    failed: int
    workers: int
    capacity: float
    work_s: float
    chain_s: float
    makespan_s: float
    toll: Toll
    moved: Moved
    driver_s: Counter[str]
    real_s: float = field(compare=False)

    @property
    def bound_s(self) -> float:
        """No schedule is shorter, however fast its driver."""
        return max(self.work_s / self.capacity, self.chain_s)

    @property
    def driver_share(self) -> float:
        """How much of the time the (busiest) driver worked."""
        return self.driver_s.total() / self.makespan_s


def simulate(scene: Scene, num_drivers: int = 1) -> list[Report]:
    """Run the job, with parts and nodes dealt to ``num_drivers`` drivers; one report each. ``ValueError`` where there
    are too few parts or nodes for so many."""
    corpus = Corpus.drawn(scene.corpus, scene.part_tokens, scene.seed)
    if not 1 <= num_drivers <= min(scene.nodes, len(corpus.parts)):
        raise ValueError(
            f"drivers: {num_drivers}; allowed: 1 to {min(scene.nodes, len(corpus.parts))}, a part and a node for each"
        )
    return [
        drive(share, corpus, range(driver, len(corpus.parts), num_drivers))
        for driver, share in enumerate(scene.shares(num_drivers))
    ]


def joined(reports: Sequence[Report]) -> Report:
    """The reports of several drivers as one: they work side by side."""
    busiest = max(reports, key=lambda report: report.driver_s.total())
    return Report(
        documents=sum(report.documents for report in reports),
        tokens=sum(report.tokens for report in reports),
        answered=sum(report.answered for report in reports),
        failed=sum(report.failed for report in reports),
        workers=sum(report.workers for report in reports),
        capacity=sum(report.capacity for report in reports),
        work_s=sum(report.work_s for report in reports),
        chain_s=max(report.chain_s for report in reports),
        makespan_s=max(report.makespan_s for report in reports),
        toll=sum((report.toll for report in reports), Toll()),
        moved=sum((report.moved for report in reports), Moved()),
        driver_s=busiest.driver_s,
        real_s=sum(report.real_s for report in reports),
    )


def drive(scene: Scene, corpus: Corpus, parts: Sequence[int], watch: Watch | None = None) -> Report:
    """Run the real loop over these parts with the nodes of ``scene``."""
    clock = Clock()
    errand = SimulatedErrand(corpus, parts, clock)
    poison = {f"{FILE}:{row}" for row in corpus.poison}
    pool = SimulatedPool(scene, clock, lambda task: _is_poison(task, poison))
    rows_N = corpus.rows_of(parts)
    loop = Loop(
        cast("DocumentReader", SimulatedReader(scene, corpus.lengths_N, clock)),
        pool,
        batch_size=scene.batch_size,
        chunk_tokens=scene.chunk_tokens,
        total=Extent(len(parts), len(rows_N), int(corpus.lengths_N[rows_N].sum())),
        done=NOTHING,
        watch=watch,
    )
    with pool:
        clock.start()
        loop.run(errand)
    fit_N = np.array([row for row in rows_N.tolist() if row not in corpus.poison], np.int64)
    tokens, longest = int(corpus.lengths_N[fit_N].sum()), int(corpus.lengths_N[fit_N].max(initial=0))
    costs = scene.costs
    return Report(
        documents=len(rows_N),
        tokens=tokens,
        answered=errand.num_answered,
        failed=errand.num_failed,
        workers=pool.num_workers,
        capacity=pool.capacity,
        work_s=costs.encode_s * tokens / 1000 + costs.answer_s * corpus.questions * len(fit_N),
        chain_s=costs.encode_s * min(longest, scene.chunk_tokens) / 1000 + costs.answer_s,
        makespan_s=clock.now_s,
        toll=pool.toll,
        moved=pool.traffic.moved,
        driver_s=clock.busy_s,
        real_s=clock.real_s,
    )


def _is_poison(task: Encode | Ask, poison: set[str]) -> bool:
    return isinstance(task, Encode) and task.chunks[0].index == 0 and task.document in poison
