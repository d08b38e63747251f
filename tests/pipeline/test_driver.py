"""Whole runs over the tiny model: the same rows however they are worked, and honest ends when work fails."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from configs.schema import Job
from pipeline import driver
from pipeline.directory import existing_directory
from pipeline.driver import FEW_FAILURES, StopRequest, retry_failed, run
from pipeline.errors import DirectoryError, Interrupted, TooManyFailures
from pipeline.loop import Progress
from pipeline.pool import Finished, LocalPool
from pipeline.status import Phase, read_status
from tests.pipeline.jobs import Bench, by_question
from workers.engine import Engine
from workers.loading import load_engine, with_dtype
from workers.messages import Answered, Ask, Encode, Encoded
from workers.selection.profile import Profile

LENGTHS = [700, 0, 900, 300, 1500, 40, 260]
BLOCKS = {"block_tokens": 16, "widen_tokens": 4}
BUDGET = {"tokens": 96}
READING: dict[str, dict[str, Any]] = {
    "isolated": {},
    "carried": {"read": {"chunk_tokens": 128, "context": "carried"}},
    "kept": {"answer": {"over": "kept", "batch_size": 3}},
    "narrow": {"answer": {"over": "narrow", "narrow_budgets": 3, "batch_size": 3}},
    "two_round": {"answer": {"over": "two_round", "separator": "...", "batch_size": 3}},
    "adaptive": {
        "keep": {**BLOCKS, "scorer": {"kind": "window"}, "budget": {**BUDGET, "kind": "adaptive"}},
        "answer": {"over": "kept", "batch_size": 3},
    },
    "unknown": {
        "keep": {
            **BLOCKS,
            "question": "unknown",
            "scorer": {"kind": "expected"},
            "budget": {**BUDGET, "kind": "uniform"},
        },
        "answer": {"over": "kept", "reader": {"kind": "top_pages", "tokens": 32}, "batch_size": 3},
    },
}


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Bench:
    return Bench(tmp_path_factory.mktemp("driver"), tiny_model, LENGTHS)


@pytest.fixture(scope="module")
def clean_rows(bench: Bench) -> list[dict[str, Any]]:
    run(bench.job("clean"))
    return bench.rows("clean")


class Watched:
    """A real engine that writes down what it is asked, and fails where it is told to."""

    def __init__(self, engine: Engine, fails: Callable[[Encode | Ask], Exception | None]) -> None:
        self._engine, self._fails = engine, fails
        self._lock = threading.Lock()
        self.encodes: list[tuple[str, int]] = []
        self.hits = 0

    def work(self, task: Encode | Ask) -> Encoded | Answered:
        if error := self._fails(task):
            raise error
        result = self._engine.work(task)
        if isinstance(task, Encode) and isinstance(result, Encoded):
            with self._lock:
                self.encodes += [(task.document, chunk.index) for chunk in task.chunks]
                self.hits += result.cache_hits
        return result

    def free(self, names: Sequence[str]) -> None:
        self._engine.free(names)

    def close(self) -> None:
        self._engine.close()


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Watched]]:
    """Put watched engines into every run from here on; returns them as they are made."""

    def install(fails: Callable[[Encode | Ask], Exception | None] = lambda task: None) -> list[Watched]:
        made: list[Watched] = []

        def load(job: Job, profile: Profile | None) -> Watched:
            made.append(Watched(load_engine(job, profile), fails))
            return made[-1]

        monkeypatch.setattr(driver, "load_engine", load)
        return made

    return install


class ShufflingPool(LocalPool[Encode | Ask, Encoded | Answered]):
    """Gives results back late and out of order."""

    def __init__(self, make_engine: Callable[[], Engine], num_workers: int) -> None:
        super().__init__(make_engine, num_workers)
        self._held: list[Finished[Encoded | Answered]] = []
        self._random = random.Random(7)

    def wait(self, timeout_s: float) -> list[Finished[Encoded | Answered]]:
        self._held += super().wait(min(timeout_s, 0.01))
        self._random.shuffle(self._held)
        count = self._random.randint(0, len(self._held))
        given, self._held = self._held[:count], self._held[count:]
        return given


@pytest.mark.parametrize("reading", READING)
def test_rows_do_not_depend_on_workers_or_order(
    bench: Bench, reading: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    changes = READING[reading]
    run(bench.job(f"{reading}-1", **changes))
    run(bench.job(f"{reading}-2", pool={"kind": "local", "workers": 2}, **changes))
    monkeypatch.setattr(driver, "LocalPool", ShufflingPool)
    run(bench.job(f"{reading}-3", pool={"kind": "local", "workers": 3}, **changes))
    rows = bench.rows(f"{reading}-1")
    assert len(rows) == len(LENGTHS) * 2
    assert bench.rows(f"{reading}-2") == rows
    assert bench.rows(f"{reading}-3") == rows


@pytest.mark.parametrize("reading", READING)
def test_rows_do_not_depend_on_the_store(
    bench: Bench, reading: str, watch: Callable[..., list[Watched]], tmp_path: Path
) -> None:
    engines = watch()
    files = {"kind": "files", "path": str(tmp_path / "store")}
    without, filling, filled = {"tiers": []}, {"tiers": [files], "keep": True}, {"tiers": [files]}
    for name, store in (("without", without), ("filling", filling), ("filled", filled), ("emptied", filled)):
        run(bench.job(f"{reading}-{name}", store=store, **READING[reading]))
        assert bench.rows(f"{reading}-{name}") == bench.rows(f"{reading}-without")
    chunks = len(engines[0].encodes)
    # A document of one chunk is the same text to each of its two questions in the second round as in the first.
    again = 2 * sum(0 < length <= 128 for length in LENGTHS) if reading in ("narrow", "two_round") else 0
    assert [engine.hits for engine in engines] == [0, again, chunks, again]


@pytest.mark.parametrize("scorer", ["index", "reconstruct"])
def test_a_job_with_new_questions_reads_nothing_of_a_corpus_that_was_read(
    bench: Bench, scorer: str, watch: Callable[..., list[Watched]], tmp_path: Path
) -> None:
    engines = watch()
    keep = {
        "question": "unknown",
        "scorer": {"kind": scorer},
        "block_tokens": 16,
        "budget": {"kind": "uniform", "tokens": 96},
    }
    method = {"keep": keep, "answer": {"over": "reread" if scorer == "index" else "kept"}}
    store = {"keep": True, "tiers": [{"kind": "files", "path": str(tmp_path / "store")}]}
    asked = {"questions": [{"id": "what", "text": "What was signed in April?", "max_new_tokens": 6}]}
    run(bench.job(f"{scorer}-first", store=store, **method))
    run(bench.job(f"{scorer}-later", store=store, **method, **asked))
    run(bench.job(f"{scorer}-alone", store={"tiers": []}, **method, **asked))
    first, later, alone = engines
    assert (first.hits, later.hits, alone.hits) == (0, len(first.encodes), 0)
    assert bench.rows(f"{scorer}-later") == bench.rows(f"{scorer}-alone")


def test_every_chunk_is_encoded_once(bench: Bench, watch: Callable[..., list[Watched]]) -> None:
    engines = watch()
    run(bench.job("once", pool={"kind": "local", "workers": 2}))
    [engine] = engines
    assert len(set(engine.encodes)) == len(engine.encodes) == sum(-(-length // 128) for length in LENGTHS)


def test_a_finished_run_is_left_as_it_is(
    bench: Bench, clean_rows: list[dict[str, Any]], watch: Callable[..., list[Watched]]
) -> None:
    engines = watch()
    summary = run(bench.job("clean"))
    assert engines == []
    assert (summary.totals.answered, summary.totals.failed) == (12, 2)
    assert summary.answers == str(bench.root / "clean" / "data")


def test_another_job_in_the_same_directory_is_refused(bench: Bench, clean_rows: list[dict[str, Any]]) -> None:
    with pytest.raises(DirectoryError, match=r"read\.chunk_tokens: 128 -> 64"):
        run(bench.job("clean", read={"chunk_tokens": 64}))


def test_another_model_under_the_same_name_is_refused(
    bench: Bench, clean_rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    """The identity holds what the settings point at, not only the settings."""
    found = Profile.load(bench.profile)
    other = Profile(found.weights, ((0, 1),))
    other.save(bench.profile)
    try:
        with pytest.raises(DirectoryError, match=r"model\.profile"):
            run(bench.job("clean"))
    finally:
        found.save(bench.profile)


def test_what_a_killed_driver_left_behind_goes_when_a_finished_run_is_started_again(bench: Bench) -> None:
    job = bench.job("healed")
    run(job)
    [committed, *_] = sorted((bench.root / "healed" / "data").iterdir())
    left = committed.with_name(committed.name.replace("-e1-", "-e9-"))
    left.write_bytes(committed.read_bytes())
    assert run(job).totals.answered
    assert not left.exists() and committed.exists()


def test_auto_and_what_it_became_are_the_same_job(bench: Bench, clean_rows: list[dict[str, Any]]) -> None:
    settled = with_dtype(bench.job("clean"))
    assert settled.model.dtype != "auto"
    run(settled)
    assert bench.rows("clean") == clean_rows


def test_no_failure_at_all_may_be_allowed(tmp_path: Path, tiny_model: Path) -> None:
    bench = Bench(tmp_path, tiny_model, [100, 0])
    with pytest.raises(TooManyFailures, match=r"NullText 2\).*corpus\.parquet row 1: NullText"):
        run(bench.job(output={"max_failed_fraction": 0.0}))


def test_progress_ends_exact(bench: Bench) -> None:
    seen: list[Progress] = []
    run(bench.job("progress"), progress=seen.append)
    first, last = seen[0], seen[-1]
    assert (first.documents, first.tokens, first.parts) == (0, 0, 0)
    assert last.documents == last.documents_total == len(LENGTHS)
    assert last.parts == last.parts_total
    assert last.tokens == last.tokens_total == sum(LENGTHS)
    assert last.failed == 2
    assert all(a.tokens <= b.tokens and a.documents <= b.documents for a, b in pairwise(seen))


def test_progress_ends_exact_after_a_resume(bench: Bench) -> None:
    stop, seen = StopRequest(), list[Progress]()

    def stop_after_a_part(progress: Progress) -> None:
        if progress.parts:
            stop.set()

    with pytest.raises(Interrupted):
        run(bench.job("resumed"), progress=stop_after_a_part, stop=stop)
    assert read_status(existing_directory(bench.job("resumed").output.path)).phase == Phase.STOPPED
    run(bench.job("resumed"), progress=seen.append)
    assert seen[0].parts > 0
    assert seen[-1].tokens == seen[-1].tokens_total == sum(LENGTHS)


def test_a_stop_request_from_before_the_start(bench: Bench) -> None:
    stop = StopRequest()
    stop.set()
    with pytest.raises(Interrupted):
        run(bench.job("stopped"), stop=stop)


def test_expected_answers_are_checked_in_every_attempt(tmp_path: Path, tiny_model: Path) -> None:
    """The tiny model writes noise, and an empty line is in any text: that one is right, the others are not."""
    questions = {"question": ["Who?", "When?", "Why?"], "answer": ["Zebra ☃", "", "a\nb ☃"]}
    bench = Bench(tmp_path, tiny_model, [300, 200, 100], **questions)
    corpus = {"path": str(bench.corpus), "question": "question", "answer": "answer"}
    for _ in range(2):
        summary = run(bench.job(corpus=corpus, questions=()))
        assert [(check.id, check.correct) for check in summary.checked] == [
            ("doc0", False),
            ("doc1", True),
            ("doc2", False),
        ]
        assert (summary.num_checked, summary.num_correct) == (3, 1)


class TestFailures:
    """What fails ends as a dead letter, stops the run when it is too much, and gets a second chance."""

    @staticmethod
    def sick(*names: str) -> Callable[[Encode | Ask], Exception | None]:
        """Fails whatever touches these rows."""

        def fails(task: Encode | Ask) -> Exception | None:
            touched = [task.document] if isinstance(task, Encode) else [query.document for query in task.queries]
            return RuntimeError("sick") if any(t.rpartition(":")[2] in names for t in touched) else None

        return fails

    def test_an_infrastructure_error_is_a_retryable_dead_letter(
        self, bench: Bench, clean_rows: list[dict[str, Any]], watch: Callable[..., list[Watched]]
    ) -> None:
        watch(self.sick("2"))
        run(bench.job("sick", output={"max_failed_fraction": 1.0}))
        rows, clean = by_question(bench.rows("sick")), by_question(clean_rows)
        assert rows.keys() == clean.keys()
        for key in rows:
            if key[0] == "doc2":
                assert (rows[key]["error"], rows[key]["attempts"], rows[key]["retryable"]) == ("RuntimeError", 3, True)
            else:
                assert rows[key].keys() == clean[key].keys()

    def test_retry_failed_asks_again_and_keeps_what_was_answered(
        self, bench: Bench, watch: Callable[..., list[Watched]]
    ) -> None:
        job = bench.job("mended", answer={"batch_size": 1}, output={"max_failed_fraction": 1.0})
        watch(self.sick("2", "5"))
        run(job)
        watch(self.sick("5"))
        summary = retry_failed(job.output.path)
        assert summary.totals.retryable == 2
        assert {row["attempts"] for row in bench.rows("mended") if row.get("retryable")} == {6}
        engines = watch()
        summary = retry_failed(job.output.path)
        [engine] = engines
        assert summary.totals.retryable == 0
        assert {name.rpartition(":")[2] for name, _ in engine.encodes} == {"5"}
        run(bench.job("healthy", answer={"batch_size": 1}))
        assert by_question(bench.rows("mended")) == by_question(bench.rows("healthy"))
        engines.clear()
        assert retry_failed(job.output.path).totals == summary.totals
        assert engines == []

    def test_too_many_failures_stop_the_run_and_more_may_be_allowed(self, tmp_path: Path, tiny_model: Path) -> None:
        lengths = [300, 200] + [0] * FEW_FAILURES + [400]
        bench = Bench(tmp_path, tiny_model, lengths)
        with pytest.raises(TooManyFailures, match=r"output\.max_failed_fraction") as stopped:
            run(bench.job(output={"part_tokens": 1}))
        status = read_status(existing_directory(str(tmp_path / "out")))
        assert (status.phase, status.ends[0].error) == (Phase.STOPPED, f"TooManyFailures: {stopped.value}")
        assert status.totals.parts > 0
        summary = run(bench.job(output={"part_tokens": 1, "max_failed_fraction": 1.0}))
        assert (summary.totals.answered, summary.totals.failed) == (6, 2 * FEW_FAILURES)
        assert read_status(existing_directory(str(tmp_path / "out"))).epochs[-1].epoch == 2

    def test_a_few_failures_are_no_trend(self, tmp_path: Path, tiny_model: Path) -> None:
        bench = Bench(tmp_path, tiny_model, [100, 0, 0])
        summary = run(bench.job(output={"max_failed_fraction": 0.01}))
        assert (summary.totals.answered, summary.totals.failed) == (2, 4)

    def test_a_save_that_fails_ends_the_run_and_the_next_one_resumes(
        self, bench: Bench, clean_rows: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from pipeline.directory import LocalDirectory

        create = LocalDirectory.create

        def full(self: LocalDirectory, name: str, content: bytes) -> bool:
            if name.startswith("data/part-00002"):
                raise OSError(28, "No space left on device")
            return create(self, name, content)

        with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
            patch.setattr(LocalDirectory, "create", full)
            run(bench.job("full"))
        run(bench.job("full"))
        assert bench.rows("full") == clean_rows
