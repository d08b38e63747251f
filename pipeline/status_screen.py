"""What ``foveate status`` prints, as lines for people or as JSON for programs: both from the same values.

Invariants: as ``screen``; what is not known is said or left out, never guessed; keys of the JSON are only ever added
to, and times in it are UTC, durations seconds.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.text import Text

from pipeline.highlights import FailureClass, SlowDocument
from pipeline.quantities import count, duration
from pipeline.rates import Rate
from pipeline.records import EndRecord, EpochRecord
from pipeline.screen import facts, one_line, plain
from pipeline.status import Phase, Status


def print_status(console: Console, status: Status) -> None:
    """What a run directory tells."""
    totals = status.totals
    facts(
        console,
        plain(status.url),
        [
            ("state", _state(status)),
            ("parts", _of(totals.parts, status.parts, "committed")),
            ("documents", _of(totals.documents, status.documents)),
            ("tokens", f"{totals.document_tokens:,} read{_share(status)}"),
            *([("not asked", f"{status.unasked:,} documents have no question")] if status.unasked else []),
            *_pace(status),
            ("answered", f"{totals.answered:,}"),
            ("failed", _failed(status)),
            ("engine time", _engine_time(status)),
            ("starts", _starts(status)),
        ],
    )
    _print_block(console, "failures by class", map(_failure_line, status.failures))
    _print_block(console, "slowest documents, by engine time", map(_slow_line, status.slowest))
    if status.untold:
        parts = count(status.untold, "part")
        console.print(Text(f"  {parts} of an earlier version: no times, examples or slowest documents"), soft_wrap=True)


def _print_block(console: Console, title: str, lines: Iterable[str]) -> None:
    listed = list(lines)
    for line in [title, *(f"  {line}" for line in listed)] if listed else []:
        console.print(Text(f"  {line}"), soft_wrap=True)


def _state(status: Status) -> str:
    life = status.life
    last = "" if life.silent_s is None else f"{duration(life.silent_s)} ago"
    apart = "" if life.gap_s is None else duration(life.gap_s)
    match status.phase:
        case Phase.FINISHED:
            return f"finished{', ' + last if last else ''}"
        case Phase.WORKING:
            return f"seems to work: the last sign of life {last}, so far at most {apart} apart"
        case Phase.SILENT:
            return (
                f"silent: the last sign of life {last}, so far at most {apart} apart; stopped or stuck, and the "
                "command that started it goes on with it"
            )
        case Phase.STOPPED:
            error = life.end.error if life.end else None
            why = "as it was asked to" if error is None else f"by an error ({plain(error)})"
            return f"stopped {last}, {why}; the command that started it goes on with it"
        case Phase.UNKNOWN if status.totals.parts:
            return f"not finished; the last sign of life that is known{' ' + last if last else ': none'}"
        case Phase.UNKNOWN:
            return f"no commit yet: {'started ' + last if last else 'no driver has started'}"


def _of(done: int, total: int, verb: str = "") -> str:
    share = f" ({done / total:.0%})" if total else ""
    return f"{done:,} of {total:,}{' ' + verb if verb else ''}{share}"


def _share(status: Status) -> str:
    unknown = status.phase == Phase.FINISHED or not status.tokens
    return "" if unknown else f", about {status.tokens_committed / status.tokens:.0%} of the run"


def _pace(status: Status) -> Iterator[tuple[str, str]]:
    """Rates and time left, once a commit tells."""
    recent, overall = status.rates.recent, status.rates.overall
    if overall is not None:
        yield "rate", f"{_rate(overall)} over {duration(overall.seconds)} of work"
    if recent is not None and overall is not None and recent.parts < overall.parts:
        yield "recent rate", f"{_rate(recent)} over the last {count(recent.parts, 'commit')}"
    if status.phase != Phase.FINISHED:
        goes_on = ", once it goes on" if status.phase in (Phase.SILENT, Phase.STOPPED) else ""
        yield "time left", "unknown" if status.left_s is None else f"about {duration(status.left_s)}{goes_on}"


def _rate(rate: Rate) -> str:
    return f"{rate.tokens_per_s:,.0f} tokens/s, {rate.documents_per_hour:,.0f} documents/hour"


def _failed(status: Status) -> str:
    totals = status.totals
    again = f"; `foveate retry-failed` may help {totals.retryable:,} of them" if totals.retryable else ""
    return f"{totals.failed:,}{again}"


def _engine_time(status: Status) -> str:
    encode, answer = status.totals.seconds_encode, status.totals.seconds_answer
    return f"{duration(encode + answer)}: encode {duration(encode)}, answer {duration(answer)}"


def _starts(status: Status) -> str:
    if not status.epochs:
        return "none"
    last = status.epochs[-1]
    return plain(f"{len(status.epochs)}, the last on {last.host} (process {last.process}) at {last.started}")


def _failure_line(one: FailureClass) -> str:
    again = {None: "", 0: ", a retry would not help", one.questions: ", a retry may help"}
    words = again.get(one.retryable, f", a retry may help {one.retryable}")
    line = f"{plain(one.error)}: {count(one.questions, 'question')}{words}"
    if one.example is None:
        return line
    name = "a document without an id" if one.example.id is None else one_line(one.example.id)
    place = f"{plain(one.example.source_file)} row {one.example.source_row:,}"
    return f"{line}; such as {name} ({place}) at {plain(one.example.stage)}: {plain(one.example.message)}"


def _slow_line(one: SlowDocument) -> str:
    return (
        f"{duration(one.seconds)} (encode {duration(one.seconds_encode)}, answer {duration(one.seconds_answer)}), "
        f"{one.tokens:,} tokens{_speed(one)}: {one_line(one.id)} ({plain(one.source_file)} row {one.source_row:,})"
    )


def _speed(one: SlowDocument) -> str:
    return f", {one.tokens / one.seconds:,.0f} tokens/s" if one.seconds > 0 else ""


def status_json(status: Status) -> str:
    """The same on one line; see docs/output.md for the keys."""
    return json.dumps(_record(status), allow_nan=False)


def _record(status: Status) -> dict[str, Any]:
    totals, life, ends = status.totals, status.life, {end.epoch: end for end in status.ends}
    return {
        "directory": status.url,
        "state": status.phase.value,
        "parts": {"total": status.parts, "committed": totals.parts, "without_times": status.untold},
        "documents": {"total": status.documents, "committed": totals.documents, "unasked": status.unasked},
        "tokens": {
            "read": totals.document_tokens,
            "generated": totals.generated_tokens,
            "planned": status.tokens,
            "planned_committed": status.tokens_committed,
        },
        "questions": {"answered": totals.answered, "failed": totals.failed, "retryable": totals.retryable},
        "rate": _rate_json(status.rates.overall),
        "recent_rate": _rate_json(status.rates.recent),
        "seconds_left": status.left_s,
        "last_sign_of_life": None if life.last_sign is None else life.last_sign.isoformat(timespec="milliseconds"),
        "seconds_silent": life.silent_s,
        "longest_gap_seconds": life.gap_s,
        "engine_seconds": {"encode": totals.seconds_encode, "answer": totals.seconds_answer},
        "failures": [asdict(one) for one in status.failures],
        "slowest": [asdict(one) for one in status.slowest],
        "starts": [_start_json(one, ends.get(one.epoch)) for one in status.epochs],
        "unnamed_files": len(status.orphans),
    }


def _start_json(start: EpochRecord, end: EndRecord | None) -> dict[str, Any]:
    ended, error = (end.ended, end.error) if end is not None else (None, None)
    began = {"epoch": start.epoch, "host": start.host, "process": start.process, "started": start.started}
    return began | {"ended": ended, "error": error}


def _rate_json(rate: Rate | None) -> dict[str, Any] | None:
    if rate is None:
        return None
    return {
        "tokens_per_s": rate.tokens_per_s,
        "documents_per_hour": rate.documents_per_hour,
        "parts": rate.parts,
        "seconds": rate.seconds,
    }
