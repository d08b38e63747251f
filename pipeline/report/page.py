"""The report: one HTML file that shows what was answered, and on which words of each document it rests.

Invariants: one self-contained file without scripts or links to other hosts; everything that came from a
document, a question or a model is escaped; what is left out (documents beyond the first, passages beyond
the most attended) is said on the page.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from string import Template

import pyarrow as pa

from pipeline.outcome import Answer, Failure, Span
from pipeline.quantities import count
from pipeline.report.projection import (
    DocumentView,
    FailureClass,
    Limits,
    Totals,
    read_answers,
    read_failures,
)
from pipeline.report.strip import strip
from pipeline.report.words import escape, mentions, percent, quoted

_TEMPLATE = Path(__file__).with_name("template.html")
_MAX_OPEN = 2
_MAX_QUOTES = 5
_MAX_QUOTE_CHARACTERS = 480
_CONTENTS_FROM = 3


def render(
    answers: Iterable[pa.Table],
    failures: Iterable[pa.Table],
    title: str,
    note: str = "",
    limits: Limits = Limits(),  # noqa: B008 - frozen
) -> str:
    """The page over all committed rows, given part by part. ``note``: what a reader must know first, such as an
    unfinished run."""
    totals, views = read_answers(answers, limits)
    classes = read_failures(failures, limits)
    return Template(_TEMPLATE.read_text(encoding="utf-8")).substitute(
        title=escape(title),
        note=f'<p class="note">{escape(note)}</p>' if note else "",
        totals=_totals(totals, sum(one.number for one in classes)),
        contents=_contents(views) if len(views) >= _CONTENTS_FROM else "",
        documents="\n".join(_document(index, view) for index, view in enumerate(views)),
        left_out=_left_out(totals, views),
        failures=_failures(classes),
    )


def _totals(totals: Totals, num_failed: int) -> str:
    facts = [
        ("answered", f"{totals.answers:,}"),
        ("failed", f'<a href="#failures">{num_failed:,}</a>' if num_failed else "0"),
        ("documents", f"{totals.documents:,}"),
        ("tokens in them", f"{totals.read_tokens:,}"),
        ("kept of a document", percent(totals.kept_share)),
        ("attention on what was kept", percent(totals.relevance_kept)),
    ]
    return "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in facts)


def _contents(views: Sequence[DocumentView]) -> str:
    lines = "".join(
        f'<li><a href="#d{index}">{escape(view.answers[0].id)}</a> '
        f"<span>{count(view.answers[0].document_tokens, 'token')}</span></li>"
        for index, view in enumerate(views)
    )
    heading = f"<summary>{count(len(views), 'document')} on this page</summary>"
    return f'<details class="contents">{heading}<ol>{lines}</ol></details>'


def _document(index: int, view: DocumentView) -> str:
    first = view.answers[0]
    tallest = max((span.share for answer in view.answers for span in answer.spans), default=0.0)
    sections = "\n".join(
        _answer(f"d{index}q{number}", answer, view.num_characters, tallest)
        for number, answer in enumerate(view.answers)
    )
    return (
        f'<article id="d{index}"><h2>{escape(first.id)}</h2>'
        f'<p class="place">{count(first.document_tokens, "token")} · row {first.source_row:,} of '
        f"{escape(first.source_file)}</p>\n{sections}</article>"
    )


def _answer(anchor: str, answer: Answer, num_characters: int, tallest: float) -> str:
    shown = _most_attended(answer)
    names = {span: f"{anchor}s{number}" for number, span in enumerate(shown)}
    figure = strip(
        answer.spans,
        num_characters,
        tallest,
        [names.get(span) for span in answer.spans],
        f"Where in the document the {len(answer.spans)} kept passages lie",
    )
    reply = escape(answer.answer) if answer.answer.strip() else "<em>an empty answer</em>"
    quotes = [_quote(names[span], span, answer.answer, num_characters) for span in shown]
    return (
        f'<section id="{anchor}"><p class="question">{escape(answer.question)}</p>'
        f'<p class="reply">{reply}</p>{figure}'
        f'<p class="kept">{answer.kept_tokens:,} of {answer.document_tokens:,} tokens kept; '
        f"{percent(answer.relevance_kept)} of the question’s attention fell on them.</p>"
        f"{''.join(quotes[:_MAX_OPEN])}{_others(quotes[_MAX_OPEN:])}"
        f"{_unquoted([span for span in answer.spans if span not in names])}</section>"
    )


def _most_attended(answer: Answer) -> list[Span]:
    """The passages to quote: the most attended; if none of them holds the answer's words, then first of all the
    best one that does."""
    ranked = sorted(answer.spans, key=lambda span: -span.share)
    shown, rest = ranked[:_MAX_QUOTES], ranked[_MAX_QUOTES:]
    if any(mentions(span.text, answer.answer) for span in shown):
        return shown
    return [span for span in rest if mentions(span.text, answer.answer)][:1] + shown


def _others(quotes: Sequence[str]) -> str:
    if not quotes:
        return ""
    summary = count(len(quotes), "passage with less attention", "passages with less attention")
    return f'<details class="others"><summary>{summary}</summary>{"".join(quotes)}</details>'


def _unquoted(spans: Sequence[Span]) -> str:
    if not spans:
        return ""
    return (
        f'<p class="more">{count(len(spans), "more passage")} with {percent(sum(span.share for span in spans))} of '
        "the attention: see the column <code>spans</code> of the answers.</p>"
    )


def _quote(name: str, span: Span, answer: str, num_characters: int) -> str:
    return (
        f'<figure id="{name}"><figcaption><b>{percent(span.share)}</b>'
        f"at {percent(span.start / num_characters)}<br>"
        f"<small>{span.start:,}–{span.end:,}</small></figcaption>"
        f"<blockquote>{quoted(span, answer, _MAX_QUOTE_CHARACTERS)}</blockquote></figure>"
    )


def _left_out(totals: Totals, views: Sequence[DocumentView]) -> str:
    shown = sum(len(view.answers) for view in views)
    if shown == totals.answers:
        return ""
    return (
        f'<p class="note">Shown are the first {count(len(views), "document")} of {totals.documents:,} '
        f"({shown:,} of {totals.answers:,} answers). All answers are in <code>data/*.parquet</code>.</p>"
    )


def _failures(classes: Sequence[FailureClass]) -> str:
    if not classes:
        return ""
    blocks = "".join(_failure_class(one) for one in classes)
    number = sum(one.number for one in classes)
    return f'<section id="failures"><h2>{count(number, "failure")}</h2>{blocks}</section>'


def _failure_class(one: FailureClass) -> str:
    again = (
        f"{one.retryable:,} may succeed with <code>foveate retry-failed</code>"
        if one.retryable
        else "the data’s own fault, so a retry would not help"
    )
    lines = "".join(_failure(example) for example in one.examples)
    left = one.number - len(one.examples)
    more = f'<p class="more">and {left:,} more of this class.</p>' if left else ""
    return (
        f"<h3>{escape(one.error)} <small>{count(one.number, 'question')} at stage {escape(one.stage)}; "
        f"{again}</small></h3><ul>{lines}</ul>{more}"
    )


def _failure(failure: Failure) -> str:
    name = failure.id if failure.id is not None else "a document without an id"
    return (
        f"<li><b>{escape(name)}</b> · {escape(failure.question_id)} · row {failure.source_row:,} of "
        f"{escape(failure.source_file)}<br>{escape(failure.message)}</li>"
    )
