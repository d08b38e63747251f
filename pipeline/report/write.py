"""Make a run's report and put it beside the answers; may be done again at any time, also while a run works."""

from __future__ import annotations

from pipeline.directory import RunDirectory
from pipeline.report.committed import answer_tables, failure_tables
from pipeline.report.page import render
from pipeline.status import Status, read_status

NAME = "report.html"


def make_report(directory: RunDirectory) -> str:
    """Write the report over all committed rows, in place of an older one; returns where it is. Raises ``OSError``."""
    status = read_status(directory)
    page = render(answer_tables(directory), failure_tables(directory), directory.url, _note(status))
    directory.delete(NAME)
    directory.create(NAME, page.encode("utf-8"))
    return f"{directory.url.rstrip('/')}/{NAME}"


def _note(status: Status) -> str:
    if status.is_finished:
        return ""
    return (
        f"This run is not finished: {status.totals.parts:,} of {status.parts:,} parts are committed, and this page "
        "shows those. Run the same command again to finish it, then `foveate report` to make this page again."
    )
