"""How the report writes text and numbers: escaped, exact, and the same everywhere.

Invariants: whatever a document, a question or a model wrote comes out as text and never as markup; control
characters are shown as their pictures, so that nothing on the page can hide or reorder what stands beside it.
"""

from __future__ import annotations

import html
import re

from pipeline.outcome import Span

_PICTURES = {code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n\r"} | {0x7F: 0x2421}
_BIDI = dict.fromkeys([*range(0x202A, 0x202F), *range(0x2066, 0x206A)], "\ufffd")
_VISIBLE: dict[int, int | str | None] = {**_PICTURES, **_BIDI}


def escape(text: str) -> str:
    """``text`` as HTML text or a quoted attribute."""
    return html.escape(text.translate(_VISIBLE))


def percent(share: float) -> str:
    """A share in [0, 1]: whole percents, tenths below ten, and never 0 % for something that is there."""
    value = 100 * share
    if 0 < value < 0.05:
        return "&lt; 0.1&#8239;%"
    return f"{value:.0f}&#8239;%" if value >= 9.95 or value == 0 else f"{value:.1f}&#8239;%"


def mentions(text: str, answer: str) -> list[tuple[int, int]]:
    """Character ranges where ``text`` holds the answer's own words, whole and whatever their case."""
    words = answer.strip().strip(".\"'")
    if not words:
        return []
    pattern = rf"(?<!\w){re.escape(words)}(?!\w)"
    return [match.span() for match in re.finditer(pattern, text, re.IGNORECASE)]


def quoted(span: Span, answer: str, max_characters: int) -> str:
    """A span as HTML: the answer's own words marked, and of a long one the ``max_characters`` around the first
    of them, or the first ``max_characters``."""
    found = mentions(span.text, answer)
    middle = sum(found[0]) // 2 if found else 0
    start = max(0, min(middle - max_characters // 2, len(span.text) - max_characters))
    stop = min(len(span.text), start + max_characters)
    pieces, place = [], start
    for first, last in found:
        if start <= first and last <= stop:
            pieces += [escape(span.text[place:first]), f"<mark>{escape(span.text[first:last])}</mark>"]
            place = last
    pieces.append(escape(span.text[place:stop]))
    body = "".join(pieces).strip()
    return f"{'… ' if start else ''}{body}{' …' if stop < len(span.text) else ''}"
