"""What others see of a run, at any moment of it."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from obstore.store import MemoryStore

from pipeline.commit import CommittedFile
from pipeline.directory import LocalDirectory, ObjectDirectory, RunDirectory
from pipeline.errors import DirectoryError, Interrupted, TooManyFailures, WorkersUnavailable
from pipeline.outcome import Answer
from pipeline.rates import NUM_RECENT
from pipeline.sink import RunState
from pipeline.status import Phase, Status, StatusReader, read_answers, read_failures, read_status
from tests.pipeline.clock import Clock
from tests.pipeline.killed import QUESTIONS, ROWS, answer, commit_part, outcomes, plan_of, start


@pytest.fixture(params=["local", "object storage"])
def directory(request: pytest.FixtureRequest, tmp_path: Path) -> RunDirectory:
    return LocalDirectory(tmp_path / "run") if request.param == "local" else ObjectDirectory(MemoryStore(), "run/")


def test_a_run_that_just_began(directory: RunDirectory) -> None:
    start(directory)
    status = read_status(directory)
    assert (status.parts, status.documents, status.tokens) == (3, 3 * ROWS, 75)
    assert (status.totals.parts, status.totals.documents, status.tokens_committed) == (0, 0, 0)
    assert not status.is_finished
    assert (read_answers(directory).num_rows, read_failures(directory).num_rows) == (0, 0)


def test_a_run_in_its_middle_after_a_restart(directory: RunDirectory) -> None:
    commit_part(start(directory), 1)
    commit_part(start(directory), 0)
    directory.create("data/part-00002.0-e2-00000000.parquet", b"in the making")
    status = read_status(directory)
    _, failures = outcomes(1)
    assert (status.totals.parts, status.totals.documents, status.tokens_committed) == (2, 2 * ROWS, 50)
    assert status.totals.expected == status.totals.answered + status.totals.failed == 2 * ROWS * len(QUESTIONS)
    assert status.totals.failed == len(failures)
    assert status.totals.errors == {"WorkerLost": len(failures)}
    assert status.totals.retryable == sum(failure.retryable for failure in failures)
    assert status.totals.seconds_encode == 0.5 * status.totals.answered
    assert [(epoch.epoch, epoch.process) for epoch in status.epochs] == [(1, os.getpid()), (2, os.getpid())]
    assert status.orphans == ("data/part-00002.0-e2-00000000.parquet",)
    assert read_answers(directory).num_rows == status.totals.answered
    assert read_failures(directory)["id"].to_pylist() == [failure.id for failure in failures]


def test_the_tokens_of_a_document_count_once(directory: RunDirectory) -> None:
    commit_part(start(directory), 0)
    assert read_status(directory).totals.document_tokens == sum(100 + row for row in range(ROWS))
    assert read_status(directory).totals.generated_tokens == 3 * ROWS * len(QUESTIONS)


def test_a_finished_run_says_so(directory: RunDirectory) -> None:
    state = start(directory)
    for part in range(3):
        commit_part(state, part)
    totals = state.finish()
    status = read_status(directory)
    assert (status.is_finished, status.totals, status.orphans) == (True, totals, ())
    assert status.totals.parts == status.parts


def test_reading_writes_nothing(directory: RunDirectory) -> None:
    commit_part(start(directory), 1)
    before = {name: directory.read(name) for name in directory.names("")}
    read_status(directory), read_answers(directory), read_failures(directory)
    assert {name: directory.read(name) for name in directory.names("")} == before


def test_a_directory_without_a_run_says_so(directory: RunDirectory) -> None:
    with pytest.raises(DirectoryError, match="no run was started here"):
        read_status(directory)


def test_a_run_that_was_killed_before_its_plan_has_a_status(directory: RunDirectory) -> None:
    start(directory)
    directory.delete("_job/plan.json")
    assert read_status(directory).parts == 0


def test_a_damaged_file_is_named(directory: RunDirectory) -> None:
    state = start(directory)
    commit_part(state, 0)
    file = state.committed()[0].answers
    assert isinstance(file, CommittedFile)
    content = directory.read(file.name)
    assert content is not None
    directory.delete(file.name)
    directory.create(file.name, content[:-1] + b"?")
    with pytest.raises(DirectoryError, match=f"{file.name} is damaged"):
        read_answers(directory)


class Retried(ObjectDirectory):
    """Another driver recommits part 1 right before its answers are read, once."""

    pending = False

    def read(self, name: str) -> bytes | None:
        if self.pending and name.startswith("data/part-00001.0"):
            self.pending = False
            state = start(self)
            healed = [answer(failed.source_row, failed.question_id) for failed in state.failures(1)]
            assert state.recommit(1, healed, [], 0)
        return super().read(name)


def test_answers_are_whole_while_a_retry_replaces_them() -> None:
    directory = Retried(MemoryStore())
    commit_part(start(directory), 1)
    directory.pending = True
    assert read_answers(directory).num_rows == ROWS * len(QUESTIONS)
    assert not directory.pending


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock().put_in(monkeypatch)


def seconds(status: Status) -> float:
    """Over which the overall rate was measured."""
    assert status.rates.overall is not None
    return status.rates.overall.seconds


def test_rates_leave_the_pause_between_two_starts_out(directory: RunDirectory, clock: Clock) -> None:
    state = start(directory)
    clock.wait(10)
    commit_part(state, 0)
    clock.wait(3600)  # it works for a while, is killed, and nobody comes for an hour
    state = start(directory)
    clock.wait(20)
    commit_part(state, 2)
    status = read_status(directory, clock)
    assert status.rates.recent == status.rates.overall
    assert status.rates.overall is not None
    assert (status.rates.overall.seconds, status.rates.overall.parts) == (30, 2)
    assert status.rates.overall.documents_per_hour == 3600 * 2 * ROWS / 30
    assert status.rates.overall.tokens_per_s == status.totals.document_tokens / 30
    assert status.left_s == 15  # one part of three, as large as the others


def test_two_drivers_at_once_work_the_same_seconds(directory: RunDirectory, clock: Clock) -> None:
    both = [start(directory), start(directory)]
    for part, state in enumerate(both):
        clock.wait(10)
        commit_part(state, part)
    assert seconds(read_status(directory, clock)) == 20
    assert read_status(directory, clock).life.gap_s == 20


def test_the_recent_rate_is_that_of_the_last_commits(directory: RunDirectory, clock: Clock) -> None:
    state = start(directory, plan_of(NUM_RECENT + 20))
    for part in range(NUM_RECENT + 10):
        clock.wait(100 if part < 10 else 5)
        commit_part(state, part)
    status = read_status(directory, clock)
    assert status.rates.recent is not None and status.rates.recent.parts == NUM_RECENT
    assert status.rates.recent.seconds == NUM_RECENT * 5
    assert seconds(status) == 10 * 100 + NUM_RECENT * 5
    assert status.left_s == 10 * 5


@pytest.mark.parametrize(("waited_s", "phase"), [(0, Phase.WORKING), (80, Phase.WORKING), (3600, Phase.SILENT)])
def test_a_run_is_silent_when_its_next_sign_of_life_is_overdue(
    directory: RunDirectory, clock: Clock, waited_s: float, phase: Phase
) -> None:
    state = start(directory)
    clock.wait(40)
    commit_part(state, 0)
    clock.wait(waited_s)
    status = read_status(directory, clock)
    assert (status.phase, status.life.silent_s, status.life.gap_s) == (phase, waited_s, 40)


def leave(state: RunState, error: BaseException) -> None:
    """A driver's work ends by ``error``."""
    with pytest.raises(type(error)), state.farewell():
        raise error


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (Interrupted("asked to"), None),
        (KeyboardInterrupt(), None),
        (TooManyFailures("10 of 12\nfailed"), "TooManyFailures: 10 of 12 failed"),
        (WorkersUnavailable("x" * 10_000), f"WorkersUnavailable: {'x' * 480}"),
    ],
)
def test_a_driver_that_leaves_says_so(
    directory: RunDirectory, clock: Clock, error: BaseException, told: str | None
) -> None:
    state = start(directory)
    clock.wait(40)
    commit_part(state, 0)
    clock.wait(1)
    leave(state, error)
    clock.wait(5)
    status = read_status(directory, clock)
    assert (status.phase, status.life.silent_s, status.left_s) == (Phase.STOPPED, 5, 80)
    assert [(end.epoch, end.error) for end in status.ends] == [(1, told)]


