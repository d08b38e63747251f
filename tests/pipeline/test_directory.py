"""The law of run directories, for each implementation, and how a bad one is refused."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from obstore.store import LocalStore, MemoryStore

from pipeline.directory import (
    LocalDirectory,
    ObjectDirectory,
    RunDirectory,
    existing_directory,
    open_directory,
    prove_writable,
)
from pipeline.errors import DirectoryError

MAKERS: dict[str, Callable[[Path], RunDirectory]] = {
    "local": lambda path: LocalDirectory(path / "new" / "run"),
    "memory store": lambda path: ObjectDirectory(MemoryStore()),
    "memory store below a prefix": lambda path: ObjectDirectory(MemoryStore(), "some/where/"),
    "local store": lambda path: ObjectDirectory(LocalStore(path), "run/"),
}


@pytest.fixture(params=[*MAKERS, "s3"])
def directory(request: pytest.FixtureRequest, tmp_path: Path) -> RunDirectory:
    if request.param == "s3":
        return open_directory(f"{request.getfixturevalue('s3_bucket')}/{tmp_path.name}")
    return MAKERS[request.param](tmp_path)


def test_what_was_created_is_there_and_stays_as_it_is(directory: RunDirectory) -> None:
    assert directory.create("_job/a.json", b"first")
    assert not directory.create("_job/a.json", b"second")
    assert directory.read("_job/a.json") == b"first"


def test_what_was_never_created_is_none(directory: RunDirectory) -> None:
    assert directory.read("data/nothing") is None
    assert directory.names("data") == [] == directory.names("") == directory.top()
    directory.delete("data/nothing")


def test_names_are_sorted_whole_and_of_one_folder(directory: RunDirectory) -> None:
    for name in ("data/b", "data/a", "data-2/c", "_SUCCESS", "data/deep/d"):
        assert directory.create(name, b"")
    assert directory.names("data") == ["data/a", "data/b", "data/deep/d"]
    assert directory.names("") == sorted(["data/a", "data/b", "data/deep/d", "data-2/c", "_SUCCESS"])
    assert [name for name in directory.top() if name != "_job"] == ["_SUCCESS", "data", "data-2"]


def test_a_deleted_name_is_free_again(directory: RunDirectory) -> None:
    directory.create("data/a", b"1")
    directory.delete("data/a")
    assert directory.read("data/a") is None
    assert directory.create("data/a", b"2")
    assert directory.read("data/a") == b"2"


@pytest.mark.parametrize("size", [0, 1, 3_000_000])
def test_content_of_any_size_comes_back(directory: RunDirectory, size: int) -> None:
    content = os.urandom(size)
    assert directory.create("data/a", content)
    assert directory.read("data/a") == content


def test_of_many_at_once_one_creates(directory: RunDirectory) -> None:
    contents = [secrets.token_bytes(1000) for _ in range(8)]
    for round_number in range(5):
        name = f"_job/epoch/{round_number}.json"
        with ThreadPoolExecutor(8) as pool:
            won = list(pool.map(lambda content, name=name: directory.create(name, content), contents))
        assert won.count(True) == 1
        assert directory.read(name) == contents[won.index(True)]


def test_a_sweep_takes_nothing_that_was_created(directory: RunDirectory) -> None:
    directory.create("data/a", b"1")
    directory.sweep()
    assert directory.names("") == ["data/a"]


def test_staged_leftovers_are_not_names_and_are_swept(tmp_path: Path) -> None:
    directory = LocalDirectory(tmp_path)
    directory.create("data/a", b"1")
    leftover = tmp_path / "_job" / "staging" / "left"
    leftover.write_bytes(b"half of a fi")
    assert directory.names("") == ["data/a"]
    directory.sweep()
    assert list(leftover.parent.iterdir()) == []


class Swept(LocalDirectory):
    """Another driver sweeps right after each of the first ``sweeps`` files was staged."""

    sweeps = 3

    def _stage(self, staged: Path, content: bytes) -> None:
        super()._stage(staged, content)
        if self.sweeps:
            self.sweeps -= 1
            self.sweep()


def test_a_staged_file_that_another_driver_swept_is_staged_again(tmp_path: Path) -> None:
    directory = Swept(tmp_path)
    assert directory.create("data/a", b"1")
    assert directory.sweeps == 0
    assert directory.read("data/a") == b"1"


def test_a_new_directory_is_made_and_an_old_run_is_opened(tmp_path: Path) -> None:
    path = str(tmp_path / "deep" / "run")
    open_directory(path).create("_job/job.json", b"{}")
    assert open_directory(path).read("_job/job.json") == b"{}"
    assert existing_directory(f"file://{path}").names("") == ["_job/job.json"]


def test_opening_leaves_nothing_behind(tmp_path: Path) -> None:
    assert open_directory(str(tmp_path)).names("") == []


def test_a_directory_in_memory_is_one_for_the_process() -> None:
    url = f"memory:///{secrets.token_hex(4)}/run"
    open_directory(url).create("_job/job.json", b"{}")
    assert existing_directory(url).names("") == ["_job/job.json"]
    with pytest.raises(DirectoryError, match=r"no _job/job\.json"):
        existing_directory(url + "-2")


@pytest.mark.parametrize("where", ["disk", "object storage"])
def test_a_directory_of_something_else_is_refused(tmp_path: Path, where: str) -> None:
    path = str(tmp_path) if where == "disk" else f"memory:///{secrets.token_hex(4)}"
    foreign = LocalDirectory(tmp_path) if where == "disk" else open_directory(path)
    foreign.create("thesis.tex", b"years of work")
    for leftover in (tmp_path / "_job" / "staging", tmp_path / "_job"):
        if leftover.exists():
            leftover.rmdir()
    with pytest.raises(DirectoryError, match=r"holds something else \('thesis.tex'\)"):
        open_directory(path)
    assert LocalDirectory(tmp_path).top() == (["thesis.tex"] if where == "disk" else [])


@pytest.mark.parametrize("below", ["", "run"])
def test_a_file_in_the_way_is_named(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DirectoryError, match="a file is in the way"):
        open_directory(str(tmp_path / "file" / below))


def test_an_unwritable_directory_is_named() -> None:
    with pytest.raises(DirectoryError, match="/proc/foveate: cannot be written to"):
        open_directory("/proc/foveate")


def test_a_directory_without_a_run_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(DirectoryError, match=r"there is no _job/job\.json"):
        existing_directory(str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_scheme_is_named() -> None:
    with pytest.raises(DirectoryError, match="unknown scheme 'ftp'"):
        open_directory("ftp://host/run")


class Overwriting(ObjectDirectory):
    """A store that ignores the condition of a put, as some S3 imitations do."""

    def create(self, name: str, content: bytes) -> bool:
        self.delete(name)
        return super().create(name, content)


def test_storage_without_conditional_puts_is_refused() -> None:
    directory = Overwriting(MemoryStore(), url="memory:///imitation")
    with pytest.raises(DirectoryError, match="memory:///imitation: this storage cannot create-if-absent"):
        prove_writable(directory)
    assert directory.names("") == []
