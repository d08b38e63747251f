"""Calibration finds planted heads, never looks at held-out questions, and reads as the engine reads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.workers.engines import Workbench
from workers.messages import Chunk, Encode
from workers.selection import calibrate as calibration
from workers.selection.calibrate import Observation, Sight, calibrate, choose_profile, observe
from workers.selection.profile import Profile
from workers.selection.questions import Exam, GoldQuestion
from workers.selection.relevance import block_shares

HEADS = tuple((layer, head) for layer in range(3) for head in range(4))


def planted(good: set[int], rows: str = "words", questions: int = 30, blocks: int = 64) -> Observation:
    """Heads that see noise, and good ones that each see a different two thirds of the gold blocks."""
    rng = np.random.default_rng(1)
    sights = []
    for q in range(questions):
        gold = int(rng.integers(blocks))
        masses = {name: rng.normal(size=(len(HEADS), blocks)).astype(np.float32) for name in ("words", "last")}
        for index, head in enumerate(sorted(good)):
            if q % 3 != index % 3:
                masses[rows][head, gold] += 5.0
        sights.append(Sight(masses, ((gold * 32 + 3, gold * 32 + 20),), f"topic{q % 7}"))
    return Observation(HEADS, ((0, blocks * 32),), tuple(sights))


@pytest.mark.parametrize("rows", ["words", "last"])
def test_the_planted_heads_and_rows_are_found(rows: str) -> None:
    observation = planted({2, 5, 11}, rows)
    profile = choose_profile(observation, "weights")
    assert profile.rows == rows
    assert {HEADS[2], HEADS[5], HEADS[11]} <= set(profile.heads)
    everything = Profile("weights", HEADS, rows)
    assert observation.recall(profile, 128) > observation.recall(everything, 128)


def test_choosing_is_deterministic() -> None:
    assert choose_profile(planted({1, 7}), "w") == choose_profile(planted({1, 7}), "w")


def test_an_exam_is_read_as_the_engine_reads(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The masses of one head are what an engine with that head as its profile makes of the same text."""
    monkeypatch.setattr(calibration, "CHUNK_TOKENS", 128)
    bench = Workbench(tiny_model)
    text = "the cat signed it. " * 20
    exam = Exam(
        text, (GoldQuestion("a", "t", "Who signed it?", ((4, 17),)), GoldQuestion("b", "t", "When?", ((40, 60),)))
    )
    observation = observe(bench.loaded, exam)
    assert observation.sights[0].gold == ((4, 17),), "one token per byte: tokens are characters"
    engine = bench.engine(skims=True, block_tokens=32)
    ids = tuple(bench.frame.tokenizer.encode(text))
    probe = bench.frame.probe("a", "Who signed it?")
    lse = [
        engine.encode(Encode("d", (Chunk(n, start, ids[start : start + 128]),), (probe,))).relevance[0][0].block_lse_RHB
        for n, start in enumerate(range(0, len(ids), 128))
    ]
    both = [HEADS.index(head) for head in ((0, 1), (1, 3))]  # the workbench's profile
    joint = observation.sights[0].masses_HB["words"][both].astype(np.float64).mean(axis=0)
    np.testing.assert_allclose(np.exp(joint) / np.exp(joint).sum(), np.concatenate(block_shares(lse)), rtol=1e-3)


def test_calibrating_a_model_of_no_profile_gives_one_with_what_was_measured(tiny_model: Path) -> None:
    bench = Workbench(tiny_model)
    lines: list[str] = []
    profile = calibrate(bench.loaded, max_chars=2_000, report=lines.append)
    assert profile.weights == "weights" and 1 <= len(profile.heads) <= 8
    assert 0 <= profile.measured["calibrate"]["recall_at_1024"] <= 1
    assert "held_out" not in profile.measured and lines


def test_the_splits_share_no_question_and_no_text() -> None:
    chosen, held_out = Exam.of_split("calibrate"), Exam.of_split("held_out")
    assert not {q.topic for q in chosen.questions} & {q.topic for q in held_out.questions}
    assert min(len(chosen.questions), len(held_out.questions)) >= 48
    for question in held_out.questions:
        for start, stop in question.gold:
            assert held_out.text[start:stop].strip() == held_out.text[start:stop]
            assert held_out.text[start:stop] not in chosen.text