def test_a_driver_that_could_not_save_does_not_try_again(directory: RunDirectory) -> None:
    state = start(directory)
    leave(state, OSError("no space left on device"))
    assert read_status(directory).ends == ()


class Unplugged(ObjectDirectory):
    """Takes nothing more."""

    def create(self, name: str, content: bytes) -> bool:
        raise OSError("no such host")


def test_a_farewell_that_cannot_be_saved_hides_no_error() -> None:
    store = MemoryStore()
    started = start(ObjectDirectory(store))
    leave(RunState(Unplugged(store), {}, started.plan, started.epoch), Interrupted("asked to"))


@pytest.mark.parametrize("resumed_s", [0, 0.7, 30])
def test_a_run_that_goes_on_is_not_stopped(directory: RunDirectory, clock: Clock, resumed_s: float) -> None:
    """Not even within the second, to which starts are known."""
    state = start(directory)
    clock.wait(40.2)
    commit_part(state, 0)
    leave(state, Interrupted("asked to"))
    clock.wait(resumed_s)
    resumed = start(directory)
    assert read_status(directory, clock).phase == Phase.WORKING
    clock.wait(1)
    leave(resumed, Interrupted("asked to"))
    assert read_status(directory, clock).phase == Phase.STOPPED


def test_of_two_drivers_one_stops_and_the_other_works(directory: RunDirectory, clock: Clock) -> None:
    one, other = start(directory), start(directory)
    clock.wait(40)
    commit_part(one, 0)
    leave(other, Interrupted("asked to"))
    assert read_status(directory, clock).phase == Phase.STOPPED, "so it seems, until the other commits"
    clock.wait(10)
    commit_part(one, 1)
    assert read_status(directory, clock).phase == Phase.WORKING
    commit_part(one, 2)
    one.finish()
    assert read_status(directory, clock).phase == Phase.FINISHED


