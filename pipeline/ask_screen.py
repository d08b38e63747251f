"""What ``foveate ask`` prints: for people a block for each document, for programs a line of JSON for each reply.

Invariants: as ``screen``; both come from the same values; JSON has every span, whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from itertools import groupby

from rich.console import Console
from rich.text import Text

from pipeline.ask import Asked, Reply
from pipeline.quantities import count, duration
from pipeline.screen import around, one_line, plain
from workers.logs import json_line

SHOWN_SPANS = 5


def print_asked(console: Console, asked: Asked) -> None:
    """A block for each document, and what all of it took. Documents are named where there are several, and so are
    questions. Passages are a document's and not an answer's: what is kept serves every question."""
    totals = asked.summary.totals
    blocks = groupby(asked.replies(), key=lambda reply: (reply.answer is None, reply.document))
    for (_, document), replies in blocks:
        if totals.documents > 1:
            name = "a document without an id" if document is None else one_line(document)
            console.print(Text(name, style="bold"), soft_wrap=True)
        for reply in replies:
            if totals.expected > totals.documents:
                console.print(Text(one_line(reply.question), style="italic"), soft_wrap=True)
            for line in _answer_lines(reply):
                console.print(Text(line), soft_wrap=True)
        for line in _passage_lines(reply):
            console.print(Text(line), soft_wrap=True)
        console.print()
    console.print(Text(_cost(asked)), soft_wrap=True)


def reply_json(reply: Reply) -> str:
    """A reply on one line."""
    return json_line(
        {
            "document": reply.document,
            "question": reply.question,
            "answer": reply.answer,
            "error": reply.error,
            "spans": [asdict(span) for span in reply.spans],
            "chunks_read": reply.chunks.read,
            "chunks_from_store": reply.chunks.found,
            "seconds": round(reply.seconds, 3),
        }
    )


def _answer_lines(reply: Reply) -> Iterator[str]:
    """The answer as it was written, or why there is none."""
    if reply.answer is None:
        yield f"not answered: {plain(reply.error or '')}"
    else:
        yield from map(plain, reply.answer.splitlines() or ["(nothing)"])


def _passage_lines(reply: Reply) -> Iterator[str]:
    """What was kept of the document, the greatest share of its relevance first."""
    best = sorted(reply.spans, key=lambda span: -span.share)
    for span in best[:SHOWN_SPANS]:
        yield f"  {span.share:>4.0%}  {around(span.text, reply.answer or '')}"
    if rest := best[SHOWN_SPANS:]:
        yield f"  {sum(span.share for span in rest):>4.0%}  in {count(len(rest), 'more passage')}"


def _cost(asked: Asked) -> str:
    chunks = asked.watch.total
    return (
        f"read {chunks.read:,} of {count(chunks.read + chunks.found, 'chunk')} anew, {chunks.found:,} came from the "
        f"store; {duration(asked.summary.elapsed_s)}"
    )
