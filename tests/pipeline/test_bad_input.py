"""One corpus with every kind of bad row, run for real: each costs its own questions, and nothing is lost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipeline import cli
from pipeline.directory import existing_directory
from pipeline.driver import run
from pipeline.status import read_status
from tests.pipeline.jobs import Bench, sentence
from tests.pipeline.parquet import raw_strings, write

GOOD = sentence(300, 1).encode()
ROWS: dict[str, tuple[bytes | None, str | None, int | None, str | None]] = {
    # id: text, the row's own question, its max_new_tokens, and the error that must come out
    "good": (GOOD, "Who?", 4, None),
    "empty": (b"", "Who?", 4, "EmptyDocument"),
    "blank": (b" \n\t ", "Who?", 4, "EmptyDocument"),
    "null": (None, "Who?", 4, "NullText"),
    "surrogate": (b"text \xed\xa0\x80 more", "Who?", 4, "InvalidText"),
    "nul": (b"before\x00after " * 9, "Who?", 4, None),
    "emoji": ("\N{GRINNING FACE} naïve 日本 ".encode() * 9, "Who?", 4, None),
    "short": (b"tiny", "Who?", 4, None),
    "zero": (GOOD, "Who?", 0, "BadQuestion"),
    "greedy": (GOOD, "Who?", 100_000, "QuestionTooLong"),
    "long": (GOOD, "why " * 2000, 4, "QuestionTooLong"),
    "control": (b"<|end|> is only text here " * 5, "Who?", 4, None),
    "twice": (GOOD, "Who?", 4, None),
}


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> dict[tuple[str, int], dict[str, Any]]:
    """Outcomes by (error or answered, source row) of a run over ``ROWS`` and one more row with an id seen before."""
    bench = Bench(tmp_path_factory.mktemp("bad"), tiny_model, [10])
    texts = [*(text for text, *_ in ROWS.values()), GOOD]
    _, offsets, content = raw_strings([text or b"" for text in texts]).buffers()
    present = pa.array([text is not None for text in texts]).buffers()[1]
    text_column = pa.Array.from_buffers(pa.string(), len(texts), [present, offsets, content])
    write(
        bench.corpus,
        {
            "id": [*ROWS, "twice"],
            "text": text_column,
            "question": [*(question for _, question, *_ in ROWS.values()), "Who?"],
            "most": [*(most for _, _, most, _ in ROWS.values()), 4],
        },
    )
    corpus = {"path": str(bench.corpus), "question": "question", "max_new_tokens": "most"}
    summary = run(bench.job(corpus=corpus, questions=[]))
    assert summary.totals.answered + summary.totals.failed == len(ROWS) + 1
    assert read_status(existing_directory(summary.output)).is_finished
    return {(row.get("error", ""), row["source_row"]): row for row in bench.rows()}


@pytest.mark.parametrize("name", ROWS)
def test_a_row_ends_as_what_it_is(rows: dict[tuple[str, int], dict[str, Any]], name: str) -> None:
    place = list(ROWS).index(name)
    [(error, found)] = [(error, row) for (error, source_row), row in rows.items() if source_row == place]
    assert error == (ROWS[name][3] or "")
    if not error:
        assert found["id"] == name and found["spans"]
        text = (ROWS[name][0] or b"").decode()
        assert all(span["text"] == text[span["start"] : span["end"]] for span in found["spans"])
    else:
        assert found["message"] and not found["retryable"] and found["stage"] in ("corpus", "prepare")


def test_a_second_row_of_an_id_fails_and_names_the_first(rows: dict[tuple[str, int], dict[str, Any]]) -> None:
    duplicate = rows["DuplicateId", len(ROWS)]
    assert duplicate["id"] == "twice" and f"row {len(ROWS) - 1}" in duplicate["message"]


def _truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def _changed(path: Path) -> None:
    write(path, {"id": ["a", "b"], "text": ["one", "two"]})


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("corpus.text=body", ["body", "id", "text"]),
        ("corpus.id=question", ["question"]),
        ("corpus.path=nowhere/*.parquet", ["nowhere/*.parquet"]),
        ("questions[0].max_new_tokens=0", ["questions[0].max_new_tokens", "0"]),
        ("questions[0].max_new_tokens=100000", ["questions[0] (who)", "the model's window is 2048"]),
        ("model.source=no/such-model", ["model.source: no/such-model", "unknown model"]),
        ("output.path=/dev/null/answers", ["/dev/null/answers"]),
        ("keep.budget.tokens=5000", ["keep.budget.tokens 5000"]),
    ],
)
def test_what_is_wrong_with_the_whole_job_ends_it_before_it_starts(
    tmp_path: Path,
    tiny_model: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    setting: str,
    words: list[str],
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    bench = Bench(tmp_path, tiny_model, [100])
    job_file = bench.write_job(bench.job())
    with pytest.raises(SystemExit) as ending:
        cli.main(["run", str(job_file), "--set", setting])
    assert ending.value.code == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said and all(word in said for word in words)
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").rglob("*.parquet"))


def test_a_truncated_file_and_one_that_changed_before_a_resume_are_named(
    tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bench = Bench(tmp_path, tiny_model, [100, 200])
    job_file = bench.write_job(bench.job())
    with pytest.raises(SystemExit) as ending:
        cli.main(["run", str(job_file)])
    assert ending.value.code == 0
    for damage in (_changed, _truncated):
        damage(bench.corpus)
        with pytest.raises(SystemExit) as ending:
            cli.main(["run", str(job_file)])
        assert ending.value.code == 2
        assert str(bench.corpus) in capsys.readouterr().err


def test_a_directory_that_holds_something_else_is_left_alone(
    tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bench = Bench(tmp_path, tiny_model, [100])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("precious")
    with pytest.raises(SystemExit) as ending:
        cli.main(["run", str(bench.write_job(bench.job()))])
    assert ending.value.code == 2
    assert str(tmp_path / "out") in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.txt"]
