"""Counts, durations and sizes in words, as every command and the report print them."""

from __future__ import annotations


def count(number: int, noun: str, plural: str | None = None) -> str:
    """``1 answer``, ``2,000 answers``."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def duration(seconds: float) -> str:
    """``0.035s``, ``4.2s``, ``59s``, ``12m 05s``, ``3h 02m``, ``2d 04h``."""
    if seconds < 0.995:
        return f"{seconds:.2g}s"
    if seconds < 9.95:
        return f"{seconds:.1f}s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02d}s"
    if whole < 86_400:
        return f"{whole // 3600}h {whole % 3600 // 60:02d}m"
    return f"{whole // 86_400}d {whole % 86_400 // 3600:02d}h"


def in_bytes(number: int) -> str:
    """A size in words: ``512 B``, ``1.5 MiB``."""
    size = float(number)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:,.1f} TiB"
