"""Log lines: for people, and as JSON with what is known of document, part, epoch, task and engine."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from configs.schema import RayWorkers
from pipeline.pool import LocalPool
from tests.docs.pages import ROOT
from tests.pipeline.jobs import Bench
from workers import logs
from workers.logs import JsonLines, PlainLines, bound
from workers.messages import Answered, Ask, Encode, Encoded, Probe, Query
from workers.subject import subject


def record(message: str = "said", level: int = logging.INFO, **extra: Any) -> logging.LogRecord:
    return logging.getLogger("pipeline.test").makeRecord("pipeline.test", level, "", 0, message, (), None, extra=extra)


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "_process", {})


def test_a_line_is_one_json_object_with_what_is_known() -> None:
    logs.known(epoch=3, engine="here")
    with bound(document="a.parquet:1", task=4):
        line = json.loads(JsonLines().format(record("two\nlines, and ü", task=5, part=6, other="left out")))
    assert line.pop("time").endswith("+00:00")
    assert line == {
        "level": "INFO", "logger": "pipeline.test", "message": "two\nlines, and ü",
        "document": "a.parquet:1", "task": 5, "part": 6, "epoch": 3, "engine": "here",
    }  # fmt: skip
    assert "\n" not in JsonLines().format(record("two\nlines"))


def test_what_is_bound_holds_inside_and_in_this_thread_only() -> None:
    seen = []
    with bound(document="a"):
        with bound(document="b", part=1):
            assert PlainLines().format(record("said")) == "said [document b, part 1]"
        thread = threading.Thread(target=lambda: seen.append(PlainLines().format(record("said"))))
        thread.start()
        thread.join()
        assert PlainLines().format(record("said")) == "said [document a]"
    assert PlainLines().format(record("said")) == "said" == seen[0]


def test_an_error_brings_its_traceback_in_a_field() -> None:
    try:
        raise ValueError("broken")
    except ValueError:
        failed = record("failed", logging.ERROR)
        failed.exc_info = sys.exc_info()
    line = json.loads(JsonLines().format(failed))
    assert line["message"] == "failed" and line["error"].endswith("ValueError: broken")


def test_workers_speak_as_their_driver_does(monkeypatch: pytest.MonkeyPatch) -> None:
    logs.known(epoch=3, engine="a driver has none")
    monkeypatch.delenv(logs.SWITCH, raising=False)
    assert logs.for_workers() == {"FOVEATE_LOG_KNOWN": '{"epoch": 3}'}
    monkeypatch.setenv(logs.SWITCH, "json")
    assert logs.for_workers()[logs.SWITCH] == "json"


class _Failing:
    """An engine that fails with every task, and says so."""

    def work(self, task: Encode | Ask) -> Encoded | Answered:
        raise RuntimeError("broken")

    def free(self, names: Sequence[str]) -> None: ...

    def close(self) -> None: ...


def test_what_fails_in_an_engine_is_logged_with_its_document() -> None:
    """In a thread of the local pool, where nothing that the driver bound is known."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(JsonLines().format(record))  # type: ignore[method-assign]
    logging.getLogger("workers").addHandler(handler)
    try:
        with LocalPool(_Failing, 1) as pool:
            pool.submit(1, Encode("corpus.parquet:4", (), (), 1))
            assert pool.wait(60)
    finally:
        logging.getLogger("workers").removeHandler(handler)
    [line] = map(json.loads, lines)
    assert (line["document"], line["message"], line["level"]) == ("corpus.parquet:4", "Encode failed", "ERROR")


def test_a_batch_is_about_all_its_documents() -> None:
    queries = [Query(name, Probe("q", (1,), (0, 1)), (), 1) for name in ("a:1", "a:1", "b:2")]
    assert subject(Ask(tuple(queries))) == {"document": "a:1, b:2"}
    assert subject("something else") == {}


