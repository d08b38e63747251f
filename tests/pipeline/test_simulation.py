"""Laws of the simulated cluster: whatever its size and its faults, the books balance."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.ledger import FinishedPart
from pipeline.outcome import Outcome
from pipeline.pool import TASKS_PER_WORKER
from pipeline.simulation import run
from pipeline.simulation.__main__ import main
from pipeline.simulation.corpus import Corpus, SimulatedErrand
from pipeline.simulation.costs import CPU_CORE, Costs
from pipeline.simulation.run import Report, joined, simulate
from pipeline.simulation.settings import CorpusShape, Faults, Scene

FREE = CPU_CORE.with_free_driver()
ROUGH = Faults(straggler_share=0.2, worker_mtbf_s=400, restart_s=30, node_mtbf_s=600, replace_s=60)

fates = st.builds(
    Faults,
    straggler_share=st.floats(0, 0.5),
    worker_mtbf_s=st.floats(100, 5000),
    restart_s=st.floats(0, 300),
    node_mtbf_s=st.floats(200, 5000),
    replace_s=st.floats(0, 300),
)
corpora = st.builds(
    CorpusShape,
    documents=st.integers(1, 40),
    median_tokens=st.integers(1, 20_000),
    questions=st.integers(1, 3),
    poison=st.integers(0, 1),
)
scenes = st.builds(
    Scene,
    corpora,
    fates,
    st.sampled_from([CPU_CORE, FREE]),
    nodes=st.integers(1, 6),
    workers_per_node=st.integers(1, 3),
    seed=st.integers(0, 1000),
    batch_size=st.integers(1, 9),
    part_tokens=st.sampled_from([1, 30_000, 10**7]),
)


def scene(documents: int = 60, costs: Costs = FREE, **changes: Any) -> Scene:
    base = Scene(CorpusShape(documents, questions=2), costs=costs, nodes=3, workers_per_node=2, part_tokens=50_000)
    return replace(base, **changes)


def one(of: Scene) -> Report:
    [report] = simulate(of)
    return report


class Recording(SimulatedErrand):
    """An errand that also writes down by itself what was committed."""

    ended: ClassVar[Counter[tuple[int, str]]] = Counter()

    def commit(self, part: FinishedPart) -> bool:
        outcomes: tuple[Outcome, ...] = (*part.answers, *part.failures)
        self.ended.update((outcome.source_row, outcome.question_id) for outcome in outcomes)
        return super().commit(part)


@settings(max_examples=60, deadline=None)
@given(scenes, st.integers(1, 3))
def test_every_question_ends_once_and_the_books_balance_whatever_fails(of: Scene, drivers: int) -> None:
    corpus = Corpus.drawn(of.corpus, of.part_tokens, of.seed)
    drivers = min(drivers, of.nodes, len(corpus.parts))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "SimulatedErrand", Recording)
        patch.setattr(Recording, "ended", Counter())
        reports = simulate(of, drivers)
        questions = [f"q{index}" for index in range(of.corpus.questions)]
        assert Recording.ended == {(row, asked): 1 for row in range(of.corpus.documents) for asked in questions}
    assert sum(report.documents for report in reports) == of.corpus.documents
    for report in reports:
        toll = report.toll
        assert toll.num_handed_over == toll.num_taken_back
        # Whoever is hit by two crashes is quarantined, and its work is never done.
        assert report.makespan_s >= report.bound_s * (1 - 1e-9) or report.failed
        assert toll.busy_s + toll.lost_s + toll.down_s <= report.workers * report.makespan_s * (1 + 1e-9)
        assert report.driver_s.total() <= report.makespan_s * (1 + 1e-9)


@settings(max_examples=20, deadline=None)
@given(scenes)
def test_the_same_seed_gives_the_same_report(of: Scene) -> None:
    assert simulate(of) == simulate(of)


def test_another_seed_gives_another_report() -> None:
    assert simulate(scene(faults=ROUGH)) != simulate(scene(faults=ROUGH, seed=1))


@pytest.mark.parametrize("seed", range(5))
def test_one_worker_without_faults_takes_as_long_as_the_work(seed: int) -> None:
    report = one(scene(nodes=1, workers_per_node=1, seed=seed))
    assert report.makespan_s == pytest.approx(report.work_s)
    assert report.makespan_s == pytest.approx(report.bound_s)
    assert report.toll.busy_s == pytest.approx(report.work_s)


@settings(max_examples=60, deadline=None)
@given(corpora, st.integers(1, 12), st.integers(1, 9), st.integers(0, 1000))
def test_no_schedule_is_longer_than_grahams_bound(shape: CorpusShape, workers: int, batch_size: int, seed: int) -> None:
    """R. L. Graham 1966, "Bounds for Certain Multiprocessing Anomalies": work / workers and one chain. A task that
    was handed out may also wait behind one other, so each link of the chain (a chunk, a batch) counts twice."""
    of = scene(corpus=replace(shape, poison=0), nodes=workers, workers_per_node=1, batch_size=batch_size, seed=seed)
    report = one(of)
    chunk_s = FREE.encode_s * of.chunk_tokens / 1000
    batch_s = FREE.answer_s * batch_size
    chain_s = chunk_s + batch_s + 2 * (TASKS_PER_WORKER - 1) * max(chunk_s, batch_s)
    assert report.bound_s * (1 - 1e-9) <= report.makespan_s <= report.work_s / workers + chain_s + 1e-6


def test_what_moves_is_what_the_plan_asks_for() -> None:
    """Without faults each token goes out once to be read and once more with each question that it is a source of;
    relevance comes back once for each question; a lone node fetches nothing."""
    of = scene(nodes=1, workers_per_node=4, corpus=CorpusShape(50, median_tokens=800, sigma=0.1, questions=2))
    lengths_N = Corpus.drawn(of.corpus, of.part_tokens, of.seed).lengths_N
    assert lengths_N.max() <= of.chunk_tokens * 16, "all chunks of every document are sources"
    report, costs = one(of), FREE
    num_asks = report.toll.num_handed_over - int(np.ceil(lengths_N / of.chunk_tokens).sum())
    assert num_asks == int(np.ceil(2 * 50 / of.batch_size)), "one part: all batches but the last are full"
    sent = costs.message_bytes * report.toll.num_handed_over + costs.token_bytes * 3 * int(lengths_N.sum())
    assert report.moved.tokens == sent
    assert report.moved.kept == 0
    expected = sum(costs.relevance_bytes * 2 * min(2048, n - at) // 1000 for n in lengths_N for at in range(0, n, 2048))
    assert report.moved.relevance == expected


def test_kept_sets_move_between_nodes_whole() -> None:
    """Documents of one chunk: each answer on another node than its chunk moves one kept set."""
    of = scene(nodes=4, workers_per_node=1, corpus=CorpusShape(40, median_tokens=1000, sigma=0.0, tail_share=0.0))
    one_set = FREE.pair_bytes * of.budget_tokens
    moved = one(of).moved.kept
    assert moved % one_set == 0 and 0 < moved // one_set <= 40


def test_a_lost_node_costs_the_kept_sets_that_lay_there() -> None:
    """A worker that crashes leaves its kept sets on its node; a node takes them along, and they are read again."""
    calm = one(scene(nodes=6, workers_per_node=1))
    crashed = one(scene(nodes=6, workers_per_node=1, faults=Faults(worker_mtbf_s=40, restart_s=0.0)))
    vanished = one(scene(nodes=6, workers_per_node=1, faults=Faults(node_mtbf_s=40, replace_s=0.0)))
    assert calm.toll.lost_s == calm.toll.down_s == 0
    assert crashed.toll.num_lost > 0 and vanished.toll.num_lost > 0
    assert vanished.toll.lost_s / vanished.toll.num_lost > crashed.toll.lost_s / crashed.toll.num_lost


def test_poison_is_quarantined_and_costs_two_workers_each() -> None:
    """Each of them dies half way through the first chunk."""
    of = scene(corpus=CorpusShape(30, median_tokens=1000, questions=2, poison=3))
    corpus = Corpus.drawn(of.corpus, of.part_tokens, of.seed)
    report = one(of)
    assert (report.answered, report.failed) == (54, 6)
    first_tokens = sum(min(int(corpus.lengths_N[row]), of.chunk_tokens) for row in corpus.poison)
    assert report.toll.lost_s == pytest.approx(2 * FREE.encode_s / 2 * first_tokens / 1000)


def test_stragglers_are_the_same_workers_whoever_drives_them() -> None:
    of = scene(nodes=8, faults=Faults(straggler_share=0.3))
    assert joined(simulate(of, 4)).capacity == pytest.approx(one(of).capacity) != 16


def test_a_driver_that_cannot_keep_up_sets_the_pace_and_several_share_its_work() -> None:
    slow = replace(CPU_CORE, prepare_s=1.0)
    of = scene(documents=200, costs=slow, nodes=8, workers_per_node=4)
    alone, shared = one(of), joined(simulate(of, 8))
    assert alone.driver_share > 0.9 and alone.makespan_s > 4 * alone.bound_s
    assert shared.makespan_s < alone.makespan_s / 4
    assert shared.documents == alone.documents and shared.tokens == alone.tokens
    assert shared.work_s == pytest.approx(alone.work_s)


def test_more_drivers_than_nodes_are_refused() -> None:
    with pytest.raises(ValueError, match="drivers: 4; allowed: 1 to 3"):
        simulate(scene(), 4)


@pytest.mark.parametrize("changes", [{"nodes": 0}, {"corpus": CorpusShape(3, poison=4)}, {"batch_size": 0}])
def test_scenes_that_cannot_be_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="allowed"):
        scene(**changes)


def test_the_command_prints_a_row_for_each_number_of_drivers(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--documents", "1000", "--nodes", "2", "--drivers", "1", "2"])
    head, rule, *rows = capsys.readouterr().out.strip().split("\n")
    assert len(rows) == 2 and all(row.count("|") == head.count("|") == rule.count("|") for row in rows)


def test_the_command_prints_median_and_range_of_several_seeds(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["--documents", "300", "--nodes", "2", "--faults", "none"]
    alone = []
    for seed in ("4", "5", "6"):
        main([*command, "--seed", seed])
        alone.append([cell.strip() for cell in capsys.readouterr().out.strip().split("\n")[-1].split("|")])
    main([*command, "--seed", "4", "--seeds", "3"])
    row = [cell.strip() for cell in capsys.readouterr().out.strip().split("\n")[-1].split("|")]
    least, middle, most = sorted(cells[6] for cells in alone)
    assert row[6] == (middle if least == most else f"{middle} ({least} to {most})")
    assert row[1:5] == alone[0][1:5] and " to " in row[8], "tokens differ with the lengths"


@pytest.mark.parametrize("wrong", [["--seeds", "0"], ["--drivers", "3"], ["--nodes", "0"], ["--documents", "0"]])
def test_the_command_says_what_cannot_be(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--documents", "1000", "--nodes", "2", *wrong])
    assert "allowed: 1" in capsys.readouterr().err