def test_without_a_commit_nothing_is_claimed(directory: RunDirectory, clock: Clock) -> None:
    start(directory)
    clock.wait(5000)
    status = read_status(directory, clock)
    assert (status.phase, status.left_s, status.rates.overall) == (Phase.UNKNOWN, None, None)
    assert (status.life.silent_s, status.life.gap_s) == (5000, None)


def test_a_clock_behind_the_drivers_makes_no_negative_silence(directory: RunDirectory, clock: Clock) -> None:
    commit_part(start(directory), 0)
    clock.wait(-100)
    assert read_status(directory, clock).life.silent_s == 0


def test_a_retry_of_failures_is_a_sign_of_life_and_no_reading(directory: RunDirectory, clock: Clock) -> None:
    state = start(directory)
    for part in range(3):
        clock.wait(10)
        commit_part(state, part)
    state.finish()
    before = read_status(directory, clock)
    clock.wait(3600)
    retry = start(directory)
    clock.wait(2)
    healed = [answer(failed.source_row, failed.question_id) for failed in retry.failures(1)]
    assert retry.recommit(1, healed, [], 0)
    after = read_status(directory, clock)
    assert (after.rates, after.left_s, after.life.silent_s) == (before.rates, 0.0, 0)
    assert after.failures == () and len(before.failures) == 1


