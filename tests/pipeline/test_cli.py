"""The command line: what it accepts, what it prints, and the exit code of every ending."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from cache_store.errors import UnusableTier
from pipeline import cli, driver
from pipeline.errors import IncompleteRun, Interrupted, TooManyFailures
from tests.pipeline.jobs import QUESTIONS, Bench, sentence
from workers.errors import BackendUnavailable, ModelError
from workers.selection.gate import Gate, gate_path
from workers.selection.headmap import HeadMap, head_map_path
from workers.source import locate


def foveate(*arguments: object) -> int:
    """Run a command in this process; its exit code."""
    with pytest.raises(SystemExit) as ended:
        cli.main([str(argument) for argument in arguments])
    return int(ended.value.code or 0)


@pytest.fixture(autouse=True)
def _wide_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture
def bench(tmp_path: Path, tiny_model: Path) -> Bench:
    """Three documents, the last without text."""
    return Bench(tmp_path, tiny_model, [900, 300, 0])


@pytest.fixture
def job_file(bench: Bench) -> Path:
    return bench.write_job(bench.job())


def test_help_waits_for_nothing_heavy() -> None:
    program = (
        "import sys, pipeline.cli\n"
        "try: pipeline.cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'ray', 'transformers', 'pyarrow', 'pydantic', 'numpy'} & set(sys.modules)\n"
        "print(heavy, file=sys.stderr)\n"
        "sys.exit(len(heavy))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "retry-failed" in done.stdout


def test_the_module_is_the_same_program(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "pipeline", "run", str(tmp_path / "no.yaml")], capture_output=True)
    assert done.returncode == 2
    assert done.stderr.startswith(b"foveate: ") and b"Traceback" not in done.stderr


def test_a_run_answers_and_says_where(bench: Bench, job_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert foveate("run", job_file) == 0
    out, err = capsys.readouterr()
    root = bench.root / "out"
    assert f"{root}/data/*.parquet" in out and f"{root}/report.html" in out and "NullText 2" in out
    assert "4 questions of 3 documents" in out and "Who signed it?" in out
    assert "3/3 documents" in err
    assert len(list((root / "data").glob("*.parquet"))) > 0
    assert "doc0" in (root / "report.html").read_text()


def test_the_first_answers_are_shown_whatever_part_they_are_in(
    tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bench = Bench(tmp_path, tiny_model, [60] * 7)
    job = bench.write_job(bench.job(questions=QUESTIONS[:1], output={"part_tokens": 20}))
    assert foveate("run", job) == 0
    out = capsys.readouterr().out
    assert [f"doc{n} " in out for n in range(7)] == [True] * 5 + [False] * 2 and "... and 2 more" in out


def test_a_second_run_resumes_and_strict_tells_failures(
    bench: Bench, job_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert foveate("run", job_file, "--strict") == 3
    rows = bench.rows()
    assert foveate("run", job_file, "--strict") == 3
    assert bench.rows() == rows
    capsys.readouterr()
    assert foveate("status", bench.root / "out") == 0
    assert "finished" in capsys.readouterr().out


def test_output_and_set_change_the_job(bench: Bench, job_file: Path) -> None:
    other = bench.root / "an output, with: odd 'name'"
    assert foveate("run", job_file, "--output", other, "--set", "questions[1].max_new_tokens=1") == 0
    answers = [row for row in bench.rows(other.name) if "answer" in row and row["question_id"] == "when"]
    assert len(answers) == 2 and all(row["generated_tokens"] <= 1 for row in answers)
    assert not (bench.root / "out").exists()


def test_checked_answers_are_compared(tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bench = Bench(tmp_path, tiny_model, [300, 300], answer=["", "no model says this"])
    corpus = {"path": str(bench.corpus), "answer": "answer"}
    job = bench.write_job(bench.job(corpus=corpus, questions=QUESTIONS[:1]))
    assert foveate("run", job) == 0
    out = capsys.readouterr().out
    assert "checked: 1 of 2 answers" in out
    assert "✓ doc0 who" in out and "✗ doc1 who" in out and "'no model says this'" in out


def test_plan_writes_nothing(bench: Bench, job_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert foveate("plan", job_file, "--no-measure") == 0
    out = capsys.readouterr().out
    assert "NullText 2" in out and "window is 2,048" in out and "unknown: not measured (--no-measure)" in out
    assert not (bench.root / "out").exists()


def test_report_is_made_again(bench: Bench, job_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    foveate("run", job_file)
    report = bench.root / "out" / "report.html"
    first = report.read_text()
    report.unlink()
    capsys.readouterr()
    assert foveate("report", bench.root / "out") == 0
    assert capsys.readouterr().out.strip() == str(report)
    assert report.read_text() == first


def test_retry_failed_leaves_what_cannot_be_mended(bench: Bench, job_file: Path) -> None:
    foveate("run", job_file)
    rows = bench.rows()
    assert foveate("retry-failed", bench.root / "out") == 0
    assert foveate("retry-failed", bench.root / "out", "--strict") == 3
    assert bench.rows() == rows


def test_doctor_finds_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    assert foveate("doctor") == 0
    out = capsys.readouterr().out
    assert "torch_flash" in out and "model.attention" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run"], "Missing argument"),
        (["frobnicate"], "No such command"),
        (["run", "JOB", "--pool", "slurm"], "'slurm'"),
        (["run", "JOB", "--set", "read.chunk_tokns=64"], "did you mean chunk_tokens?"),
        (["run", "JOB", "--set", "model.source=/nowhere"], "/nowhere"),
        (["run", "JOB", "--set", "model.profile=nowhere.json"], "nowhere.json"),
        (["run", "JOB", "--set", "corpus.path=nowhere.parquet"], "nowhere.parquet"),
        (["run", "JOB", "--set", "corpus.text=body"], "'body'"),
        (["run", "JOB", "--output", "FILE"], "JOB"),
        (["run", "JOB", "--pool", "ray", "--set", "answer.over=kept", "--set", "pool.workers=2"], "store.tiers"),
        (["plan", "JOB", "--set", "questions=[]"], "questions"),
        (["status", "EMPTY"], "_job/job.json"),
        (["report", "EMPTY"], "_job/job.json"),
        (["retry-failed", "EMPTY"], "_job/job.json"),
        (["calibrate", "--model", "x", "--dtype", "int4"], "'int4'"),
        (["calibrate", "--model", "x", "--out", "EMPTY"], "--out: "),
        (["calibrate", "--model", "x", "--out", "/proc/nowhere/x"], "--out: /proc/nowhere/x: cannot be written"),
        (["evaluate", "nowhere.yaml"], "nowhere.yaml: cannot be read"),
        (["evaluate", "JOB"], "corpus: unknown key"),
        (["submit", "JOB"], "--address"),
    ],
)
def test_what_the_user_must_mend_ends_with_2_and_its_message(
    arguments: Sequence[str], words: str, job_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    places = {"JOB": str(job_file), "FILE": str(job_file), "EMPTY": str(tmp_path / "empty")}
    assert foveate(*(places.get(argument, argument) for argument in arguments)) == 2
    out, err = capsys.readouterr()
    assert places.get(words, words) in err and "Traceback" not in err and not out


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (ModelError("no such model"), 2, "foveate: no such model"),
        (UnusableTier("store.tiers[0]: no"), 2, "foveate: store.tiers[0]: no"),
        (BackendUnavailable("flash: install it"), 2, "foveate: model.attention: flash: install it"),
        (TooManyFailures("17 failed"), 1, "foveate: 17 failed"),
        (IncompleteRun("3 parts are missing"), 1, "foveate: 3 parts are missing"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "data/x"), 1, "No space left on device: 'data/x'"),
        (Interrupted("stopped"), 130, "foveate: stopped"),
    ],
)
def test_every_ending_of_a_run_has_its_code_and_one_line(
    error: Exception,
    code: int,
    words: str,
    job_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def run(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(driver, "run", run)
    assert foveate("run", job_file) == code
    err = capsys.readouterr().err
    assert words in err and len(err.strip().splitlines()) == 1


@pytest.mark.parametrize("kind", [AssertionError, RuntimeError, KeyError])
def test_a_fault_of_ours_keeps_its_traceback(
    kind: type[Exception], job_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*_: object, **__: object) -> None:
        raise kind("ours")

    monkeypatch.setattr(driver, "run", run)
    with pytest.raises(kind, match="ours"):
        cli.main(["run", str(job_file)])


@pytest.fixture
def interrupts(tmp_path: Path) -> Iterator[threading.Thread]:
    """A user who presses Ctrl-C as soon as one part is committed."""

    def wait_and_press() -> None:
        commits = tmp_path / "out" / "_job" / "commits"
        while not any(commits.glob("*.json")) and not given_up.is_set():
            time.sleep(0.005)
        os.kill(os.getpid(), signal.SIGINT)

    given_up = threading.Event()
    user = threading.Thread(target=wait_and_press, daemon=True)
    yield user
    given_up.set()


def test_ctrl_c_stops_cleanly_and_the_run_resumes(
    tmp_path: Path, tiny_model: Path, interrupts: threading.Thread, capsys: pytest.CaptureFixture[str]
) -> None:
    bench = Bench(tmp_path, tiny_model, [1500] * 24)
    job_file = bench.write_job(bench.job())
    before = signal.getsignal(signal.SIGINT)
    interrupts.start()
    assert foveate("run", job_file) == 130
    interrupts.join()
    assert signal.getsignal(signal.SIGINT) is before
    assert "resume" in capsys.readouterr().err
    assert 0 < len(bench.rows()) < 48
    assert foveate("run", job_file) == 0
    assert len(bench.rows()) == 48


def test_ctrl_c_before_anything_is_begun_ends_the_process() -> None:
    """Converting, calibrating and loading can take minutes, and leave nothing to clean up."""
    with pytest.raises(KeyboardInterrupt), cli._stoppable():
        signal.raise_signal(signal.SIGINT)


def test_a_second_ctrl_c_ends_the_process() -> None:
    program = (
        "import signal, sys\n"
        "from pipeline import cli\n"
        "with cli._stoppable() as stop:\n"
        "    stop.is_watched = True\n"
        "    signal.raise_signal(signal.SIGINT)\n"
        "    print('stopping', stop.is_set, flush=True)\n"
        "    signal.raise_signal(signal.SIGINT)\n"
        "    print('alive')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (130, "stopping True\n")
    assert "Ctrl-C again" in done.stderr


def test_calibrate_writes_a_profile(tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "profile.json"
    options = ["--model", tiny_model, "--out", out, "--max-chars", 1500, "--no-held-out"]
    assert foveate("calibrate", *options) == 0
    assert str(out) in capsys.readouterr().out and '"heads"' in out.read_text()


class TestFromText:
    """What ``calibrate`` finds on text of the user's own: it is kept where runs look, and found there."""

    @pytest.fixture(autouse=True)
    def _own_cache(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("FOVEATE_CACHE", str(tmp_path / "cache"))

    @pytest.fixture
    def text(self, tmp_path: Path) -> Path:
        path = tmp_path / "some.txt"
        path.write_text(sentence(900, seed=3))
        return path

    def test_a_gate_is_trained_printed_and_found(
        self, bench: Bench, text: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        more = tmp_path / "more.txt"
        more.write_text(sentence(3000, seed=4))
        job = bench.write_job(bench.job(keep={"scorer": {"kind": "gate"}, "question": "unknown"}))
        assert foveate("run", job) == 2
        assert "foveate calibrate --gate" in capsys.readouterr().err
        assert foveate("calibrate", "--model", tiny_model, "--gate", "--text", text, "--text", more) == 0
        out = capsys.readouterr().out
        path = gate_path(locate(str(tiny_model)).weights)
        assert f"written to {path}" in out and Gate.load(path).shape == (3, 2)
        assert "3 layers, 2 kv heads" in out and "pearson " in out and "kept_fraction 0.01 " in out
        assert foveate("run", job) == 0
        assert sum("answer" in row for row in bench.rows()) == 4

    def test_head_roles_are_measured_printed_and_found(
        self, bench: Bench, text: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        answer, budget = {"over": "kept"}, {"kind": "heads", "tokens": 96}
        job = bench.write_job(bench.job(answer=answer, keep={"block_tokens": 16, "budget": budget}))
        assert foveate("run", job) == 2
        assert "foveate calibrate --heads" in capsys.readouterr().err
        assert foveate("calibrate", "--model", tiny_model, "--heads", "--text", text, "--max-free", 0.4) == 0
        out = capsys.readouterr().out
        path = head_map_path(locate(str(tiny_model)).weights)
        head_map = HeadMap.load(path)
        assert f"written to {path}" in out and head_map.shape == (3, 2)
        assert head_map.fraction_of("retrieval") >= 0.6, "0.4 of six heads are two"
        marks = {"retrieval": "R", "streaming": "s", "pruned": "-"}
        for layer, roles in enumerate(head_map.roles_LG):
            assert re.search(rf"layer {layer} +{''.join(marks[role] for role in roles)}\n", out)
        assert "pruning[4] top1_agreement" in out and "change_pruned_LG" not in out
        assert foveate("run", job) == 0
        assert sum("answer" in row for row in bench.rows()) == 4

    def test_out_names_the_file(self, text: Path, tiny_model: Path, tmp_path: Path) -> None:
        out = tmp_path / "heads.json"
        assert foveate("calibrate", "--model", tiny_model, "--heads", "--text", text, "--out", out) == 0
        assert HeadMap.load(out).shape == (3, 2) and not (tmp_path / "cache" / "headmaps").exists()

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["--gate", "--heads", "--text", "TEXT"], "--gate, --heads: both given"),
            (["--gate"], "--text: goes with --gate or --heads"),
            (["--heads"], "--text: goes with --gate or --heads"),
            (["--text", "TEXT"], "--text: goes with --gate or --heads"),
            (["--gate", "--text", "nowhere.txt"], "--text: nowhere.txt: cannot be read as UTF-8 text"),
            (["--heads", "--text", "BINARY"], "BINARY"),
            (["--gate", "--text", "SHORT"], "text to train a gate on"),
            (["--heads", "--text", "SHORT"], "measuring heads: "),
        ],
    )
    def test_what_cannot_be_calibrated_on_ends_with_2_and_its_message(
        self,
        arguments: Sequence[str],
        words: str,
        text: Path,
        tiny_model: Path,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        binary, short = tmp_path / "weights.bin", tmp_path / "short.txt"
        binary.write_bytes(b"\x88\xff")
        short.write_text("Who signed it?")
        places = {"TEXT": str(text), "BINARY": str(binary), "SHORT": str(short)}
        assert foveate("calibrate", "--model", tiny_model, *(places.get(word, word) for word in arguments)) == 2
        out, err = capsys.readouterr()
        assert places.get(words, words) in err and "Traceback" not in err and not out


class TestEvaluate:
    """``foveate evaluate``: its pages, its stop, and the exit code of every ending."""

    @pytest.fixture
    def file(self, tmp_path: Path, tiny_model: Path) -> Path:
        """Four items and one method that reads nothing much."""
        path = tmp_path / "evaluation.yaml"
        path.write_text(
            f"base: {{model: {{source: {tiny_model}, device: cpu}}, read: {{chunk_tokens: 256}}}}\n"
            "tasks: [{kind: single_needle}]\nlengths: [600]\nitems: 4\nbudgets: [64]\n"
            f"methods: [{{name: truncate, baseline: truncate}}]\noutput: {{path: {tmp_path / 'out'}}}\n"
        )
        return path

    def test_it_writes_pages_and_says_where(self, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert foveate("evaluate", file, "--set", "items=1", "--title", "Mine") == 0
        page = file.parent / "out" / "results.md"
        out = capsys.readouterr().out
        assert f"{page}\n" in out and "accuracy-by-method.svg" in out
        assert page.read_text().startswith(f"# Mine\n\nMade by `foveate evaluate {file} --set items=1`")

    def test_pages_can_be_made_of_what_there_is(self, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert foveate("evaluate", file, "--pages-only") == 0
        out, err = capsys.readouterr()
        assert not out and "4 of 4 items are not finished" in err
        assert foveate("evaluate", file, "--set", "items=2") == 0
        capsys.readouterr()
        assert foveate("evaluate", file, "--pages-only") == 0
        out, err = capsys.readouterr()
        assert "results.md" in out and "2 of 4 items are not finished" in err

    def test_ctrl_c_stops_between_items_keeps_them_and_goes_on(
        self, file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        from pipeline.evaluation.checkpoint import Checkpoint

        add = Checkpoint.add

        def pressed(checkpoint: Checkpoint, *item: Any) -> None:
            add(checkpoint, *item)
            os.kill(os.getpid(), signal.SIGINT)

        with monkeypatch.context() as patched:
            patched.setattr(Checkpoint, "add", pressed)
            assert foveate("evaluate", file) == 130
        out, err = capsys.readouterr()
        assert "stopped: 3 of 4 items are not finished; the same command goes on with them" in err
        assert "results.md" in out and len(list((file.parent / "out" / "trials").iterdir())) == 1
        assert foveate("evaluate", file) == 0
        assert len(list((file.parent / "out" / "trials").iterdir())) == 4

    def test_items_that_fail_end_with_1_and_the_first_reason(
        self, file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        from pipeline.evaluation.trial import Bench as Trying

        def failing(*_: object) -> None:
            raise MemoryError("no room")

        monkeypatch.setattr(Trying, "work", failing)
        assert foveate("evaluate", file) == 1
        err = capsys.readouterr().err
        assert "4 of 4 items are not finished" in err and "single_needle-600-000: OutOfMemoryError: no room" in err

    @pytest.mark.parametrize(
        ("setting", "words"),
        [
            ("budgts=3", "did you mean budgets?"),
            ("output.path=s3://bucket/there", "output.path: s3://bucket/there: an evaluation writes to a local"),
            ("output.path=/proc/nowhere", "output.path: /proc/nowhere: cannot be written to"),
            ("lengths=[100]", "single_needle: lengths: 100; prompt and answer alone"),
            ("tasks=[{kind: parquet, path: nowhere.parquet}]", "nowhere.parquet: cannot be read as Parquet"),
            ("base.model.source=/nowhere", "/nowhere"),
        ],
    )
    def test_what_the_user_must_mend_ends_with_2_before_anything_is_tried(
        self, setting: str, words: str, file: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert foveate("evaluate", file, "--set", setting) == 2
        out, err = capsys.readouterr()
        assert words in err and "Traceback" not in err and not out
