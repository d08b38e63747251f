"""Recall over an exam: what is granted is a bound, all of a text holds every passage, and pages name their rules."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from configs.schema import Model, Prompt
from pipeline.evaluation import recall
from pipeline.evaluation.recall import RULES, ExamReading, measure_chunk_lengths, read_exam, write_rules
from workers.hf import Tokenizer
from workers.loading import load_model
from workers.prompt import Frame
from workers.selection.budgets.base import Budget
from workers.selection.budgets.min_p import MinPBudget
from workers.selection.budgets.uniform import UniformBudget
from workers.selection.profile import Profile, profile_path
from workers.selection.questions import Exam, Split
from workers.selection.scorers.probe import ProbeScorer
from workers.source import locate

GRANTED = 256


@pytest.fixture(autouse=True)
def short_exam(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Exam:
    monkeypatch.setenv("FOVEATE_CACHE", str(tmp_path / "cache"))
    weights = locate(str(tiny_model)).weights
    Profile(weights, ((1, 0), (2, 1))).save(profile_path(weights))
    whole = Exam.of_split
    exam = whole("calibrate", 2_000)

    def shortened(split: Split) -> Exam:
        return whole(split, 2_000)

    monkeypatch.setattr(recall.Exam, "of_split", shortened)
    return exam


@pytest.fixture
def reading(tiny_model: Path, short_exam: Exam) -> ExamReading:
    place = locate(str(tiny_model))
    frame = Frame.render(Tokenizer(place.directory), Prompt().system, Prompt().instruction)
    loaded = load_model(Model(source=str(tiny_model)), place, frame)
    scorer = ProbeScorer(Profile(place.weights, ((1, 0), (2, 1))), 0.1)
    return read_exam(loaded, [scorer], short_exam, 128)[0]


def test_passages_lie_where_the_exam_has_them(reading: ExamReading, short_exam: Exam) -> None:
    text = short_exam.text.encode()
    for question, gold in zip(short_exam.questions, reading.gold, strict=True):
        said = [text[start:stop].decode() for start, stop in gold]
        assert said == [short_exam.text[first:last] for first, last in question.gold], "a token for each byte"


@pytest.mark.parametrize("rule", [*RULES, UniformBudget(0), MinPBudget(1.0, 0)], ids=lambda rule: str(rule.record))
def test_no_rule_keeps_more_than_is_granted(rule: Budget, reading: ExamReading, short_exam: Exam) -> None:
    told = reading.recall(rule, GRANTED)
    assert all(0 < tokens <= GRANTED for tokens in told.tokens)
    assert len(told.found) == len(short_exam.questions) > 0
    assert math.isclose(told.share, sum(told.found) / len(told.found))


def test_all_of_a_text_holds_every_passage(reading: ExamReading, short_exam: Exam) -> None:
    length = len(short_exam.text.encode())
    told = reading.recall(UniformBudget(0), length)
    assert told.tokens == (length,) * len(short_exam.questions)
    assert told.share == 1.0
    assert reading.recall(UniformBudget(0), 1).share == 0.0, "a block does not fit into one token"


def test_pages_have_a_row_for_each_rule_and_length(tiny_model: Path, tmp_path: Path) -> None:
    write_rules(str(tiny_model), tmp_path / "docs" / "rules.md")
    page = (tmp_path / "docs" / "rules.md").read_text()
    assert page.count("\n## `") == 2 and page.count("| `uniform` |") == 2
    assert page.count("| `min_p`, p 0.1 |") == page.count("| `threshold`, times_mean 8 |") == 2
    rows = list(measure_chunk_lengths(str(tiny_model), "held_out", lengths=(256, 512)))[4:]
    assert [row.split(" | ")[0] for row in rows] == ["| 256"] * 4 + ["| 512"] * 4
