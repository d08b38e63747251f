"""Laws of the order of reading."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from pipeline.order import ReadingOrder


@dataclass(frozen=True)
class Message:
    document: str
    index: int


def messages(document: str, count: int) -> list[Message]:
    return [Message(document, index) for index in range(count)]


def taken(order: ReadingOrder[Message]) -> list[str]:
    return [f"{message.document}{message.index}" for message in iter(order.take, None)]


def test_in_a_part_the_longest_goes_first_and_of_equals_the_earlier() -> None:
    order: ReadingOrder[Message] = ReadingOrder()
    for document, count in [("a", 1), ("b", 3), ("c", 2), ("d", 3)]:
        order.add(messages(document, count), 0, 100 * count)
    assert len(order) == 9
    assert taken(order) == ["b0", "b1", "b2", "d0", "d1", "d2", "c0", "c1", "a0"]
    assert len(order) == 0


def test_a_part_that_was_begun_earlier_goes_before_longer_documents_of_a_later_one() -> None:
    order: ReadingOrder[Message] = ReadingOrder()
    order.add(messages("long", 2), 1, 1000)
    order.add(messages("short", 1), 0, 10)
    assert taken(order) == ["short0", "long0", "long1"]


def test_what_was_begun_goes_on_before_all_others_in_its_own_order() -> None:
    order: ReadingOrder[Message] = ReadingOrder()
    order.add(messages("fresh", 1), 0, 10)
    order.put_first(messages("older", 2))
    order.put_first(messages("newer", 2))
    assert taken(order) == ["newer0", "newer1", "older0", "older1", "fresh0"]


def test_a_longer_document_overtakes_one_that_was_half_handed_out() -> None:
    order: ReadingOrder[Message] = ReadingOrder()
    order.add(messages("first", 2), 0, 20)
    assert order.take() == Message("first", 0)
    order.add(messages("longer", 1), 0, 99)
    assert taken(order) == ["longer0", "first1"]


@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 4), st.integers(0, 30)), max_size=8),
    st.sets(st.integers(0, 7)),
    st.integers(0, 10),
)
def test_each_message_comes_out_once_unless_its_document_was_dropped(
    documents: list[tuple[int, int, int]], dropped: set[int], num_taken_before: int
) -> None:
    order: ReadingOrder[Message] = ReadingOrder()
    names = [f"{index}:" for index in range(len(documents))]
    for name, (part, count, num_tokens) in zip(names, documents, strict=True):
        order.add(messages(name, count), part, num_tokens)
    before = [message for _ in range(num_taken_before) if (message := order.take()) is not None]
    if before:
        order.put_first(before[-1:])
        del before[-1]
    gone = {names[index] for index in dropped if index < len(names)}
    for name in gone:
        order.drop(name)
    expected = {
        Message(name, index)
        for name, (_, count, _) in zip(names, documents, strict=True)
        for index in range(count)
        if name not in gone and Message(name, index) not in before
    }
    assert len(order) == len(expected)
    rest = list(iter(order.take, None))
    assert len(rest) == len(expected) and set(rest) == expected
