"""The run's state: what is committed, by whom, and that nothing is lost or doubled whatever happens."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from obstore.store import MemoryStore

from pipeline.directory import LocalDirectory, ObjectDirectory, RunDirectory, existing_directory, open_directory
from pipeline.errors import DirectoryError, IncompleteRun
from pipeline.plan import Plan
from pipeline.sink import RunState
from pipeline.status import read_answers, read_failures, read_status
from pipeline.tables import ANSWER_SCHEMA, FAILURE_SCHEMA, to_answers, to_failures, to_parquet
from tests.pipeline.killed import (
    IDENTITY,
    JOB,
    QUESTIONS,
    ROWS,
    answer,
    commit_all,
    commit_part,
    failure,
    outcomes,
    plan_of,
    retry_all,
    start,
)

EXPECTED = ROWS * len(QUESTIONS)


@pytest.fixture(params=["local", "object storage"])
def directory(request: pytest.FixtureRequest, tmp_path: Path) -> RunDirectory:
    return LocalDirectory(tmp_path / "run") if request.param == "local" else ObjectDirectory(MemoryStore(), "run/")


def finished(directory: RunDirectory) -> RunState:
    state = start(directory)
    assert all(commit_part(state, part.index) for part in state.plan.parts)
    state.finish()
    return state


def rows_of(directory: RunDirectory) -> tuple[list[dict[str, object]], list[dict[str, object]]]:
    return read_answers(directory).to_pylist(), read_failures(directory).to_pylist()


def orphans(directory: RunDirectory) -> list[str]:
    return list(read_status(directory).orphans)


@pytest.fixture(scope="session")
def clean(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict[str, object]], list[dict[str, object]]]:
    path = tmp_path_factory.mktemp("clean")
    commit_all(path)
    return rows_of(existing_directory(str(path)))


def test_a_finished_run_has_every_outcome_once(directory: RunDirectory) -> None:
    state = finished(directory)
    assert state.is_finished
    answers, failures = rows_of(directory)
    keys = [(row["source_row"], row["question_id"]) for row in answers + failures]
    assert len(keys) == len(set(keys)) == 3 * EXPECTED
    assert read_answers(directory).schema == ANSWER_SCHEMA
    assert read_failures(directory).schema == FAILURE_SCHEMA
    assert answers[0]["spans"] == [
        {"start": 0, "end": 5, "share": 0.5, "text": "hello"},
        {"start": 9, "end": 12, "share": 0.25, "text": "you"},
    ]
    folders = {name.split("/")[0] for name in directory.names("")}
    assert folders == {"_SUCCESS", "_job", "data", "failed"}


def test_rows_are_sorted_whatever_order_they_ended_in(directory: RunDirectory) -> None:
    state = start(directory)
    answers, failures = outcomes(1)
    random.Random(0).shuffle(answers)
    assert state.commit(1, answers, failures[::-1], ROWS, EXPECTED)
    assert (state.answers(1), state.failures(1)) == outcomes(1)


def test_a_rows_own_questions_stay_in_their_order(directory: RunDirectory) -> None:
    state = start(directory)
    names = ["who", "what", *(f"row-{index}" for index in range(12))]
    answers = [answer(row, name) for row in range(ROWS) for name in names]
    assert state.commit(0, answers[::-1], [], ROWS, len(answers))
    assert state.answers(0) == answers


def test_a_kind_of_outcome_that_is_absent_has_no_file(directory: RunDirectory) -> None:
    state = start(directory)
    only_failures = [failure(row, "who") for row in range(ROWS)]
    assert state.commit(0, [answer(row, "who") for row in range(ROWS)], [], ROWS, ROWS)
    assert state.commit(1, [], [replace(f, source_row=f.source_row + ROWS) for f in only_failures], ROWS, ROWS)
    assert state.commit(2, [], [], ROWS, 0)
    assert [len(directory.names(folder)) for folder in ("data", "failed")] == [1, 1]
    totals = state.finish()
    assert (totals.answered, totals.failed, totals.documents) == (ROWS, ROWS, 3 * ROWS)


def test_text_that_utf8_cannot_hold_does_not_stop_a_commit() -> None:
    odd = replace(failure(0, "who"), question="lone \ud800 surrogate", message="nul \0 and 😀")
    (read,) = to_failures(to_parquet([odd], FAILURE_SCHEMA))
    assert read == replace(odd, question="lone \\ud800 surrogate")


def test_outcomes_read_back_equal() -> None:
    answers, failures = outcomes(1)
    assert to_answers(to_parquet(answers, ANSWER_SCHEMA)) == answers
    assert to_failures(to_parquet(failures, FAILURE_SCHEMA)) == failures


def test_a_resume_keeps_plan_and_commits_and_takes_the_next_epoch(directory: RunDirectory) -> None:
    first = start(directory)
    assert commit_part(first, 1)
    second = start(directory, plan_of(9))
    assert (first.epoch, second.epoch) == (1, 2)
    assert second.plan == plan_of(3)
    assert list(second.committed()) == [1]
    assert not commit_part(second, 1)
    assert commit_part(second, 0) and commit_part(first, 2)
    assert second.finish() == first.finish()
    assert {record.epoch for record in second.committed().values()} == {1, 2}


def test_a_resume_does_not_plan_again(directory: RunDirectory) -> None:
    start(directory)

    def never() -> Plan:
        raise AssertionError("planned twice")

    RunState.start(directory, JOB, IDENTITY, never)


def test_another_job_is_refused_by_the_keys_that_differ(directory: RunDirectory) -> None:
    start(directory)
    before = {name: directory.read(name) for name in directory.names("")}
    with pytest.raises(DirectoryError, match="another job") as error:
        RunState.start(directory, JOB, {"read": {"chunk_tokens": 1024}, "model": "tiny"}, plan_of)
    assert "read.chunk_tokens: 2048 -> 1024" in str(error.value)
    assert "model" not in str(error.value)
    assert {name: directory.read(name) for name in directory.names("")} == before


def test_settings_outside_the_identity_may_change(directory: RunDirectory) -> None:
    start(directory)
    assert RunState.start(directory, {**JOB, "pool": "ray"}, IDENTITY, plan_of).epoch == 2


def test_a_plan_that_fails_leaves_no_job_behind(directory: RunDirectory) -> None:
    def failing() -> Plan:
        raise DirectoryError("cannot plan")

    with pytest.raises(DirectoryError, match="cannot plan"):
        RunState.start(directory, JOB, IDENTITY, failing)
    assert directory.names("") == []


@pytest.mark.parametrize(
    ("content", "words"), [(b"{half", r"_job/job\.json is damaged"), (b'{"format": 99}', "written in format 99")]
)
def test_a_record_that_cannot_be_read_is_named(directory: RunDirectory, content: bytes, words: str) -> None:
    directory.create("_job/job.json", content)
    with pytest.raises(DirectoryError, match=words):
        start(directory)


def test_a_part_commits_once_and_the_second_leaves_nothing(directory: RunDirectory) -> None:
    state = start(directory)
    assert commit_part(state, 1)
    assert not commit_part(state, 1)
    assert not commit_part(start(directory), 1)
    assert orphans(directory) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda answers: (answers, ROWS - 1, EXPECTED), "3 documents were read, 4 are planned"),
        (lambda answers: (answers[1:], ROWS, EXPECTED), "12 questions, but 11 outcomes"),
        (
            lambda answers: ([answers[0], *answers[:-1]], ROWS, EXPECTED),
            "'who' of a.parquet row 0 ended more than once",
        ),
    ],
)
def test_a_commit_that_does_not_add_up_is_refused(
    directory: RunDirectory, change: Callable[[list[object]], tuple[list[object], int, int]], words: str
) -> None:
    state = start(directory)
    answers, documents, expected = change(list(outcomes(0)[0]))
    with pytest.raises(IncompleteRun, match=words):
        state.commit(0, answers, [], documents, expected)  # type: ignore[arg-type]
    assert state.committed() == {} and directory.names("data") == []


def test_a_run_with_a_part_missing_does_not_finish(directory: RunDirectory) -> None:
    state = start(directory)
    commit_part(state, 1)
    with pytest.raises(IncompleteRun, match="2 parts are not committed, the first is part 0"):
        state.finish()
    assert not state.is_finished


def test_a_run_whose_committed_file_is_gone_does_not_finish(directory: RunDirectory) -> None:
    state = start(directory)
    for part in range(3):
        commit_part(state, part)
    lost = directory.names("data")[1]
    directory.delete(lost)
    with pytest.raises(IncompleteRun, match=f"{lost} was committed and is gone"):
        state.finish()
    assert not state.is_finished


def test_finishing_again_changes_nothing(directory: RunDirectory) -> None:
    state = finished(directory)
    before = directory.names("")
    assert state.finish() == state.finish()
    assert directory.names("") == before


def test_finish_sweeps_what_no_commit_names_and_nothing_else(directory: RunDirectory) -> None:
    state = start(directory)
    directory.create("data/part-00000.0-e1-0badf00d.parquet", b"left by a killed driver")
    directory.create("data/notes.txt", b"somebody's own")
    for part in range(3):
        commit_part(state, part)
    assert orphans(directory) == ["data/part-00000.0-e1-0badf00d.parquet"]
    state.finish()
    assert orphans(directory) == []
    assert directory.read("data/notes.txt") == b"somebody's own"


def test_finish_sweeps_what_other_drivers_staged_and_left(tmp_path: Path) -> None:
    state = start(LocalDirectory(tmp_path))
    for part in range(3):
        commit_part(state, part)
    (tmp_path / "_job" / "staging" / "left").write_bytes(b"half of a fi")
    state.finish()
    assert list((tmp_path / "_job" / "staging").iterdir()) == []


def test_a_retry_adds_answers_and_replaces_the_files(directory: RunDirectory) -> None:
    state = finished(directory)
    old_files = [file.name for file in state.committed()[1].files]
    first, *rest = state.failures(1)
    healed = [answer(first.source_row, first.question_id)]
    assert state.recommit(1, healed, rest, 0)
    assert state.failures(1) == rest
    assert set(state.answers(1)) == {*outcomes(1)[0], *healed}
    assert [name for name in directory.names("") if name in old_files] == []
    totals = state.finish()
    assert (totals.expected, totals.failed) == (3 * EXPECTED, len(rest))
    assert state.recommit(1, [answer(f.source_row, f.question_id) for f in rest], [], 1)
    assert read_failures(directory).num_rows == 0
    assert state.finish().answered == 3 * EXPECTED


def test_a_retry_from_an_old_revision_is_too_late(directory: RunDirectory) -> None:
    one, other = finished(directory), start(directory)
    healed = [answer(f.source_row, f.question_id) for f in one.failures(1)]
    assert one.recommit(1, healed, [], 0)
    assert not other.recommit(1, healed, [], 0)
    assert orphans(directory) == []
    assert len(other.answers(1)) == EXPECTED


class Interrupted(ObjectDirectory):
    """Lets another driver act right before a name that begins with ``at`` is created or read, once."""

    at = "_job/commits/"
    interruption: Callable[[], object] | None = None

    def create(self, name: str, content: bytes) -> bool:
        self._interrupt(name)
        return super().create(name, content)

    def read(self, name: str) -> bytes | None:
        self._interrupt(name)
        return super().read(name)

    def _interrupt(self, name: str) -> None:
        if name.startswith(self.at) and self.interruption is not None:
            act, self.interruption = self.interruption, None
            act()


def test_a_driver_that_comes_too_late_by_one_step_loses_only_its_own_files() -> None:
    store = MemoryStore()
    slow, quick = Interrupted(store), ObjectDirectory(store)
    state = start(slow)
    slow.interruption = lambda: finished(quick)
    assert not commit_part(state, 1)
    assert orphans(quick) == []
    assert set(start(quick).answers(1)) == set(outcomes(1)[0])


def test_a_sweep_spares_a_retry_that_is_about_to_commit() -> None:
    store = MemoryStore()
    slow, other = Interrupted(store), ObjectDirectory(store)
    finished(other)
    state = start(slow)
    slow.interruption = lambda: start(other).finish()
    healed = [answer(f.source_row, f.question_id) for f in state.failures(1)]
    assert state.recommit(1, healed, [], 0)
    assert len(start(other).answers(1)) == EXPECTED
    state.finish()


@pytest.mark.parametrize("at", ["_job/commits/part-00001.1", "data/part-00001.0"])
def test_two_retries_at_once_make_one_revision(at: str) -> None:
    store = MemoryStore()
    slow, quick = Interrupted(store), ObjectDirectory(store)
    finished(quick)
    state = start(slow)
    slow.at = at
    healed = [answer(f.source_row, f.question_id) for f in state.failures(1)]
    slow.interruption = lambda: start(quick).recommit(1, healed, [], 0)
    assert not state.recommit(1, healed, [], 0)
    assert state.finish().answered == 3 * EXPECTED
    assert orphans(quick) == []


class Forgetful(ObjectDirectory):
    """A store that did what it was asked and lost its own reply: a repeated put finds the name taken."""

    def create(self, name: str, content: bytes) -> bool:
        super().create(name, content)
        return super().create(name, content) or not name.startswith(("_job/commits/", "_job/epoch/"))


def test_a_lost_reply_is_not_another_driver() -> None:
    directory = Forgetful(MemoryStore())
    state = start(directory)
    assert state.epoch == 1
    assert commit_part(state, 0)
    assert state.answers(0) == outcomes(0)[0]


class Breaking(ObjectDirectory):
    """A store whose connection breaks: before or after a name that begins with ``breaks_at`` was created."""

    breaks_at = "nothing"
    after = False

    def create(self, name: str, content: bytes) -> bool:
        breaks = name.startswith(self.breaks_at)
        if breaks and not self.after:
            raise OSError(errno.EIO, "connection lost")
        created = super().create(name, content)
        if breaks:
            raise OSError(errno.EIO, "connection lost")
        return created


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("name", ["data/", "failed/", "_job/commits/"])
def test_a_save_that_fails_is_an_error_and_the_run_resumes(name: str, after: bool) -> None:
    directory = Breaking(MemoryStore())
    state = start(directory)
    directory.breaks_at, directory.after = name, after
    with pytest.raises(OSError, match="connection lost"):
        commit_part(state, 1)
    directory.breaks_at = "nothing"
    assert name == "_job/commits/" or orphans(directory) == []
    assert (1 in state.committed()) == (name == "_job/commits/" and after)
    if 1 in state.committed():
        assert (state.answers(1), state.failures(1)) == outcomes(1)
    resumed = start(directory)
    for part in range(3):
        commit_part(resumed, part)
    assert resumed.finish().expected == 3 * EXPECTED
    assert orphans(directory) == []


@pytest.fixture()
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    mounted = tmp_path / "disk"
    mounted.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(mounted)], capture_output=True)
    if made.returncode:
        pytest.skip("needs root, to mount a tmpfs; the test of a limited file size covers the rest")
    yield mounted
    subprocess.run(["umount", str(mounted)], check=True)


def test_a_full_disk_fails_clearly_and_the_run_resumes(tiny_disk: Path) -> None:
    directory = open_directory(str(tiny_disk / "run"))
    state = start(directory)
    assert commit_part(state, 0)
    free = os.statvfs(tiny_disk).f_bavail * os.statvfs(tiny_disk).f_frsize
    filler = tiny_disk / "filler"
    filler.write_bytes(bytes(free - 3 * 4096))
    answers, failures = outcomes(1)
    noise = [replace(item, answer=os.urandom(5000).hex()) for item in answers]
    with pytest.raises(OSError, match="No space left on device"):
        state.commit(1, noise, failures, ROWS, EXPECTED)
    assert [list(state.committed()), orphans(directory)] == [[0], []]
    filler.unlink()
    commit_all(tiny_disk / "run")
    assert read_status(directory).is_finished


def script(mode: str, path: Path) -> str:
    command = [sys.executable, "-m", "tests.pipeline.killed", mode, str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture()
def quick_path(tmp_path: Path) -> Iterator[Path]:
    """In memory where there is such a place: hundreds of runs sync thousands of files."""
    memory = Path("/dev/shm")
    path = memory / f"foveate-{tmp_path.name}-{os.getpid()}" if os.access(memory, os.W_OK) else tmp_path / "quick"
    path.mkdir()
    yield path
    shutil.rmtree(path)


def test_a_file_that_cannot_grow_fails_clearly_and_the_run_resumes(
    quick_path: Path, clean: tuple[list[dict[str, object]], list[dict[str, object]]]
) -> None:
    assert script("limit", quick_path) == f"OSError {errno.EFBIG}\n"
    directory = existing_directory(str(quick_path))
    assert (read_status(directory).totals.parts, orphans(directory)) == (0, [])
    commit_all(quick_path)
    assert rows_of(directory) == clean


@pytest.mark.parametrize("mode", ["commit", "retry"])
def test_killed_at_every_step_a_rerun_has_the_rows_of_a_clean_run(
    quick_path: Path, mode: str, clean: tuple[list[dict[str, object]], list[dict[str, object]]], tmp_path: Path
) -> None:
    expected = clean
    if mode == "retry":
        commit_all(tmp_path / "clean")
        retry_all(tmp_path / "clean")
        expected = rows_of(existing_directory(str(tmp_path / "clean")))
        assert expected[1] == []
    steps = int(script(mode, quick_path))
    assert steps > 40
    for step in range(1, steps + 1):
        path = quick_path / str(step)
        directory = existing_directory(str(path))
        assert rows_of(directory) == expected, f"killed at step {step}"
        assert read_status(directory).is_finished
        left = [found for found in path.rglob("*") if "staging" in found.parts[:-1]]
        assert (orphans(directory), left) == ([], []), f"killed at step {step}"


def test_drivers_at_once_commit_every_part_once(quick_path: Path) -> None:
    script("race", quick_path)
    won = [json.loads((quick_path / f"won-{driver}.json").read_text()) for driver in range(4)]
    assert sorted(part for driver in won for part in driver["parts"]) == list(range(12))
    assert sorted(driver["epoch"] for driver in won) == [1, 2, 3, 4]
    directory = existing_directory(str(quick_path / "run"))
    owners = {record.part: record.epoch for record in start(directory).committed().values()}
    assert owners == {part: driver["epoch"] for driver in won for part in driver["parts"]}
    answers, failures = rows_of(directory)
    keys = {(row["source_row"], row["question_id"]) for row in answers + failures}
    assert len(keys) == len(answers) + len(failures) == 12 * EXPECTED
    assert orphans(directory) == []
