"""When workers may be started: errors count each, deaths at about the same time once."""

from __future__ import annotations

from pipeline.starts import MAX_DEATHS, MAX_ERRORS, Starts


class Clock:
    """Stands until it is set."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def test_errors_are_hopeless_soon_and_cost_no_time() -> None:
    starts = Starts(Clock())
    for number in range(MAX_ERRORS):
        assert not starts.are_hopeless and starts.number_in_a_row == number
        starts.raised()
        assert starts.pause_s == 0
    assert starts.are_hopeless and starts.number_in_a_row == MAX_ERRORS


def test_a_machine_that_takes_many_with_it_counts_once() -> None:
    clock = Clock()
    starts = Starts(clock)
    for _ in range(50):
        starts.died()
    assert starts.number_in_a_row == 1 and not starts.are_hopeless
    assert starts.pause_s == 1
    clock.now_s += 0.75
    assert starts.pause_s == 0.25
    starts.died()
    assert starts.number_in_a_row == 1 and starts.pause_s == 0.25, "a late one makes the pause no longer"


def test_pauses_grow_and_end_in_the_end() -> None:
    clock = Clock()
    starts = Starts(clock)
    pauses = []
    while not starts.are_hopeless:
        starts.died()
        pauses.append(starts.pause_s)
        clock.now_s += starts.pause_s
    assert pauses == [1, 2, 4, 8, 16] and len(pauses) == MAX_DEATHS


def test_one_that_starts_makes_all_forgotten() -> None:
    clock = Clock()
    starts = Starts(clock)
    for _ in range(2 * MAX_DEATHS):
        starts.raised()
        starts.died()
        clock.now_s += starts.pause_s
        assert not starts.are_hopeless
        starts.succeeded()
    starts.died()
    assert starts.pause_s == 1
