"""What an evaluation leaves for people to read: a page of tables and figures beside ``results.parquet``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from configs.evaluation import Evaluation
from pipeline.errors import JobError
from pipeline.evaluation.results import Result
from pipeline.evaluation.tables import results_page


def write_pages(evaluation: Evaluation, results: Sequence[Result], title: str) -> list[Path]:
    """Write tables and figures into the evaluation's directory, and say where. Raises ``JobError`` where matplotlib is
    missing."""
    directory = Path(evaluation.output.path)
    default = evaluation.methods[0].name
    page = directory / "results.md"
    page.write_text(results_page(results, default, title))
    try:
        from pipeline.evaluation.plots import write_plots
    except ImportError as error:
        raise JobError(
            f"{page} is written; figures need matplotlib ({error}): pip install 'foveate[evaluate]'"
        ) from error
    return [directory / "results.parquet", page, *write_plots(directory, results, default)]