def test_failures_come_by_class_with_an_example(directory: RunDirectory) -> None:
    state = start(directory)
    commit_part(state, 0)
    answers, failures = outcomes(1)
    long = [replace(failed, error="Odd", message="x" * 10_000) for failed in failures[:1]]
    assert state.commit(1, answers, [*long, *failures[1:]], ROWS, ROWS * len(QUESTIONS))
    lost, odd = read_status(directory).failures
    assert (lost.error, lost.questions, lost.example and lost.example.message) == (
        "WorkerLost", len(failures) - 1, "gone"
    )  # fmt: skip
    assert lost.retryable == sum(failed.retryable for failed in failures[1:])
    assert (odd.questions, odd.example and len(odd.example.message)) == (1, 500)


def slow(row: int, seconds_encode: float) -> list[Answer]:
    return [replace(answer(row, question), seconds_encode=seconds_encode) for question in QUESTIONS]


def test_the_slowest_documents_of_all_parts(directory: RunDirectory) -> None:
    state = start(directory)
    times = {0: 1.0, 1: 9.0, 2: 3.0, 3: 2.0, 4: 8.0, 5: 0.1, 6: 7.0, 7: 6.0}
    for part in (1, 0):
        answers = [one for row in range(part * ROWS, part * ROWS + ROWS) for one in slow(row, times[row])]
        assert state.commit(part, answers, [], ROWS, ROWS * len(QUESTIONS))
    slowest = read_status(directory).slowest
    assert [document.id for document in slowest] == ["d1", "d4", "d6", "d7", "d2"]
    assert (slowest[0].seconds_encode, slowest[0].seconds_answer, slowest[0].tokens) == (27.0, 0.75, 101)


NEW = ("committed", "slowest", "examples")


def as_of_yesterday(directory: RunDirectory, keep: Callable[[str], bool] = lambda name: False) -> None:
    """Take from the records what the version before did not write; ``keep``: not from these."""
    for name in directory.names("_job"):
        record: dict[str, Any] = json.loads(directory.read(name) or b"")
        record |= {"format": 1} if name == "_job/job.json" else {}
        changed = {key: value for key, value in record.items() if key not in NEW or keep(name)}
        directory.delete(name)
        assert directory.create(name, json.dumps(changed).encode())


def test_a_run_of_an_earlier_version_is_read_and_goes_on(directory: RunDirectory, clock: Clock) -> None:
    commit_part(start(directory), 1)
    as_of_yesterday(directory)
    status = read_status(directory, clock)
    assert (status.totals.parts, status.untold, status.phase, status.slowest) == (1, 1, Phase.UNKNOWN, ())
    assert [(one.questions, one.retryable, one.example) for one in status.failures] == [
        (status.totals.failed, None, None)
    ]
    state = start(directory)
    clock.wait(10)
    commit_part(state, 0), commit_part(state, 2)
    assert state.finish().parts == 3
    status = read_status(directory, clock)
    assert (status.is_finished, status.untold, seconds(status), len(status.slowest)) == (True, 1, 10, 5)
    assert status.rates.overall is not None and status.rates.overall.parts == 2


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("_job/commits/part-00001.0.json", b"[]", "holds list"),
        ("_job/commits/part-00001.0.json", b"\x80\x04pickle", "is damaged"),
        ("_job/commits/part-00001.0.json", b"{}", "answers"),
        ("_job/epoch/1.json", b'{"epoch": 1}', "missing"),
        ("_job/end/1.json", b'{"epoch": 1}', "missing"),
        (
            "_job/end/1.json",
            b'{"epoch": 1, "ended": "late", "error": null}',
            r"end/1\.json is damaged: its time is 'late'",
        ),
        ("_job/plan.json", b"{", "plan.json is damaged"),
    ],
)
def test_a_damaged_record_is_named(directory: RunDirectory, name: str, content: bytes, words: str) -> None:
    state = start(directory)
    commit_part(state, 1)
    leave(state, Interrupted("asked"))
    directory.delete(name)
    directory.create(name, content)
    with pytest.raises(DirectoryError, match=words) as raised:
        read_status(directory)
    assert name in str(raised.value) and directory.url in str(raised.value)


