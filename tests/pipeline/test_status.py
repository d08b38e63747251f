"""What others see of a run, at any moment of it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from obstore.store import MemoryStore

from pipeline.directory import LocalDirectory, ObjectDirectory, RunDirectory
from pipeline.errors import DirectoryError
from pipeline.records import CommittedFile
from pipeline.status import read_answers, read_failures, read_status
from tests.pipeline.killed import QUESTIONS, ROWS, answer, commit_part, outcomes, start


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
