"""Laws of handing out: everybody works, nobody waits for ever, and kept sets travel as little as can be."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.pool import TASKS_PER_WORKER
from pipeline.roster import LOOKAHEAD, Roster
from pipeline.traits import PLAIN, Traits, traits_of
from tests.pipeline.fakes import prepared
from workers.messages import Ask, Query


def handed_out(roster: Roster[str]) -> list[tuple[int, str]]:
    return list(iter(roster.next, None))


def roster_of(**nodes: str) -> Roster[str]:
    """Ready workers, by name, on their nodes."""
    roster: Roster[str] = Roster()
    for worker, node in nodes.items():
        roster.join(worker, node)
    return roster


def test_each_gets_one_before_anybody_gets_two_and_nobody_gets_three() -> None:
    roster = roster_of(a="x", b="x")
    for task_id in range(5):
        roster.submit(task_id)
    assert handed_out(roster) == [(0, "a"), (1, "b"), (2, "a"), (3, "b")]
    assert (roster.num_waiting, roster.num_in_hand) == (1, 4)
    roster.finish("b", 1)
    assert handed_out(roster) == [(4, "b")]


def test_nobody_waits_behind_a_task_of_several_pieces() -> None:
    roster = roster_of(a="x", b="x")
    roster.submit(0, Traits(num_pieces=9))
    roster.submit(1)
    roster.submit(2)
    roster.submit(3)
    assert handed_out(roster) == [(0, "a"), (1, "b"), (2, "b")]
    roster.finish("a", 0)
    assert handed_out(roster) == [(3, "a")]


def test_tasks_of_one_that_left_are_its_own_in_order() -> None:
    roster = roster_of(a="x")
    roster.submit(7)
    roster.submit(3)
    handed_out(roster)
    assert roster.leave("a") == [7, 3]
    assert (roster.num_waiting, roster.num_in_hand) == (0, 0)


def test_what_was_lost_or_failed_goes_first_when_it_comes_again() -> None:
    roster = roster_of(a="x")
    for task_id in range(4):
        roster.submit(task_id)
    assert handed_out(roster) == [(0, "a"), (1, "a")]
    for task_id in reversed(roster.leave("a")):
        roster.submit(task_id)
    roster.join("b", "x")
    assert handed_out(roster) == [(0, "b"), (1, "b")]
    roster.finish("b", 0, failed=True)
    roster.submit(0)
    assert handed_out(roster) == [(0, "b")]


def test_one_that_rests_ends_what_it_has_and_gets_nothing_new() -> None:
    roster = roster_of(a="x", b="x")
    roster.submit(0)
    handed_out(roster)
    roster.rest("a")
    for task_id in range(1, 4):
        roster.submit(task_id)
    assert handed_out(roster) == [(1, "b"), (2, "b")]
    roster.finish("a", 0)
    assert handed_out(roster) == []


def test_what_failed_here_is_tried_elsewhere_while_there_is_an_elsewhere() -> None:
    roster = roster_of(a="x")
    roster.submit(0)
    handed_out(roster)
    roster.finish("a", 0, failed=True)
    roster.submit(0)
    assert handed_out(roster) == [(0, "a")]
    roster.finish("a", 0, failed=True)
    roster.join("b", "x")
    roster.submit(0)
    assert handed_out(roster) == [(0, "b")]


def test_a_question_goes_where_its_document_was_read() -> None:
    roster = roster_of(a="x", b="y")
    for task_id, document in enumerate(["one", "two"]):
        roster.submit(task_id, Traits(leaves=document))
    assert handed_out(roster) == [(0, "a"), (1, "b")]
    roster.finish("a", 0)
    roster.finish("b", 1)
    roster.submit(2, Traits(near={"two": 1}))
    roster.submit(3, Traits(near={"one": 1}))
    assert handed_out(roster) == [(3, "a"), (2, "b")]


def test_a_question_far_from_its_document_waits_behind_what_is_nowhere_but_not_for_ever() -> None:
    roster = roster_of(a="x", b="y")
    roster.submit(0, Traits(leaves="one"))
    assert roster.next() == (0, "a")
    roster.finish("a", 0)
    roster.rest("a")
    roster.submit(1, Traits(near={"one": 1}))
    for task_id in range(2, 6):
        roster.submit(task_id)
    assert handed_out(roster) == [(2, "b"), (3, "b")], "passed over twice, once for each worker"
    roster.finish("b", 2)
    assert roster.next() == (1, "b")


def test_what_lay_on_a_node_that_is_gone_holds_up_nobody() -> None:
    roster = roster_of(a="x", b="y")
    roster.submit(0, Traits(leaves="one"))
    assert roster.next() == (0, "a")
    roster.finish("a", 0)
    roster.leave("a")
    roster.submit(1, Traits(near={"one": 1}))
    roster.submit(2)
    assert roster.next() == (1, "b")


def test_traits_say_what_a_message_leaves_and_fetches() -> None:
    document = prepared(3, num_chunks=2, num_questions=2)
    encode = document.encodes[0]
    assert traits_of(encode) == Traits(1, leaves="row3")
    probe = document.probes[0]
    over_pairs = Query("row3", probe, (), 8, sources=document.encodes)
    over_text = Query("row3", probe, (), 8)
    assert traits_of(Ask((over_pairs, over_pairs))) == Traits(2, near={"row3": 4})
    assert traits_of(Ask((over_text,))) == PLAIN


@dataclass
class History:
    """A roster with the books that a test keeps of it."""

    roster: Roster[int] = field(default_factory=Roster)
    in_hand: dict[int, int] = field(default_factory=dict)
    """task -> worker"""
    long: set[int] = field(default_factory=set)
    """tasks of several pieces"""
    waiting: list[int] = field(default_factory=list)
    open_workers: set[int] = field(default_factory=set)
    workers: set[int] = field(default_factory=set)
    passed: dict[int, int] = field(default_factory=dict)
    num_tasks: int = 0
    most_workers: int = 0

    def hand_out(self) -> None:
        while (given_out := self.roster.next()) is not None:
            task, worker = given_out
            assert worker in self.open_workers
            for earlier in self.waiting[: self.waiting.index(task)]:
                self.passed[earlier] = self.passed.get(earlier, 0) + 1
                assert self.passed[earlier] <= self.most_workers
            assert self.waiting.index(task) < LOOKAHEAD
            self.waiting.remove(task)
            self.in_hand[task] = worker
        hands = [{task for task, own in self.in_hand.items() if own == worker} for worker in self.open_workers]
        assert all(len(hand) <= TASKS_PER_WORKER for hand in hands)
        assert not self.waiting or all(len(hand) == TASKS_PER_WORKER or hand & self.long for hand in hands)
        assert self.roster.num_waiting == len(self.waiting)
        assert self.roster.num_in_hand == len(self.in_hand)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_any_history_keeps_the_invariants(data: st.DataObject) -> None:
    history = History()
    roster = history.roster
    for _ in range(data.draw(st.integers(1, 60))):
        do = data.draw(
            st.sampled_from(["join", "submit", "submit", "submit", "finish", "finish", "fail", "leave", "rest"])
        )
        if do == "join":
            worker = len(history.workers) + 100 * data.draw(st.integers(0, 3)) + 1000 * history.num_tasks
            if worker not in history.workers:
                roster.join(worker, data.draw(st.sampled_from(["x", "y", "z"])))
                history.workers.add(worker)
                history.open_workers.add(worker)
                history.most_workers = max(history.most_workers, len(history.workers))
        elif do == "submit":
            names = data.draw(st.sets(st.sampled_from("pqr"), max_size=2))
            near = dict.fromkeys(names, data.draw(st.integers(1, 3)))
            leaves = data.draw(st.sampled_from([None, "p", "q", "r"]))
            history.num_tasks += 1
            num_pieces = data.draw(st.integers(1, 2))
            roster.submit(history.num_tasks, Traits(num_pieces, leaves, near))
            if num_pieces > 1:
                history.long.add(history.num_tasks)
            history.waiting.append(history.num_tasks)
        elif do in ("finish", "fail") and history.in_hand:
            task = data.draw(st.sampled_from(sorted(history.in_hand)))
            roster.finish(history.in_hand.pop(task), task, failed=do == "fail")
            if do == "fail":
                roster.submit(task)
                history.long.discard(task)
                history.waiting.insert(0, task)
                history.passed.pop(task, None)
        elif do in ("leave", "rest") and history.open_workers:
            worker = data.draw(st.sampled_from(sorted(history.open_workers)))
            history.open_workers.remove(worker)
            if do == "rest":
                roster.rest(worker)
            else:
                history.workers.remove(worker)
                expected = [task for task, own in history.in_hand.items() if own == worker]
                lost = roster.leave(worker)
                assert lost == expected
                for task in lost:
                    del history.in_hand[task]
        history.hand_out()
