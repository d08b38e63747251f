"""``foveate status``: what it prints for people and for programs, and how watching ends."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline import cli
from pipeline.directory import RunDirectory, open_directory
from pipeline.errors import Interrupted
from tests.pipeline.clock import Clock
from tests.pipeline.killed import QUESTIONS, ROWS, commit_part, outcomes, start
from tests.pipeline.test_cli import foveate

EVIL = "\x1b[2J\x1b]0;owned\x07[red]a\nb\r\u202e\ud800"


@pytest.fixture(autouse=True)
def _wide_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture(params=["local", "s3"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A run's directory, by path or by URL."""
    if request.param == "local":
        return str(tmp_path / "run")
    return f"{request.getfixturevalue('s3_bucket')}/{request.node.name}"


def interrupted_run(directory: RunDirectory, clock: Clock) -> None:
    """Two starts with an hour between them, and two parts of three; the second has failures."""
    state = start(directory)
    clock.wait(10)
    commit_part(state, 0)
    clock.wait(3600)
    state = start(directory)
    clock.wait(30)
    commit_part(state, 1)


def printed(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert foveate("status", *arguments) == 0
    return str(capsys.readouterr().out)


def test_people_see_progress_pace_failures_and_the_slowest(
    where: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = Clock().put_in(monkeypatch)
    interrupted_run(open_directory(where), clock)
    text = printed(capsys, where)
    for words in (
        "2 of 3 committed (67%)",
        "8 of 12 (67%)",
        "722 read, about 67% of the run",
        "18 tokens/s, 720 documents/hour over 40s of work",
        "about 20s",
        "engine time  16s: encode 10s, answer 5.2s",
        "WorkerLost: 3 questions",
        "such as d6 (a.parquet row 6) at encode: gone",
        "2.2s (encode 1.5s, answer 0.75s), 100 tokens, 44 tokens/s: d0 (a.parquet row 0)",
        "starts       2, the last on",
    ):
        assert re.sub(r"\s+", " ", words) in re.sub(r"\s+", " ", text), text


KEYS = {
    "directory", "state", "parts", "documents", "tokens", "questions", "rate", "recent_rate", "seconds_left",
    "last_sign_of_life", "seconds_silent", "longest_gap_seconds", "engine_seconds", "failures", "slowest", "starts",
    "unnamed_files",
}  # fmt: skip


def test_programs_get_one_line_with_the_documented_keys(
    where: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = Clock().put_in(monkeypatch)
    interrupted_run(open_directory(where), clock)
    out = printed(capsys, where, "--json")
    found = json.loads(out)
    assert out.count("\n") == 1 and found.keys() == KEYS
    assert found["rate"] == {"tokens_per_s": 722 / 40, "documents_per_hour": 720.0, "parts": 2, "seconds": 40.0}
    assert (found["seconds_left"], found["parts"]["committed"], found["directory"]) == (20.0, 2, where)
    assert found["last_sign_of_life"] == "2026-01-01T13:00:40.000+00:00"
    assert [one["error"] for one in found["failures"]] == ["WorkerLost"]
    assert len(found["slowest"]) == 5


def test_the_keys_are_those_of_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = Clock().put_in(monkeypatch)
    state = start(open_directory(str(tmp_path / "run")))
    clock.wait(1)
    commit_part(state, 1)
    found = json.loads(printed(capsys, tmp_path / "run", "--json"))
    page = (Path(__file__).parents[2] / "docs" / "output.md").read_text()
    table = page[page.index("## `foveate status --json`") :]
    named = {word for row in re.findall(r"^\| (.*?) \|", table, re.MULTILINE) for word in re.findall(r"`([^`]+)`", row)}
    assert leaves(found) == named


def leaves(value: Any, prefix: str = "") -> set[str]:
    """Paths to every value: ``parts.total``, ``slowest[].id``."""
    if isinstance(value, dict) and value:
        return {leaf for key, inner in value.items() for leaf in leaves(inner, f"{prefix}.{key}".lstrip("."))}
    if isinstance(value, list) and value:
        return {leaf for inner in value for leaf in leaves(inner, f"{prefix}[]")}
    return {prefix}


def test_before_the_first_commit_it_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start(open_directory(str(tmp_path / "run")))
    text = printed(capsys, tmp_path / "run")
    assert "no commit yet: started" in text and "time left    unknown" in text and "rate " not in text


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (Interrupted("asked to"), "ago, as it was asked to; the command that started it goes on with it"),
        (RuntimeError(f"[b]{EVIL}"), "ago, by an error (RuntimeError: [b] [2J ]0;owned [red]a b"),
    ],
)
def test_a_run_that_was_stopped_says_why(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: Exception,
    words: str,
) -> None:
    Clock().put_in(monkeypatch)
    state = start(open_directory(str(tmp_path / "run")))
    with pytest.raises(type(error)), state.farewell():
        raise error
    text = printed(capsys, tmp_path / "run")
    assert "state        stopped " in text and words in text
    [told] = json.loads(printed(capsys, tmp_path / "run", "--json"))["starts"]
    assert (told["ended"], told["error"] is None) == ("2026-01-01T12:00:00.000+00:00", isinstance(error, Interrupted))


def test_foreign_text_moves_no_cursor_and_forges_no_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answers, failures = outcomes(1)
    wild = [replace(one, id=f"d{EVIL}", source_file="a.parquet") for one in answers]
    failed = [replace(one, id=EVIL, message=EVIL, error=f"Odd{EVIL}") for one in failures]
    state = start(open_directory(str(tmp_path / "run")))
    assert state.commit(1, wild, failed, ROWS, ROWS * len(QUESTIONS))
    text = printed(capsys, tmp_path / "run")
    assert "owned" in text and "[red]a b" in text
    assert all(letter.isprintable() for letter in text.replace("\n", ""))
    assert not [line for line in text.splitlines() if line.startswith("b")]
    line = printed(capsys, tmp_path / "run", "--json")
    assert line.isascii() and json.loads(line)["failures"][0]["example"]["message"].startswith("\x1b[2J")


class Sleeping(SimpleNamespace):
    """``time`` as the command line sees it, whose ``sleep`` does ``then`` instead."""

    def __init__(self, then: Callable[[], object]) -> None:
        super().__init__(sleep=lambda seconds: then())


def test_watching_ends_when_the_run_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    state, left = start(open_directory(str(tmp_path / "run"))), [0, 1, 2]

    def commit_one() -> None:
        commit_part(state, left.pop())
        if not left:
            state.finish()

    monkeypatch.setattr(cli, "time", Sleeping(commit_one))
    lines = [json.loads(line) for line in printed(capsys, tmp_path / "run", "--json", "--watch").splitlines()]
    assert [line["parts"]["committed"] for line in lines] == [0, 1, 2, 3]
    assert [line["state"] == "finished" for line in lines] == [False, False, False, True]


def test_ctrl_c_ends_watching(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    start(open_directory(str(tmp_path / "run")))
    monkeypatch.setattr(cli, "time", Sleeping(interrupt))
    assert foveate("status", tmp_path / "run", "--watch") == 130


@pytest.mark.parametrize("options", [(), ("--json",), ("--watch",)])
@pytest.mark.parametrize("place", ["missing", "file", "empty", "unknown://x/y"])
def test_what_is_no_runs_directory_is_named(
    tmp_path: Path, place: str, options: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    path = place if "://" in place else str(tmp_path / place)
    assert foveate("status", path, *options) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("foveate: ") and path in err and "Traceback" not in err


def test_a_damaged_record_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = open_directory(str(tmp_path / "run"))
    commit_part(start(directory), 1)
    (tmp_path / "run" / "_job" / "commits" / "part-00001.0.json").write_bytes(b"\x80\x05K\x01.")
    assert foveate("status", tmp_path / "run") == 2
    assert "_job/commits/part-00001.0.json is damaged" in capsys.readouterr().err
