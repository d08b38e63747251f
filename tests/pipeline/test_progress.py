"""Progress in words: on a clock that the test turns, without waiting."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from pipeline.loop import Progress
from pipeline.progress import EVERY_S, BarView, LineView, View, shown_on
from pipeline.quantities import duration, in_bytes

START = Progress(
    parts=0,
    parts_total=4,
    documents=0,
    documents_total=40,
    tokens=0,
    tokens_total=100_000,
    failed=0,
    elapsed_s=0.0,
)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Watched(View):
    def show(self, progress: Progress, words: str) -> None:
        self.words = words


def test_pace_is_that_of_this_process_alone() -> None:
    clock = Clock()
    view = Watched(clock)
    view(replace(START, tokens=60_000))
    assert view.pace.left_s is None and "time left unknown" in view.words
    clock.now += 10
    view(replace(START, tokens=65_000))
    assert view.pace.tokens_per_s == 500
    assert view.pace.left_s == 70


def test_words_hold_all_that_is_asked_for() -> None:
    clock = Clock()
    view = Watched(clock)
    view(START)
    clock.now += 60
    view(replace(START, documents=12, tokens=30_000, failed=1_234))
    assert view.words == "12/40 documents, 30,000 tokens (30 %), 500 tokens/s, 2m 20s left, 1,234 failed"


def test_a_run_without_tokens_is_done() -> None:
    view = Watched(Clock())
    view(replace(START, tokens_total=0))
    assert "(100 %)" in view.words


def test_lines_come_at_once_then_every_thirty_seconds_then_at_the_end() -> None:
    clock, lines = Clock(), list[str]()
    view = LineView(lines.append, clock)
    for second in range(0, 100, 5):
        clock.now = 100.0 + second
        view(replace(START, documents=second))
    assert [line.split("/")[0] for line in lines] == ["0", "30", "60", "90"]
    view.close()
    view.close()
    assert lines[4].startswith("95/40") and len(lines) == 5


def test_a_line_that_was_said_is_not_said_again() -> None:
    clock, lines = Clock(), list[str]()
    view = LineView(lines.append, clock)
    view(START)
    clock.now += EVERY_S
    view(START)
    view.close()
    assert len(lines) == 2


def test_plain_output_has_plain_lines() -> None:
    out = io.StringIO()
    with shown_on(Console(file=out, width=40), Clock()) as view:
        view(START)
    assert out.getvalue() == "0/40 documents, 0 tokens (0 %), 0 tokens/s, time left unknown, 0 failed\n"


def test_plain_output_is_whole_after_an_error() -> None:
    out, clock = io.StringIO(), Clock()
    with pytest.raises(RuntimeError), shown_on(Console(file=out), clock) as view:
        view(START)
        view(replace(START, documents=3))
        raise RuntimeError
    assert out.getvalue().splitlines()[-1].startswith("3/40")


def test_a_terminal_has_a_bar() -> None:
    out = io.StringIO()
    with shown_on(Console(file=out, force_terminal=True, width=120), Clock()) as view:
        assert isinstance(view, BarView)
        view(replace(START, documents=7, tokens=50_000))
    assert "7/40 documents" in out.getvalue() and "\x1b[" in out.getvalue()


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0s"),
        (0.0347, "0.035s"),
        (0.996, "1.0s"),
        (4.24, "4.2s"),
        (9.96, "10s"),
        (59.4, "59s"),
        (59.6, "1m 00s"),
        (725, "12m 05s"),
        (3599.6, "1h 00m"),
        (10_920, "3h 02m"),
        (187_200, "2d 04h"),
    ],
)
def test_duration(seconds: float, words: str) -> None:
    assert duration(seconds) == words


@pytest.mark.parametrize(
    ("number", "words"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (2**30, "1.0 GiB"), (3 * 2**50, "3,072.0 TiB")],
)
def test_in_bytes(number: int, words: str) -> None:
    assert in_bytes(number) == words
