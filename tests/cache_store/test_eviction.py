"""The eviction rule against a list that is searched anew each time, and what it is for, case by case."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cache_store.eviction import CostAware
from cache_store.identity import BlockKey
from tests.cache_store.blocks import make_key

KEYS = [make_key(number) for number in range(6)]


@dataclass
class Known:
    """An entry of the model."""

    size: int
    cost: int | None
    uses: int
    clock: float
    priority: float = 0.0


@dataclass
class Model:
    """The rule as its docstring says it, over key numbers; ``entries``: oldest use first."""

    max_bytes: int
    entries: dict[int, Known] = field(default_factory=dict)
    clocks: dict[bool, float] = field(default_factory=lambda: {True: 0.0, False: 0.0})
    left: dict[int, int] = field(default_factory=dict)

    def count(self, key: int, entry: Known) -> None:
        self.entries.pop(key, None)
        self.entries[key] = entry
        costs = [other.cost for other in self.entries.values() if other.cost is not None]
        mean = sum(costs) / len(costs) if costs else 1.0
        worth = mean if entry.cost is None else entry.cost
        entry.priority = entry.clock + entry.uses * worth / max(1, entry.size)

    def add(self, key: int, size: int, cost: int | None) -> None:
        former = self.entries.pop(key, None)
        uses = 1 + (former.uses if former else self.left.pop(key, 0))
        if cost is None and former is not None:
            cost = former.cost
        self.count(key, Known(size, cost, uses, self.clocks[uses > 1]))

    def touch(self, key: int, cost: int | None) -> None:
        if key in self.entries:
            self.add(key, self.entries[key].size, cost)

    def evict(self, key: int) -> None:
        while len(self.left) >= len(self.entries):
            del self.left[next(iter(self.left))]
        entry = self.entries.pop(key)
        self.clocks[entry.uses > 1] = max(self.clocks[entry.uses > 1], entry.priority)
        self.left[key] = entry.uses

    def replace_all(self, listed: Iterable[tuple[int, int, int | None]]) -> None:
        former, self.entries = self.entries, {}
        for key, size, cost in listed:
            if key in former:
                known = former[key]
                self.count(key, Known(size, known.cost if cost is None else cost, known.uses, known.clock))
            else:
                self.add(key, size, cost)

    def order(self, staying: Collection[int] = ()) -> list[int]:
        """Keys as they leave: those used once first, while they hold a tenth of the budget or more."""
        order: list[int] = []
        while True:
            rest = {key: entry for key, entry in self.entries.items() if key not in order}
            unproven = [key for key, entry in rest.items() if entry.uses == 1]
            crowded = 10 * sum(rest[key].size for key in unproven) >= self.max_bytes
            loose = [key for key in rest if key not in staying]
            if not loose:
                return order
            preferred = [key for key in loose if (key in unproven) == crowded] or loose
            order.append(min(preferred, key=lambda key: rest[key].priority))  # the first of equals: the oldest use

    def room_for(self, key: int, size: int, staying: set[int]) -> list[int] | None:
        order = self.order(staying | {key})
        for count in range(len(order) + 1):
            gone = {*order[:count], key}
            if size + sum(entry.size for other, entry in self.entries.items() if other not in gone) <= self.max_bytes:
                return order[:count]
        return None

    def over_budget(self, staying: set[int]) -> list[int]:
        order = self.order(staying)
        excess = sum(entry.size for entry in self.entries.values()) - self.max_bytes
        excess = min(excess, sum(self.entries[key].size for key in order))
        freed = [sum(self.entries[key].size for key in order[:count]) for count in range(len(order) + 1)]
        return next(order[:count] for count, each in enumerate(freed) if each >= excess)


numbers = st.integers(0, len(KEYS) - 1)
sizes = st.integers(0, 12)
costs = st.none() | st.integers(1, 9)
steps = st.one_of(
    st.tuples(st.just("admit"), numbers, sizes, costs),
    st.tuples(st.just("admit"), numbers, sizes, costs),
    st.tuples(st.just("touch"), numbers, st.just(0), costs),
    st.tuples(st.sampled_from(["remove", "pin", "unpin"]), numbers, st.just(0), st.none()),
    st.tuples(st.just("list"), numbers, sizes, costs),
)


@settings(deadline=None, max_examples=300)
@given(st.lists(steps, max_size=40), st.integers(0, 30))
def test_the_rule_is_what_a_search_through_a_list_says(
    history: list[tuple[str, int, int, int | None]], max_bytes: int
) -> None:
    rule, model = CostAware(max_bytes), Model(max_bytes)
    pins = [0] * len(KEYS)
    for verb, key, size, cost in history:
        pinned = {number for number, times in enumerate(pins) if times}
        if verb == "admit":
            victims = model.room_for(key, size, pinned)
            assert rule.room_for(KEYS[key], size) == names(victims)
            if victims is not None:
                evict(rule, model, victims)
                rule.add(KEYS[key], size, cost)
                model.add(key, size, cost)
        elif verb == "touch":
            rule.touch(KEYS[key], cost)
            model.touch(key, cost)
        elif verb == "remove":
            rule.remove(KEYS[key])
            model.entries.pop(key, None)
        elif verb == "pin":
            rule.pin([KEYS[key]])
            pins[key] += 1
        elif verb == "unpin" and pins[key]:
            rule.unpin([KEYS[key]])
            pins[key] -= 1
            evict(rule, model, model.over_budget({number for number, times in enumerate(pins) if times}))
        elif verb == "list":  # without the next key, in another order, one of them new, changed or priced
            others = [other for other in model.entries if other not in (key, (key + 1) % len(KEYS))]
            listed = [(key, size, cost), *((other, model.entries[other].size, None) for other in reversed(others))]
            rule.replace_all((KEYS[number], num_bytes, tokens) for number, num_bytes, tokens in listed)
            model.replace_all(listed)
            victims = model.over_budget(pinned)
            assert rule.over_budget() == names(victims)
            evict(rule, model, victims)
        assert list(rule) == [KEYS[number] for number in model.order()]
        assert {number for number, name in enumerate(KEYS) if name in rule} == set(model.entries)
        total = sum(entry.size for entry in model.entries.values())
        assert rule.num_bytes == total and len(rule) == len(model.entries)
        assert total <= max(max_bytes, sum(entry.size for number, entry in model.entries.items() if pins[number]))


def names(numbers: list[int] | None) -> tuple[BlockKey, ...] | None:
    return None if numbers is None else tuple(KEYS[number] for number in numbers)


def evict(rule: CostAware, model: Model, victims: list[int]) -> None:
    for victim in victims:
        rule.evict(KEYS[victim])
        model.evict(victim)


@settings(deadline=None)
@given(st.lists(st.tuples(numbers, sizes), max_size=20), st.sets(numbers), numbers, st.integers(0, 40))
def test_asking_for_room_changes_nothing(
    history: list[tuple[int, int]], pinned: set[int], key: int, num_bytes: int
) -> None:
    rule = CostAware(30)
    for number, size in history:
        put(rule, KEYS[number], size, cost=number + 1)
    rule.pin(KEYS[number] for number in pinned)
    before = list(rule)
    victims = rule.room_for(KEYS[key], num_bytes)
    assert victims == rule.room_for(KEYS[key], num_bytes) and list(rule) == before
    assert not {KEYS[key], *(KEYS[number] for number in pinned)} & set(victims or ())


def put(rule: CostAware, key: BlockKey, num_bytes: int, cost: float | None) -> tuple[BlockKey, ...]:
    """What a tier does; gives what was pushed out."""
    victims = rule.room_for(key, num_bytes)
    if victims is None:
        return ()
    for victim in victims:
        rule.evict(victim)
    rule.add(key, num_bytes, cost)
    return victims


def filled(sizes_and_costs: Iterable[tuple[int, float | None]], max_bytes: int) -> CostAware:
    """The rule with entries 0, 1, ... in this order."""
    rule = CostAware(max_bytes)
    for number, (size, cost) in enumerate(sizes_and_costs):
        assert put(rule, make_key(number), size, cost) == ()
    return rule


def test_equal_entries_leave_least_recently_used_first() -> None:
    rule = filled([(10, 100)] * 4, 40)
    assert list(rule) == [make_key(number) for number in range(4)]
    for number in (2, 0, 3, 1):
        rule.touch(make_key(number))
    assert list(rule) == [make_key(number) for number in (2, 0, 3, 1)]


def test_a_costly_small_entry_outlives_a_cheap_large_one() -> None:
    for order in ([(1, 8000.0), (20, 100.0)], [(20, 100.0), (1, 8000.0)]):
        rule = filled(order, 30)
        victims = put(rule, make_key(9), 20, 1000)
        assert victims == (make_key(order.index((20, 100.0))),)


def test_a_scan_of_cheap_entries_pushes_out_none_that_was_used_again() -> None:
    rule = filled([(10, 100)] * 9, 100)
    for number in range(9):
        rule.touch(make_key(number))
    for number in range(100, 1100):
        put(rule, make_key(number), 10, 50)
    assert {make_key(number) for number in range(9)} < set(rule)


def test_what_was_popular_leaves_once_others_are_used_again() -> None:
    rule = filled([(10, 100)], 100)
    for _ in range(20):
        rule.touch(make_key(0))
    rounds = 0
    while make_key(0) in rule and rounds < 100:
        rounds += 1
        for number in range(10 * rounds, 10 * rounds + 10):
            put(rule, make_key(number), 10, 100)
            rule.touch(make_key(number))
    assert 5 < rounds < 30


def test_a_key_that_comes_back_goes_on_with_its_uses() -> None:
    rule = filled([(10, 100)] * 2, 20)
    assert put(rule, make_key(2), 10, 100) == (make_key(0),)
    assert put(rule, make_key(0), 10, 100) == (make_key(1),)  # used for the second time: off probation
    assert put(rule, make_key(3), 10, 100) == (make_key(2),)
    assert put(rule, make_key(4), 10, 100) == (make_key(3),)


@pytest.mark.parametrize(("back", "stays"), [(16, True), (15, True), (14, False), (0, False)])
def test_as_many_keys_are_remembered_as_there_were_entries(back: int, stays: bool) -> None:
    rule = filled([(10, 100)] * 3, 30)
    for number in range(3, 20):
        put(rule, make_key(number), 10, 100)
    put(rule, make_key(back), 10, 100)  # 14, 15 and 16 left last; now 17 does, and 14 is forgotten
    for number in range(30, 33):
        put(rule, make_key(number), 10, 100)
    assert (make_key(back) in rule) == stays and len(rule) == 3


def test_a_key_is_remembered_from_when_it_last_left() -> None:
    rule = filled([(10, 100)] * 3, 30)
    for number in (3, 0):  # 0 leaves and comes back, then 1 leaves
        put(rule, make_key(number), 10, 100)
    rule.evict(make_key(0))
    for number in (4, 5, 0):  # 2 leaves for 5; then 3 for 0, and 1 is forgotten
        put(rule, make_key(number), 10, 100)
    for number in range(30, 33):
        put(rule, make_key(number), 10, 100)
    assert make_key(0) in rule


def test_memory_stays_in_proportion_to_the_entries() -> None:
    rule = filled([(10, 100)] * 50, 500)
    for turn in range(5000):
        rule.touch(make_key(turn % 50))
    assert len(rule._proven._heap) <= 2 * 50 + 8 and len(rule._probation._heap) <= 2 * 50 + 8


def test_an_unknown_cost_counts_as_the_mean_of_those_known() -> None:
    assert list(filled([(10, 100), (10, None), (10, 300), (10, 150)], 40)) == list(map(make_key, (0, 1, 3, 2)))
    rule = filled([(10, 100), (10, 300), (10, None), (10, 250)], 40)
    assert list(rule) == list(map(make_key, (0, 2, 3, 1)))


def test_entries_of_unknown_cost_that_were_found_do_not_push_out_what_is_put() -> None:
    rule = CostAware(1000)
    rule.replace_all((make_key(number), 10, None) for number in range(100))
    pushed = [key for number in range(100, 150) for key in put(rule, make_key(number), 10, 2048)]
    assert pushed == [make_key(number) for number in range(50)]


def test_listing_keeps_uses_and_is_none() -> None:
    rule = filled([(10, 100)] * 3, 30)
    rule.touch(make_key(0))
    rule.replace_all((make_key(number), 10, None) for number in (0, 2, 1, 3))
    assert list(rule) == list(map(make_key, (2, 1, 3, 0)))
    assert rule.over_budget() == (make_key(2),)


def test_listing_keeps_the_clock() -> None:
    rule = filled([(10, 100)] * 2, 20)
    for number in (0, 1):
        rule.touch(make_key(number))
    for number in (2, 3):  # 0 and 2 leave for them
        put(rule, make_key(number), 10, 100)
        rule.touch(make_key(number))
    rule.replace_all([(make_key(3), 10, None)])
    rule.add(make_key(4), 10, 99)
    rule.touch(make_key(4))
    assert list(rule) == [make_key(4), make_key(3)]
    rule.touch(make_key(4))
    assert list(rule) == [make_key(3), make_key(4)]


def test_over_budget_names_none_that_is_pinned() -> None:
    rule = CostAware(10)
    rule.replace_all((key, 4, None) for key in KEYS)
    rule.pin(KEYS[:1])
    assert rule.over_budget() == tuple(KEYS[1:5])
    rule.pin(KEYS[1:5])
    assert rule.over_budget() == (KEYS[5],)


@pytest.mark.parametrize(("num_bytes", "cost"), [(-1, 1.0), (1, 0.0), (1, -1.0), (1, float("nan"))])
def test_a_cost_or_size_that_cannot_be_is_our_mistake(num_bytes: int, cost: float) -> None:
    with pytest.raises(AssertionError):
        CostAware(10).add(KEYS[0], num_bytes, cost)


def test_a_negative_budget_is_refused() -> None:
    with pytest.raises(ValueError, match="max_bytes: -1"):
        CostAware(-1)
