"""What the commands print: a run's end, an estimate, this machine, a calibration.

Invariants: everything printed comes from a value that some function returned or from the committed output; text
of documents, questions and models is printed on one line, as it is, never read as markup.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipeline.quantities import count, duration, in_bytes
from pipeline.report.words import mentions

if TYPE_CHECKING:  # so that printing waits for no torch
    from pipeline.doctor import Section
    from pipeline.driver import Summary
    from pipeline.estimate import Estimate, Measured
    from workers.selection.gate import Gate
    from workers.selection.headmap import HeadMap
    from workers.selection.profile import Profile

FIRST_ANSWERS = 5
_SHOWN_COLUMNS = ("id", "question", "answer")
_CHECKED_LINES = 20
_CELL_CHARACTERS = 80


def _failed(number: int, retryable: int, errors: dict[str, int]) -> str:
    if not number:
        return "0"
    classes = ", ".join(f"{error} {count:,}" for error, count in errors.items())
    again = f"; `foveate retry-failed` may help {retryable:,} of them" if retryable else ""
    return f"{number:,} ({classes}){again}"


def print_summary(console: Console, summary: Summary, tokens_per_s: float, report: str) -> None:
    """What a run came to, and where everything is."""
    totals = summary.totals
    facts(
        console,
        "",
        [
            ("answered", f"{count(totals.answered, 'question')} of {count(totals.documents, 'document')}"),
            ("failed", _failed(totals.failed, totals.retryable, totals.errors)),
            ("took", f"{duration(summary.elapsed_s)}{f', {tokens_per_s:,.0f} tokens/s' if tokens_per_s else ''}"),
            ("answers", f"{summary.answers}/*.parquet"),
            *([("failures", f"{summary.failures}/*.parquet")] if totals.failed else []),
            ("report", report),
        ],
    )


def print_answers(console: Console, rows: Sequence[dict[str, Any]], num_answers: int) -> None:
    """The first of ``num_answers``, as rows of the output, each with its most attended passage."""
    if not rows:
        return
    table = Table(
        "document", "question", "answer", "most attended passage", box=None, pad_edge=False, padding=(0, 2, 0, 0)
    )
    for row in rows:
        best = max(row["spans"], key=lambda span: span["share"], default=None)
        passage = f"{best['share']:.0%} {around(best['text'], row['answer'])}" if best else ""
        table.add_row(*(Text(value) for value in (*(one_line(row[key]) for key in _SHOWN_COLUMNS), passage)))
    console.print()
    console.print(table)
    if num_answers > len(rows):
        console.print(f"... and {num_answers - len(rows):,} more", highlight=False)


def print_checked(console: Console, summary: Summary) -> None:
    """Answers whose right answer the corpus knows: compared as text, the wrong ones first."""
    if not summary.num_checked:
        return
    console.print(
        f"\nchecked: {summary.num_correct:,} of {summary.num_checked:,} answers contain what the corpus expects",
        highlight=False,
    )
    shown = sorted(summary.checked, key=lambda one: one.correct)[:_CHECKED_LINES]
    for one in shown:
        expected = " + ".join(one.expected.splitlines())
        console.print(
            Text(
                f"  {'✓' if one.correct else '✗'} {one_line(one.id)} {one_line(one.question_id)}: "
                f"{one_line(one.answer)!r}, expected {one_line(expected)!r}"
            ),
            soft_wrap=True,
        )
    if summary.num_checked > len(shown):
        console.print(f"  ... and {summary.num_checked - len(shown):,} more", highlight=False)


def print_estimate(console: Console, estimate: Estimate) -> None:
    """What a job would do."""
    counts = estimate.counts
    saved = f" ({estimate.kept_kv_bytes / estimate.full_kv_bytes:.1%})" if estimate.full_kv_bytes else ""
    facts(
        console,
        "",
        [
            ("documents", f"{counts.documents:,}, the longest {counts.longest:,} tokens"),
            *([("not asked", f"{counts.unasked:,} documents have no question")] if counts.unasked else []),
            ("questions", f"{counts.questions:,}"),
            ("will fail", _failed(sum(counts.failures.values()), 0, counts.failures)),
            ("tokens", f"{counts.tokens:,}; the model's window is {estimate.window:,}"),
            ("chunks", f"{counts.chunks:,}"),
            ("parts", f"{counts.parts:,}"),
            ("full KV", f"{in_bytes(estimate.full_kv_bytes)} for all documents, {estimate.dtype}"),
            ("kept KV", f"{in_bytes(estimate.kept_kv_bytes)} for all questions{saved}"),
            ("store", _store(estimate)),
            ("time", _time(estimate)),
        ],
    )


def _store(estimate: Estimate) -> str:
    if estimate.store_bytes is None:
        return "unknown: the model is not calibrated; `foveate calibrate` or the first run does it"
    return f"{in_bytes(estimate.store_bytes)} of keys and values at most"


def _time(estimate: Estimate) -> str:
    seconds, measured = estimate.seconds, estimate.measured
    if seconds is None or measured is None:
        return f"unknown: {estimate.unmeasured}"
    return f"about {duration(seconds)} with {count(estimate.engines, 'engine')}: {_measured(measured)}"


def _measured(measured: Measured) -> str:
    return (
        f"one chunk of {measured.chunk_tokens:,} tokens with {count(measured.chunk_questions, 'question')} took "
        f"{duration(measured.seconds_chunk)} here, one answer over {measured.answer_tokens:,} tokens "
        f"{duration(measured.seconds_answer)}"
    )


def print_sections(console: Console, sections: Iterable[Section]) -> None:
    """What ``foveate doctor`` found."""
    for section in sections:
        facts(console, section.title, section.findings)


def print_profile(console: Console, profile: Profile, path: Path) -> None:
    """A calibrated profile, what was measured of it, and where it is."""
    choices = {"": profile} | ({"index ": profile.index} if profile.index else {})
    named: list[tuple[str, str]] = []
    measured: dict[str, Any] = {}
    for prefix, choice in choices.items():
        heads = " ".join(f"{layer}.{head}" for layer, head in choice.heads)
        named += [(f"{prefix}heads", f"{heads} (layer.head)"), (f"{prefix}scoring", f"the probe's {choice.rows}")]
        measured |= {f"{prefix}{split}": found for split, found in choice.measured.items()}
    _found(console, named, measured, path)


def print_gate(console: Console, gate: Gate, path: Path) -> None:
    """A trained gate, how well it predicts what it never saw, and where it is."""
    layers, heads = gate.shape
    _found(console, [("gate", f"{layers} layers, {heads} kv heads")], gate.measured, path)


def print_head_map(console: Console, head_map: HeadMap, path: Path) -> None:
    """The roles of a model's kv heads, what they cost, and where they are."""
    marks = {"retrieval": "R", "streaming": "s", "pruned": "-"}
    rows = [(f"layer {n}", "".join(marks[role] for role in row)) for n, row in enumerate(head_map.roles_LG)]
    listed = {name: value for name, value in head_map.measured.items() if not name.endswith("_LG")}
    _found(console, [("R retrieval, s streaming, - pruned", ""), *rows], listed, path)


