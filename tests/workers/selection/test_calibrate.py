"""Calibration finds planted heads, never looks at held-out questions, and reads as the engine reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.workers.engines import Workbench, chunked, encode, profile_of
from workers.selection import observe as observing
from workers.selection.calibrate import HeadSearch, calibrate, choose_profile
from workers.selection.observe import Meeting, Observation, Sight, observe
from workers.selection.profile import Profile
from workers.selection.questions import Exam, GoldQuestion
from workers.selection.relevance import block_shares

HEADS = tuple((layer, head) for layer in range(3) for head in range(4))


def planted(good: set[int], rows: str = "words", questions: int = 30, blocks: int = 64, told: int = 0) -> Observation:
    """Heads that see noise, and good ones that each see a different two thirds of the gold blocks. Words find the gold
    block of the first ``told`` of every three questions, and nothing of the others."""
    rng = np.random.default_rng(1)
    sights = []
    for q in range(questions):
        gold = int(rng.integers(blocks))
        masses = {name: rng.normal(size=(len(HEADS), blocks)).astype(np.float32) for name in ("words", "last")}
        for index, head in enumerate(sorted(good)):
            if q % 3 != index % 3:
                masses[rows][head, gold] += 5.0
        matches_B = np.zeros(blocks, np.float32)
        matches_B[gold] = 200.0 if q % 3 < told else 0.0
        sights.append(Sight(masses, matches_B, ((gold * 32 + 3, gold * 32 + 20),), f"topic{q % 7}"))
    return Observation(HEADS, ((0, blocks * 32),), tuple(sights))


@pytest.mark.parametrize("rows", ["words", "last"])
def test_the_planted_heads_and_rows_are_found(rows: str) -> None:
    observation = planted({2, 5, 11}, rows)
    profile = choose_profile(observation, "weights")
    assert profile.rows == rows
    assert {HEADS[2], HEADS[5], HEADS[11]} <= set(profile.heads)
    everything = Profile("weights", HEADS, rows)
    assert observation.recall(profile, 128) > observation.recall(everything, 128)


def test_heads_are_chosen_for_what_they_add_to_words() -> None:
    """Head 2 misses every first question of three, head 5 every second, head 11 every third: where words find the first
    two, it is head 11 that has nothing to add."""
    everything = range(30)
    for told, useless in ((2, 11), (0, None)):
        chosen = HeadSearch(planted({2, 5, 11}, told=told), "words").greedy(everything, 2)
        assert useless not in chosen and set(chosen) <= {2, 5, 11}


def test_words_and_heads_together_recall_more_than_either() -> None:
    observation = planted({2}, told=1)
    profile = Profile("weights", (HEADS[2],), "words")
    words = [np.exp(sight.matches_B.astype(np.float64)) for sight in observation.sights]
    together, heads = observation.recall(profile, 64), observation.recall(profile, 64, lexical=0.0)
    assert together > max(heads, observation.recall_of(words, 64))


def test_choosing_is_deterministic() -> None:
    assert choose_profile(planted({1, 7}), "w") == choose_profile(planted({1, 7}), "w")


@pytest.mark.parametrize(
    ("meeting", "keep"), [("probe", {}), ("index", {"scorer": {"kind": "index"}, "question": "unknown"})]
)
def test_an_exam_is_read_as_the_engine_reads(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, meeting: Meeting, keep: dict[str, Any]
) -> None:
    """The masses of chosen heads are what an engine with a profile of these heads makes of the same text."""
    monkeypatch.setattr(observing, "CHUNK_TOKENS", 128)
    bench = Workbench(tiny_model)
    text = "the cat signed it. " * 20
    exam = Exam(
        text, (GoldQuestion("a", "t", "Who signed it?", ((4, 17),)), GoldQuestion("b", "t", "When?", ((40, 60),)))
    )
    observation = observe(bench.loaded, exam)[meeting]
    assert observation.sights[0].gold == ((4, 17),), "one token per byte: tokens are characters"
    engine = bench.engine(keep={"block_tokens": 32} | keep)
    profile = profile_of(bench.model.shape)
    chosen = profile if meeting == "probe" else profile.index
    assert chosen is not None
    ids = tuple(bench.frame.tokenizer.encode(text))
    probe = bench.frame.probe("a", "Who signed it?")
    lse = [engine.encode(encode((chunk,), (probe,))).relevance[0][0].log_RHB for chunk in chunked(ids, 128)]
    both = [HEADS.index(head) for head in chosen.heads]
    joint = observation.sights[0].masses_HB[chosen.rows][both].astype(np.float64).mean(axis=0)
    np.testing.assert_allclose(np.exp(joint) / np.exp(joint).sum(), np.concatenate(block_shares(lse)), rtol=1e-3)


def test_calibrating_a_model_of_no_profile_gives_one_with_what_was_measured(tiny_model: Path) -> None:
    bench = Workbench(tiny_model)
    lines: list[str] = []
    profile = calibrate(bench.loaded, max_chars=2_000, report=lines.append)
    assert profile.weights == "weights" and 1 <= len(profile.heads) <= 8
    kinds = ("recall", "recall_of_heads_alone", "recall_of_words_alone", "recall_of_all_heads")
    recalls = {f"{kind}_at_{budget}" for kind in kinds for budget in (256, 512, 1024)}
    assert profile.index is not None and profile.index.index is None and profile.index.heads
    for choice in (profile, profile.index):
        measured = choice.measured["calibrate"]
        assert measured.keys() == recalls | {"questions", "tokens"}
        assert all(0 <= measured[name] <= 1 for name in recalls)
        assert "held_out" not in choice.measured
    assert lines


def test_the_splits_share_no_question_and_no_text() -> None:
    chosen, held_out = Exam.of_split("calibrate"), Exam.of_split("held_out")
    assert not {q.topic for q in chosen.questions} & {q.topic for q in held_out.questions}
    assert min(len(chosen.questions), len(held_out.questions)) >= 48
    for question in held_out.questions:
        for start, stop in question.gold:
            assert held_out.text[start:stop].strip() == held_out.text[start:stop]
            assert held_out.text[start:stop] not in chosen.text
