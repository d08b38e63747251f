"""The calibration questions: every gold passage is in this Python's reference, and the splits share nothing."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from pydoc_data.topics import topics as PYTHON_TOPICS

import pytest
import yaml

FILE = Path(__file__).parents[2] / "workers" / "selection" / "questions.yaml"
QUESTIONS: list[dict[str, str]] = yaml.safe_load(FILE.read_text(encoding="utf-8"))
KEYS = ["id", "topic", "split", "question", "gold", "answer"]
SPLITS = ("calibrate", "held_out")


def squeezed(text: str) -> str:
    return re.sub(r"\s+", "", text)


TOPICS = {name: squeezed(text) for name, text in PYTHON_TOPICS.items()}
TOPICS_OF = {split: {q["topic"] for q in QUESTIONS if q["split"] == split} for split in SPLITS}


def words(text: str) -> set[str]:
    return set(re.findall(r"[a-z_0-9]+", text.lower()))


@pytest.mark.parametrize("question", QUESTIONS, ids=[q["id"] for q in QUESTIONS])
def test_question_rests_on_one_passage_of_its_topic(question: dict[str, str]) -> None:
    assert list(question) == KEYS
    assert all(isinstance(value, str) and value == value.strip() for value in question.values())
    assert question["split"] in SPLITS
    assert question["question"].endswith("?")
    assert TOPICS[question["topic"]].count(squeezed(question["gold"])) == 1
    assert 30 <= len(question["gold"]) <= 200
    assert question["answer"] in question["gold"]
    assert 1 <= len(question["answer"]) <= 60
    assert "  " not in question["gold"]


@pytest.mark.parametrize("question", QUESTIONS, ids=[q["id"] for q in QUESTIONS])
def test_question_is_not_the_sentence_itself(question: dict[str, str]) -> None:
    gold = words(question["gold"])
    assert len(gold & words(question["question"])) <= 0.75 * len(gold)
    assert squeezed(question["gold"]) not in squeezed(question["question"])


def test_ids_and_questions_are_unique() -> None:
    for key in ("id", "question", "gold"):
        twice = [value for value, uses in Counter(q[key] for q in QUESTIONS).items() if uses > 1]
        assert twice == []


def test_splits_are_large_even_and_widely_spread() -> None:
    sizes = Counter(q["split"] for q in QUESTIONS)
    assert all(sizes[split] >= 48 for split in SPLITS)
    assert abs(sizes["calibrate"] - sizes["held_out"]) <= 4
    assert len(TOPICS_OF["calibrate"] | TOPICS_OF["held_out"]) >= 40


def test_splits_share_no_topic_and_no_passage() -> None:
    """Some topics contain others, so different names are not enough: a passage of one split must not occur
    in any topic of the other."""
    assert TOPICS_OF["calibrate"].isdisjoint(TOPICS_OF["held_out"])
    for question in QUESTIONS:
        (other,) = set(SPLITS) - {question["split"]}
        gold = squeezed(question["gold"])
        assert [name for name in sorted(TOPICS_OF[other]) if gold in TOPICS[name]] == [], question["id"]
