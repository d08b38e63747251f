"""What a corpus says stays text: no id, name or text of it becomes a path, markup, a terminal command or a log line.

One corpus holds every trick as id, text, question, expected answer and file name. Every command goes over it, in a
world of its own (home, working directory, temporary directory, cache): what is there afterwards has been named by us.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from configs.schema import Question
from pipeline.directory import existing_directory
from pipeline.status import read_answers, read_failures
from tests.pipeline.jobs import Bench
from tests.pipeline.test_report import Reader
from tests.security.test_pickles import foveate

TRICKS = (
    "../../../../escape",
    "/tmp/escape",
    "..",
    "~/escape",
    "C:\\escape",
    "NUL",
    "a\x00escape",
    "a\nFORGED: all questions answered",
    "a\rFORGED: all questions answered",
    "a\x0bFORGED\x0cFORGED\x85FORGED\u2028FORGED",
    "\x1b[2J\x1b[31mFORGED\x07",
    "\x9b31mFORGED",
    "\u202eFORGED",
    "<script>alert(1)</script><img src=x onerror=alert(1)>",
    "'\" onmouseover='alert(1)",
    "</style></title><iframe src=//evil>",
    "[red]FORGED[/red][link=file:///etc/passwd]x[/link]",
    "$(mkdir escape)`mkdir escape`;mkdir escape",
    "%s%n{0.__class__}{id}",
    "x" * 50_000,
)
NAMES = ("a\nFORGED \x1b[31m<script>.parquet", "$(mkdir escape).parquet", "-rf ...parquet", "n" * 240 + ".parquet")
"""Of corpus files, as far as Linux lets a file be called so."""
RUN = (
    r"_SUCCESS|report\.html|_job/(job|plan)\.json|_job/(epoch|end)/\d+\.json|_job/commits/part-\d{5}\.\d+\.json"
    r"|(data|failed)/part-\d{5}\.\d+-e\d+-[0-9a-f]{8}\.parquet"
)
OURS = re.compile(
    rf"(out|strict)/({RUN})|store/[0-9a-f]{{2}}/[0-9a-f]{{2}}/[0-9a-f]{{64}}\.safetensors"
    r"|(cache|home/\.cache/foveate)/(profiles|gates|headmaps)/[0-9a-f]{16}\.(json|safetensors)"
)
"""Every file that these commands may make, below the root of the test."""


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A root with a home, a working directory and a place for temporary files in it."""
    for name in ("home", "cwd", "tmp", "corpus"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setenv("FOVEATE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "2000")
    return tmp_path


def corpus_of(folder: Path) -> Path:
    """Each trick as the id of a document that is answered, and of one that fails; spread over a file of each name."""
    texts = [f"The treaty was signed by {trick[:60]} in April." for trick in TRICKS]
    table = pa.table(
        {
            "id": [*TRICKS, *(f"{trick} again" for trick in TRICKS), TRICKS[0]],
            "text": [*texts, *(" \n" for _ in texts), "a duplicate"],
            "question": [*(f"Who {trick[:60]}?" for trick in TRICKS), *(None for _ in texts), "Who?"],
            "answer": [*TRICKS, *TRICKS, "x"],
        }
    )
    size = -(-table.num_rows // len(NAMES))
    for number, name in enumerate(NAMES):
        pq.write_table(table.slice(number * size, size), folder / name)
    return folder


@pytest.fixture
def bench(world: Path, tiny_model: Path) -> Bench:
    return Bench(world, tiny_model, [100])


@pytest.fixture
def job_file(world: Path, bench: Bench) -> Path:
    columns = {"question": "question", "answer": "answer"}
    job = bench.job(
        corpus={"path": str(corpus_of(world / "corpus")) + "/../corpus", **columns},
        questions=[{"id": "who", "text": "Who signed it?", "max_new_tokens": 2}],
        store={"tiers": [{"kind": "files", "path": str(world / "store")}], "keep": True, "tenant": "../../escape\x1b"},
        output={"part_tokens": 20_000, "max_failed_fraction": 1.0},
    )
    return bench.write_job(job)


def commands(world: Path, job_file: Path) -> list[tuple[object, ...]]:
    out, store = world / "out", world / "store"
    return [
        ("plan", job_file),
        ("run", job_file),
        ("run", job_file),
        ("status", out),
        ("status", out, "--json"),
        ("report", out),
        ("retry-failed", out),
        ("store", "ls", store),
        ("store", "stats", store),
        ("store", "verify", store),
    ]


def is_visible(text: str) -> bool:
    """Whether a terminal shows every character as itself, but for line ends."""
    return all(letter.isprintable() or letter == "\n" for letter in text)


def forged(text: str) -> list[str]:
    """Lines that the corpus wrote and we seem to have written: those of ours that go on are indented."""
    return [line for line in text.split("\n") if line.startswith(("FORGED:", "FORGED <"))]


def files_below(root: Path) -> set[str]:
    return {path.relative_to(root).as_posix() for path in root.rglob("*") if not path.is_dir()}


def folders_below(root: Path) -> set[str]:
    return {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_dir()}


def test_no_command_makes_a_file_or_a_line_that_the_corpus_named(
    world: Path, job_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, folders = files_below(world), folders_below(world)
    for command in commands(world, job_file):
        assert foveate(*command) == 0, command
        out, err = capsys.readouterr()
        for text in (out, err):
            assert is_visible(text), (command, [line for line in text.split("\n") if not is_visible(line)][:3])
            assert not forged(text), (command, forged(text))
    made = files_below(world) - before
    assert not [name for name in made if not OURS.fullmatch(name)]
    assert {name.split("/")[0] for name in made} >= {"out", "store"}
    assert not [name for name in folders_below(world) - folders if "escape" in name]
    assert not list((world / "tmp").iterdir()) and not list((world / "cwd").iterdir())
    assert_outcomes_are_as_they_were_given(world)
    assert_the_report_is_text(world)


def assert_outcomes_are_as_they_were_given(world: Path) -> None:
    """Nothing was cleaned, shortened or lost on the way: that is not how it is safe."""
    directory = existing_directory(str(world / "out"))
    answers, failures = read_answers(directory), read_failures(directory)
    assert set(answers["id"].to_pylist()) == {*TRICKS}
    assert set(failures["id"].to_pylist()) == {*(f"{trick} again" for trick in TRICKS), TRICKS[0]}
    named = {Path(file).name for file in [*answers["source_file"].to_pylist(), *failures["source_file"].to_pylist()]}
    assert named == set(NAMES)


def assert_the_report_is_text(world: Path) -> None:
    """Parsed as a browser would, it has none of the elements or attributes that the corpus speaks of."""
    page = (world / "out" / "report.html").read_text(encoding="utf-8")
    read = Attributes(page)
    assert not {"script", "iframe", "img"} & set(read.tags)
    assert not [name for name in read.names if name.startswith("on")]
    assert "<script>alert(1)</script>" in read.text and "onmouseover" in read.text
    assert not re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\u202a-\u202e]", page)


class Attributes(Reader):
    """Also collects the names of attributes."""

    def __init__(self, markup: str) -> None:
        self.names: set[str] = set()
        super().__init__(markup)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names |= {name for name, _ in attrs}
        super().handle_starttag(tag, attrs)


def too_many_failures(world: Path, job_file: Path) -> tuple[object, ...]:
    return ("run", job_file, "--output", world / "strict", "--set", "output.max_failed_fraction=0")


def damaged_file(world: Path, job_file: Path) -> tuple[object, ...]:
    (world / "corpus" / NAMES[0]).write_bytes(b"no Parquet")
    return ("run", job_file)


def missing_corpus(world: Path, job_file: Path) -> tuple[object, ...]:
    return ("run", job_file, "--set", f"corpus.path={json.dumps(str(world / TRICKS[10]))}")


@pytest.mark.parametrize(
    ("ending", "code"), [(too_many_failures, 1), (damaged_file, 2), (missing_corpus, 2)], ids=["1", "2", "2 too"]
)
def test_an_error_message_moves_no_cursor_and_forges_no_line(
    ending: Callable[[Path, Path], tuple[Any, ...]],
    code: int,
    world: Path,
    job_file: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert foveate(*ending(world, job_file)) == code
    _, err = capsys.readouterr()
    assert "foveate: " in err and is_visible(err), repr(err)
    assert not forged(err)


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_asking_prints_what_the_corpus_says_as_text(
    options: tuple[str, ...], world: Path, job_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Three times: with an empty store, with one that has everything, and with one of other chunks, where it is said
    of each document why it is read."""
    settings = ("--set", "keep.question=unknown", "--set", "keep.scorer={kind: random}")
    before = files_below(world)
    for chunk_tokens in (64, 64, 32):
        words = ("ask", "FORGED: who?", "--config", job_file, *settings, "--set", f"read.chunk_tokens={chunk_tokens}")
        assert foveate(*words, *options) == 0
        out, err = capsys.readouterr()
        for text in (out, err):
            assert is_visible(text), [line for line in text.split("\n") if not is_visible(line)][:3]
            assert not forged(text)
        replies = [json.loads(line) for line in out.splitlines()] if options else []
        assert {*TRICKS} <= {reply["document"] for reply in replies} or not options
    assert not [name for name in files_below(world) - before if not OURS.fullmatch(name)]


@pytest.mark.parametrize("name", ["../escape", "a/b", "", ".", "..", "a\nb", "<b>", "\x1b[2J", "a b", "ä"])
def test_a_jobs_question_cannot_be_called_so(name: str) -> None:
    with pytest.raises(ValidationError, match="id"):
        Question(id=name, text="?")