def run(job: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """A run by the command line; its result is on stdout, what it says on stderr."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("FOVEATE_", "RAY_ADDRESS"))}
    return subprocess.run(
        [sys.executable, "-m", "pipeline", "run", str(job)],
        env=inherited | {"RAY_AUTH_MODE": "disabled"} | environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


def parsed(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_every_line_of_a_run_is_json_and_says_document_part_and_epoch(tmp_path: Path, tiny_model: Path) -> None:
    bench = Bench(tmp_path, tiny_model, [700, 0, 900])
    lines = parsed(run(bench.write_job(bench.job()), FOVEATE_LOG="json").stderr)
    assert all({"time", "level", "logger", "message"} <= line.keys() for line in lines)
    assert all(line["epoch"] == 1 for line in lines if line["logger"].startswith("pipeline."))
    committed = [line for line in lines if line["message"].startswith("part ")]
    assert [line["part"] for line in committed] == [0, 1]
    assert committed[0]["message"] == "part 0 committed: 2 documents, 2 questions answered, 2 failed"
    dead = [line for line in lines if "dead letter" in line["message"]]
    assert {(line["document"].rpartition("/")[2], line["part"]) for line in dead} == {("corpus.parquet:1", 0)}
    assert any(line["logger"] == "pipeline.progress" for line in lines)


def test_what_the_command_line_says_last_is_a_line_like_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(logs.SWITCH, raising=False)
    assert logs.as_line("foveate: no such file") == "foveate: no such file"
    monkeypatch.setenv(logs.SWITCH, "json")
    line = json.loads(logs.as_line("foveate: no such file"))
    assert (line["level"], line["message"]) == ("ERROR", "foveate: no such file")


def spoken(program: str, **environment: str) -> str:
    """What a process that speaks writes to stderr."""
    done = subprocess.run(
        [sys.executable, "-c", f"import logging, warnings; from workers import logs; logs.speak()\n{program}"],
        env={name: value for name, value in os.environ.items() if not name.startswith("FOVEATE_")} | environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    return done.stderr


def test_without_the_switch_lines_are_for_people() -> None:
    program = "logs.known(epoch=1); logging.getLogger('pipeline.x').info('said'); logging.getLogger('x').info('not')"
    assert spoken(program) == "said\n"


def test_warnings_and_uncaught_errors_are_lines_too() -> None:
    program = "warnings.warn('careful')\nraise ZeroDivisionError('ours')"
    warning, error = parsed(spoken(program, FOVEATE_LOG="json"))
    assert "careful" in warning["message"] and warning["logger"] == "py.warnings"
    assert error["level"] == "CRITICAL" and error["error"].endswith("ZeroDivisionError: ours")


@pytest.fixture
def session(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the processes of a Ray of this test's own write their lines."""
    import ray

    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    quiet = {"include_dashboard": False, "log_to_driver": False, "logging_level": "ERROR"}
    try:
        context = ray.init(address="local", num_cpus=1, _temp_dir=folder, **quiet)
        yield Path(context.address_info["session_dir"]) / "logs"
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


def said_by_an_engine(session: Path) -> list[str]:
    """Lines of an engine on Ray that fails with a chunk."""
    from pipeline.cluster import RayPool

    with RayPool(_Failing, RayWorkers(workers=1)) as pool:
        pool.submit(1, Encode("corpus.parquet:4", (), (), 1))
        while not pool.wait(60):
            pass
    texts = [path.read_text() for path in session.glob("worker-*.err")]
    return [line for text in texts for line in text.splitlines() if "Encode failed" in line]


@pytest.mark.cluster
def test_engines_on_ray_speak_as_their_driver_and_say_who_they_are(
    session: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logs.known(epoch=3)
    monkeypatch.setenv(logs.SWITCH, "json")
    [line] = map(json.loads, said_by_an_engine(session))
    assert (line["document"], line["epoch"]) == ("corpus.parquet:4", 3)
    assert line["error"].endswith("RuntimeError: broken") and "/" in line["engine"]
