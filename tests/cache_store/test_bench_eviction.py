"""The eviction benchmark: its rules by hand, its bound, and that the store's rule is the one to have."""

from __future__ import annotations

import pytest

from cache_store.bench import __main__ as bench
from cache_store.bench.eviction import RULES, SHARES, TRACES, Entry, make_trace, offline_bound, saved_by
from tests.cache_store.blocks import make_key

every_rule = pytest.mark.parametrize("name", RULES)
every_trace = pytest.mark.parametrize("trace", TRACES)


def asked(letters: str, sizes: str = "") -> list[Entry]:
    """A request per letter, of 1 byte, or 2 for the letters of ``sizes``; each costs 1 token."""
    return [Entry(make_key(ord(letter)), 1 + (letter in sizes), 1.0) for letter in letters]


def hits(name: str, letters: str, max_bytes: int, large: str = "") -> str:
    """Which of the requests hit."""
    rule = RULES[name](max_bytes)
    return "".join(letter for letter, entry in zip(letters, asked(letters, large), strict=True) if rule.request(entry))


@pytest.mark.parametrize(
    ("name", "letters", "expected"),
    [
        ("FIFO", "abaca", "a"),  # a leaves first although it was used
        ("LRU", "abaca", "aa"),
        ("LRU", "abcabc", ""),
        ("S3-FIFO", "aaabcda", "aaa"),  # two uses take it to the main queue
        ("S3-FIFO", "abcdcd", "cd"),
        ("GDSF", "aaabca", "aaa"),  # b leaves before a, which was used more often
        ("GDSF", "aabcdea", "a"),  # but the clock has overtaken a in the end
        ("this store", "aabcdea", "aa"),
    ],
)
def test_each_rule_by_hand(name: str, letters: str, expected: str) -> None:
    assert hits(name, letters, max_bytes=2) == expected


@every_rule
def test_what_is_larger_than_the_cache_is_never_there(name: str) -> None:
    assert hits(name, "abab", max_bytes=1, large="b") == "a"


@every_rule
def test_with_room_for_all_only_first_requests_miss(name: str) -> None:
    requests, total_bytes = make_trace("mixed", 300)
    firsts = {entry.key: entry.cost for entry in requests}
    expected = 1 - sum(firsts.values()) / sum(entry.cost for entry in requests)
    assert saved_by(RULES[name](total_bytes), requests) == pytest.approx(expected)
    assert offline_bound(requests, total_bytes) == pytest.approx(expected)


def test_the_bound_by_hand() -> None:
    # Hits of a and b take 2 and 4 bytes x requests; there are 4 in all, for 4 requests and 1 byte.
    assert offline_bound(asked("abab"), 1) == pytest.approx(2 / 4)
    assert offline_bound(asked("abbaab"), 0) == 0
    assert offline_bound(asked("abab", "b"), 2) == pytest.approx(2 / 4)
    assert offline_bound(asked("aabbaabb"), 1) == pytest.approx((4 + 2 * 2 / 3) / 8)


@every_trace
def test_a_trace_is_decided_by_its_seed(trace: str) -> None:
    requests, total_bytes = make_trace(trace, 500)
    assert (requests, total_bytes) == make_trace(trace, 500)
    assert requests != make_trace(trace, 500, seed=1)[0]
    assert len(requests) >= 500
    assert sum({entry.key: entry.num_bytes for entry in requests}.values()) <= total_bytes
    assert len({entry.key for entry in requests}) == len(
        {(entry.key, entry.num_bytes, entry.cost) for entry in requests}
    )


@pytest.mark.parametrize("share", SHARES)
@every_trace
def test_the_stores_rule_saves_most_and_none_more_than_the_bound(trace: str, share: float) -> None:
    requests, total_bytes = make_trace(trace, 6000)
    max_bytes = int(total_bytes * share)
    saved = {name: saved_by(rule(max_bytes), requests) for name, rule in RULES.items()}
    assert max(saved.values()) <= offline_bound(requests, max_bytes)
    assert saved["this store"] >= max(saved.values()) - 0.02
    assert saved["this store"] > max(saved["LRU"], saved["FIFO"])


def test_the_command_prints_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    bench.main(["eviction", "--requests", "200"])
    lines = capsys.readouterr().out.splitlines()
    rows = [line for line in lines if line.startswith("| ")]
    assert lines[0] == "Tokens saved, in per cent of all that 200 requests need:"
    assert rows[0] == "| trace | cache | FIFO | LRU | S3-FIFO | GDSF | this store | bound |"
    assert len(rows) == 2 + len(TRACES) * len(SHARES) and len({line.count("|") for line in rows}) == 1


def test_the_page_has_every_benchmark(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    monkeypatch.setattr(bench, "_main_of", lambda name: lambda arguments: seen.append([name, *arguments]))
    bench.main(["page"])
    assert seen == [["eviction"], ["tiers"], ["entries"]]
    assert [line for line in capsys.readouterr().out.splitlines() if line.startswith("## ")] == [
        "## Eviction", "## Tiers", "## Entries",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "arguments", [["page", "--rounds"], ["evictoin"], ["eviction", "--requests", "0"], ["eviction", "--request=x"], []]
)
def test_a_wrong_command_is_told_what_is_allowed(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as refusal:
        bench.main(arguments)
    assert refusal.value.code == 2 and "error:" in capsys.readouterr().err