def _found(console: Console, named: list[tuple[str, str]], measured: dict[str, Any], path: Path) -> None:
    facts(console, "", [*named, *_leaves(measured)])
    console.print(f"written to {path}", markup=False, highlight=False, soft_wrap=True)


def _leaves(measured: dict[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    for name, value in measured.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{name} ")
        elif isinstance(value, list):
            yield from _leaves({f"{name}[{index}]": entry for index, entry in enumerate(value)}, prefix)
        else:
            yield f"{prefix}{name}", f"{value:.3f}" if isinstance(value, float) else str(value)


def facts(console: Console, title: str, found: Iterable[tuple[str, str]]) -> None:
    """Names and values in two columns, values never cut: a pipe may want all of them."""
    if title:
        console.print(Text(title, style="bold"), soft_wrap=True)
    listed = list(found)
    width = max((len(name) for name, _ in listed), default=0)
    for name, value in listed:
        console.print(Text(f"  {name:<{width}}  {value}"), soft_wrap=True)


def around(text: str, answer: str) -> str:
    """A passage on one line; a long one cut so that the answer's own words, if it holds them, are seen."""
    line = plain(text)
    found = mentions(line, answer)
    start = max(0, min(found[0][0] - _CELL_CHARACTERS // 3, len(line) - _CELL_CHARACTERS)) if found else 0
    return ("…" if start else "") + one_line(line[start:])


def one_line(text: str) -> str:
    """Text on one line; what is long is cut."""
    line = plain(text)
    return line if len(line) <= _CELL_CHARACTERS else line[: _CELL_CHARACTERS - 1] + "…"


def plain(text: str) -> str:
    """White space and control characters as single spaces."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
