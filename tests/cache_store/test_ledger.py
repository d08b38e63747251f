"""The books of a shared budget: refusals, and pins of processes that come and go."""

from __future__ import annotations

from cache_store.tiers.ledger import LEASE_S, Ledger, Verdict, Weight
from tests.cache_store.blocks import make_key

KEYS = [make_key(number) for number in range(5)]


class Clock:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def full(*, pinned: bool = True) -> tuple[Ledger[str], Clock]:
    """A ledger of two entries that has two, both pinned by ``one``."""
    clock = Clock()
    ledger: Ledger[str] = Ledger(20, clock)
    for key in KEYS[:2]:
        assert ledger.keep(key, Weight(10, 1.0), lambda key=key: key.hex) == Verdict(kept=True, evictions=0)  # type: ignore[misc]
    if pinned:
        ledger.pin("one", KEYS[:2])
    return ledger, clock


def test_the_oldest_use_makes_room_and_what_is_refused_is_never_made() -> None:
    ledger, _ = full(pinned=False)
    assert ledger.find(KEYS[0]) == KEYS[0].hex
    assert ledger.keep(KEYS[2], Weight(10, 1.0), lambda: "new") == Verdict(kept=True, evictions=1)
    assert set(ledger.keys()) == {KEYS[0], KEYS[2]} and ledger.num_bytes == 20

    def unwanted() -> str:
        raise AssertionError("made for nothing")

    assert ledger.keep(KEYS[2], Weight(21, 1.0), unwanted) == Verdict(kept=False, evictions=0)
    assert ledger.keys() == (KEYS[0],) and ledger.find(KEYS[2]) is None


def test_a_process_unpins_only_what_it_pinned_itself() -> None:
    ledger, _ = full()
    ledger.unpin("two", KEYS)
    assert not ledger.keep(KEYS[2], Weight(10, 1.0), lambda: "new").kept
    ledger.unpin("one", [KEYS[0], KEYS[0]])
    ledger.pin("two", [KEYS[1]])
    ledger.unpin("one", [KEYS[1]])
    assert ledger.keep(KEYS[2], Weight(10, 1.0), lambda: "new") == Verdict(kept=True, evictions=1)
    assert set(ledger.keys()) == {KEYS[1], KEYS[2]}


def test_pins_end_with_the_lease_of_a_silent_process() -> None:
    ledger, clock = full()
    clock.now_s += LEASE_S
    assert not ledger.keep(KEYS[2], Weight(10, 1.0), lambda: "new").kept
    ledger.hear("one")
    clock.now_s += LEASE_S
    assert not ledger.keep(KEYS[2], Weight(10, 1.0), lambda: "new").kept
    clock.now_s += 1
    assert ledger.keep(KEYS[2], Weight(10, 1.0), lambda: "new").kept
    ledger.unpin("one", KEYS)
    ledger.pin("one", [KEYS[1]])
    assert ledger.keep(KEYS[3], Weight(10, 1.0), lambda: "new").kept
    assert set(ledger.keys()) == {KEYS[1], KEYS[3]}
