"""The strip: where in a document the kept spans lie, and how much attention each has, as inline SVG.

Invariants: the strip is the document from its first character to its last; a mark's width is the span's
length (at least one visible line), its height is the span's share, measured against ``tallest``.
"""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.outcome import Span
from pipeline.report.words import escape, percent

_WIDTH, _HEIGHT = 1000, 36
_THINNEST, _LOWEST = 2.5, 2.0


def strip(spans: Sequence[Span], num_characters: int, tallest: float, targets: Sequence[str | None], label: str) -> str:
    """The strip of one question. ``targets``: for each span the page anchor where it is quoted, or None."""
    marks = "".join(_mark(span, num_characters, tallest, target) for span, target in zip(spans, targets, strict=True))
    ticks = "".join(f'<path d="M{_WIDTH * part / 4:g} {_HEIGHT}v4"/>' for part in range(5))
    return (
        f'<svg class="strip" viewBox="0 0 {_WIDTH} {_HEIGHT + 4}" preserveAspectRatio="none" role="img" '
        f'aria-label="{escape(label)}"><path d="M0 {_HEIGHT}H{_WIDTH}"/>{ticks}{marks}</svg>'
    )


def _mark(span: Span, num_characters: int, tallest: float, target: str | None) -> str:
    width = max(_THINNEST, _WIDTH * (span.end - span.start) / num_characters)
    left = min(_WIDTH * span.start / num_characters, _WIDTH - width)
    height = max(_LOWEST, _HEIGHT * span.share / tallest) if tallest else _LOWEST
    title = f"{percent(span.share)} of the attention, characters {span.start:,} to {span.end:,}"
    mark = (
        f'<rect x="{left:.1f}" y="{_HEIGHT - height:.1f}" width="{width:.1f}" height="{height:.1f}">'
        f"<title>{title}</title></rect>"
    )
    return f'<a href="#{target}">{mark}</a>' if target else mark
