"""The benchmark of stores: what it weighs is what lies there, and a question to a text that was read reads nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.evaluation import stored
from pipeline.evaluation.stored import QUESTIONS, WAYS, Bench, Told, Way, timed, weighed, write_stored
from workers.selection.profile import Profile, profile_path
from workers.source import locate

SMALL = ("read.chunk_tokens=128", "keep.block_tokens=16", "keep.widen_tokens=2", "keep.budget.tokens=64")
PAIRS = Way("pairs", (*WAYS[2].settings, *SMALL))
FLOATS = Way("floats", (*WAYS[3].settings, *SMALL))
BYTES = Way("bytes", (*WAYS[5].settings, *SMALL))
SEARCH = Way("index", (*WAYS[0].settings, *SMALL))


@pytest.fixture
def bench(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setenv("FOVEATE_CACHE", str(tmp_path / "cache"))
    weights = locate(str(tiny_model)).weights
    index = Profile(weights, ((1, 1), (2, 3)))
    Profile(weights, ((1, 0), (2, 1)), index=index).save(profile_path(weights))
    return Bench(str(tiny_model), tmp_path)


def test_a_text_has_as_many_tokens_as_were_asked_for(bench: Bench) -> None:
    assert len(bench.text(700).read_bytes()) == 700, "the tiny model has a token for each byte"
    assert bench.full_bytes() in (2 * 3 * 2 * 8 * itemsize for itemsize in (2, 4))


def test_rows_say_what_lies_there(bench: Bench) -> None:
    rows = list(weighed(bench, [PAIRS, FLOATS, BYTES, SEARCH], 700))
    assert [row[0] for row in rows] == ["pairs", "floats", "bytes", "index"]
    shares = [float(row[2].removesuffix("%")) for row in rows]
    assert shares[1] >= shares[0] > shares[2] > 0 and 0 < shares[3] < 100
    assert not list(bench.work.rglob("*.safetensors")), "stores go with their measurement"


def test_later_answers_are_those_of_a_first_reading(bench: Bench) -> None:
    rows = list(timed(bench, [PAIRS, SEARCH], 700))
    assert [row[-1] for row in rows] == [f"{len(QUESTIONS) - 1} of {len(QUESTIONS) - 1}"] * 2
    assert all(float(cell) >= 0 for row in rows for cell in row[1:-1])


def test_a_question_that_had_to_read_again_is_no_measurement(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    ask = Bench.ask

    def forgetful(self: Bench, way: Way, text: Path, store: Path, question: str) -> Told:
        told = ask(self, way, text, store, question)
        for entry in store.rglob("*.safetensors"):
            entry.unlink()
        return told

    monkeypatch.setattr(Bench, "ask", forgetful)
    with pytest.raises(RuntimeError, match=r"pairs: \d+ chunks were read again"):
        list(weighed(bench, [PAIRS], 700))


def test_the_page_says_how_it_was_made(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "WAYS", (PAIRS,))
    monkeypatch.setattr(stored, "TIMED", (SEARCH,))
    out = bench.work / "results" / "stored.md"
    page = write_stored(bench.model, bench.work / "new", out, weighed_tokens=300, timed_tokens=300)
    assert out.read_text() == page
    assert "python -m pipeline.evaluation stored" in page and "| pairs |" in page and "| index |" in page
