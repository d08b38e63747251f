"""What is known of an evaluation already, on disk: rows survive kills, other tasks and other settings.

    DIR/trials/ITEM.json   rows of one item, written when it was tried
    DIR/results.parquet    rows of the evaluation as it was asked for last; alone it is a checkpoint too

Invariants: a file is written whole or not at all; a row that was once measured is never lost to another evaluation in
the same directory: what ``results.parquet`` is about to drop goes to ``trials`` first.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from urllib.parse import quote

from blake3 import blake3

from pipeline.errors import DirectoryError
from pipeline.evaluation.results import Result, read_results, write_results
from pipeline.objects import is_url, local_path

_NAME_LETTERS = 120


class Checkpoint:
    """The directory of an evaluation. One process at a time may write to it."""

    def __init__(self, path: str) -> None:
        """Raises ``DirectoryError`` for what is no directory of this machine that can be written to."""
        if is_url(path):
            raise DirectoryError(f"output.path: {path}: an evaluation writes to a local directory, not to a URL")
        self.directory = local_path(path)
        self._trials = self.directory / "trials"
        probe = self._trials / ".probe"
        try:
            self._trials.mkdir(parents=True, exist_ok=True)
            probe.write_bytes(b"")
            probe.unlink()
        except OSError as error:
            raise DirectoryError(f"output.path: {path}: cannot be written to: {error.strerror}") from error

    @property
    def table(self) -> Path:
        """``results.parquet``."""
        return self.directory / "results.parquet"

    def rows(self) -> Iterator[Result]:
        """All that is known, of whatever was asked for; the same row may come twice. Raises ``DirectoryError`` for a
        file that is not ours."""
        try:
            if self.table.is_file():
                yield from read_results(self.table)
            for path in sorted(self._trials.glob("*.json")):
                yield from _read(path)
        except ValueError as error:
            raise DirectoryError(str(error)) from error

    def add(self, item: str, rows: Iterable[Result]) -> None:
        """Write down what came of an item, beside what is there; the same method under other settings stays."""
        path = self._trials / f"{file_name(item)}.json"
        known = {_key(row): row for row in (_read(path) if path.is_file() else ())}
        known |= {_key(row): row for row in rows}
        staged = path.with_suffix(".unfinished")
        staged.write_text(json.dumps([asdict(row) for row in known.values()], indent=1) + "\n")
        staged.replace(path)

    def publish(self, rows: Sequence[Result]) -> None:
        """Make these rows ``results.parquet``. Those that it had and they are not, stay in ``trials``."""
        published = {_key(row) for row in rows}
        dropped: dict[str, list[Result]] = {}
        for row in read_results(self.table) if self.table.is_file() else ():
            if _key(row) not in published:
                dropped.setdefault(row.item, []).append(row)
        for item, own in dropped.items():
            self.add(item, own)
        write_results(self.table, rows)


def file_name(item: str) -> str:
    """An item's id as the name of a file: itself where it can be one."""
    plain = quote(item, safe=" ")
    return plain if len(plain) <= _NAME_LETTERS else f"{plain[:_NAME_LETTERS]}-{blake3(item.encode()).hexdigest()[:16]}"


def _key(row: Result) -> tuple[str, str, int | None, str]:
    return row.item, row.method, row.budget, row.settings


def _read(path: Path) -> list[Result]:
    try:
        return [Result(**row) for row in json.loads(path.read_text())]
    except (ValueError, TypeError) as error:
        raise DirectoryError(
            f"{path}: no rows of an evaluation ({error}); remove it or give another directory"
        ) from error