@pytest.mark.parametrize("named", ["../../secret", "/etc/passwd", "data/../x.parquet", "_job/job.json", 7])
def test_a_record_that_names_a_file_beyond_its_part_is_refused(directory: RunDirectory, named: object) -> None:
    commit_part(start(directory), 1)
    change(directory, "_job/commits/part-00001.0.json", ("answers", "name"), named)
    with pytest.raises(DirectoryError, match=r"part-00001\.0\.json is damaged: it names"):
        read_status(directory)


def test_a_record_with_an_impossible_time_is_refused(directory: RunDirectory) -> None:
    commit_part(start(directory), 1)
    change(directory, "_job/commits/part-00001.0.json", ("committed",), "yesterday")
    with pytest.raises(DirectoryError, match="the commit of part 1 is damaged: its time is 'yesterday'"):
        read_status(directory)


def change(directory: RunDirectory, name: str, keys: tuple[str, ...], value: object) -> None:
    record = json.loads(directory.read(name) or b"")
    inner = record
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    directory.delete(name)
    assert directory.create(name, json.dumps(record).encode())


class Finishing(ObjectDirectory):
    """Another driver ends the run right after the commits were listed, once."""

    pending = False

    def names(self, folder: str) -> list[str]:
        found = super().names(folder)
        if self.pending and folder == "_job/commits":
            self.pending = False
            state = start(self)
            commit_part(state, 1), commit_part(state, 2)
            state.finish()
        return found


def test_a_run_that_ends_meanwhile_is_not_finished_with_parts_missing() -> None:
    directory = Finishing(MemoryStore())
    commit_part(start(directory), 0)
    reader, directory.pending = StatusReader(directory), True
    found = reader.read()
    assert not directory.pending
    assert not found.is_finished or found.totals.parts == 3
    assert reader.read().is_finished


class Counting(ObjectDirectory):
    """Counts the commit records that are read."""

    num_read = 0

    def read(self, name: str) -> bytes | None:
        self.num_read += name.startswith("_job/commits/")
        return super().read(name)


def test_looking_again_reads_only_new_commits() -> None:
    directory = Counting(MemoryStore())
    state = start(directory)
    commit_part(state, 0)
    reader = StatusReader(directory)
    reader.read()
    commit_part(state, 1)
    directory.num_read = 0
    assert (reader.read().totals.parts, directory.num_read) == (2, 1)


STEPS = st.one_of(
    st.tuples(st.just("start"), st.floats(-50, 1e6)),
    st.tuples(st.just("commit"), st.floats(-50, 1e6)),
    st.tuples(st.just("retry"), st.floats(-50, 1e6)),
)


@given(st.lists(STEPS, max_size=12), st.floats(-1e5, 1e5), st.booleans())
def test_no_history_has_a_negative_rate_or_an_endless_one(
    history: list[tuple[str, float]], look_s: float, tells: bool
) -> None:
    directory = ObjectDirectory(MemoryStore())
    with pytest.MonkeyPatch.context() as patch:
        clock = Clock().put_in(patch)
        states, left = [start(directory, plan_of(6))], list(range(6))
        for what, waited_s in history:
            clock.wait(waited_s)
            if what == "start":
                states.append(start(directory))
            elif what == "commit" and left:
                commit_part(states[int(abs(waited_s)) % len(states)], left.pop())
            elif what == "retry":
                for part, record in states[-1].committed().items():
                    remaining = states[-1].failures(part)
                    assert states[-1].recommit(part, [], remaining, record.revision)
        if not tells:
            as_of_yesterday(directory, keep=lambda name: "part-00005" in name)
        clock.wait(look_s)
        status = read_status(directory, clock)
    for rate in (status.rates.overall, status.rates.recent):
        if rate is not None:
            assert 0 <= rate.tokens_per_s < math.inf and 0 <= rate.documents_per_hour < math.inf
            assert rate.seconds > 0 and rate.documents == ROWS * rate.parts
    for time in (status.left_s, status.life.silent_s, status.life.gap_s):
        assert time is None or 0 <= time < math.inf
    assert status.totals.parts == 6 - len(left)
