"""The end of a run, as a user sees it: the report is made, and everything is said once."""

from __future__ import annotations

from itertools import chain, islice

from rich.console import Console

from pipeline.directory import existing_directory
from pipeline.driver import Summary
from pipeline.report.committed import answer_tables
from pipeline.report.write import make_report
from pipeline.screen import FIRST_ANSWERS, print_answers, print_checked, print_summary


def show(console: Console, summary: Summary, tokens_per_s: float) -> None:
    """Make the report, and print totals, places, the first answers, and those that could be checked."""
    directory = existing_directory(summary.output)
    report = make_report(directory)
    rows = chain.from_iterable(table.slice(0, FIRST_ANSWERS).to_pylist() for table in answer_tables(directory))
    print_answers(console, list(islice(rows, FIRST_ANSWERS)), summary.totals.answered)
    print_checked(console, summary)
    console.print()
    print_summary(console, summary, tokens_per_s, report)
