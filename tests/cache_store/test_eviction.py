"""The eviction rule against a plain list: oldest first, pins respected, no more than needed."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cache_store.eviction import LeastRecentlyUsed
from tests.cache_store.blocks import make_key

KEYS = [make_key(number) for number in range(5)]
steps = st.lists(
    st.tuples(st.sampled_from(["admit", "touch", "remove", "pin", "unpin"]), st.integers(0, 4), st.integers(0, 12)),
    max_size=40,
)


@settings(deadline=None)
@given(steps, st.integers(0, 20))
def test_the_rule_is_oldest_first_among_the_unpinned(history: list[tuple[str, int, int]], max_bytes: int) -> None:
    rule = LeastRecentlyUsed(max_bytes)
    model: list[tuple[int, int]] = []  # (key, size), oldest use first
    pins = [0] * len(KEYS)
    for verb, key, size in history:
        others = [entry for entry in model if entry[0] != key]
        if verb == "admit":
            expected = oldest_that_make_room(others, pins, max_bytes - size)
            victims = rule.room_for(KEYS[key], size)
            assert victims == (None if expected is None else tuple(KEYS[number] for number in expected))
            if victims is not None and expected is not None:
                for victim in victims:
                    rule.remove(victim)
                rule.add(KEYS[key], size)
                model = [*(entry for entry in others if entry[0] not in expected), (key, size)]
        elif verb == "touch":
            rule.touch(KEYS[key])
            model = others + [entry for entry in model if entry[0] == key]
        elif verb == "remove":
            rule.remove(KEYS[key])
            model = others
        elif verb == "pin":
            rule.pin([KEYS[key]])
            pins[key] += 1
        elif pins[key]:
            rule.unpin([KEYS[key]])
            pins[key] -= 1
        assert list(rule) == [KEYS[number] for number, _ in model]
        assert rule.num_bytes == sum(size for _, size in model) <= max_bytes


def oldest_that_make_room(entries: list[tuple[int, int]], pins: list[int], space: int) -> list[int] | None:
    """The shortest run of oldest unpinned entries without which the others fit into ``space``."""
    loose = [entry for entry in entries if not pins[entry[0]]]
    for count in range(len(loose) + 1):
        if sum(size for _, size in entries) - sum(size for _, size in loose[:count]) <= space:
            return [number for number, _ in loose[:count]]
    return None


def test_over_budget_names_the_oldest_that_are_not_pinned() -> None:
    rule = LeastRecentlyUsed(10)
    rule.replace_all((key, 4) for key in KEYS)
    rule.pin(KEYS[:1])
    assert rule.over_budget() == tuple(KEYS[1:4])


def test_a_negative_budget_is_refused() -> None:
    with pytest.raises(ValueError, match="max_bytes: -1"):
        LeastRecentlyUsed(-1)
