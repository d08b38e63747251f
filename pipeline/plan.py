"""The plan: which rows are committed together, fixed before any work begins.

Invariants: a plan is a function of the files and ``part_tokens`` alone; its parts cover every row exactly
once, in reading order; it is written once and every later attempt of the run reads it back, so that part 7
holds the same rows for ever.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pipeline.corpus import CorpusFile, CorpusFiles, RowGroup, RowRun
from pipeline.document import is_blank
from pipeline.errors import CorpusError
from pipeline.identifiers import DuplicateRow, find_duplicates, readable_cells

_BYTES_PER_TOKEN = 4


@dataclass(frozen=True)
class Part:
    """Rows that are committed together. ``tokens`` is an estimate: a quarter of the text's bytes as
    the footer counts them, and at least one a row. Text that repeats within a file counts once."""

    index: int
    tokens: int
    runs: tuple[RowRun, ...]

    @property
    def rows(self) -> int:
        """Documents of the part."""
        return sum(run.stop - run.start for run in self.runs)


@dataclass(frozen=True)
class Plan:
    """All parts of a run. ``unasked``: rows without any question, which end as no outcome at all."""

    files: tuple[CorpusFile, ...]
    parts: tuple[Part, ...]
    duplicates: tuple[DuplicateRow, ...] = ()
    unasked: int = 0

    @property
    def rows(self) -> int:
        """Documents of the run."""
        return sum(file.rows for file in self.files)

    @property
    def tokens(self) -> int:
        """Tokens of the run, estimated as in ``Part``."""
        return sum(part.tokens for part in self.parts)

    @cached_property
    def first_places(self) -> dict[tuple[int, int], tuple[int, int]]:
        """(file, row) of each duplicate -> (file, row) that has its id: what ``CorpusFiles.rows`` asks for."""
        return {(twice.file, twice.row): (twice.first_file, twice.first_row) for twice in self.duplicates}

    def to_json(self) -> bytes:
        """The plan as JSON; the same plan gives the same bytes."""
        record = {
            "files": [
                {
                    "path": file.path,
                    "size": file.size,
                    "footer": file.footer,
                    "row_groups": [[group.rows, group.text_bytes] for group in file.row_groups],
                }
                for file in self.files
            ],
            "parts": [
                {
                    "index": part.index,
                    "tokens": part.tokens,
                    "runs": [[run.file, run.row_group, run.start, run.stop] for run in part.runs],
                }
                for part in self.parts
            ],
            "duplicates": [[d.file, d.row, d.first_file, d.first_row] for d in self.duplicates],
            "unasked": self.unasked,
        }
        return json.dumps(record, separators=(",", ":")).encode()

    @classmethod
    def from_json(cls, content: bytes) -> Plan:
        """The plan that ``to_json`` wrote."""
        record: dict[str, Any] = json.loads(content)
        files = tuple(
            CorpusFile(f["path"], f["size"], f["footer"], tuple(RowGroup(*group) for group in f["row_groups"]))
            for f in record["files"]
        )
        parts = tuple(
            Part(part["index"], part["tokens"], tuple(RowRun(*run) for run in part["runs"])) for part in record["parts"]
        )
        return cls(files, parts, tuple(DuplicateRow(*d) for d in record["duplicates"]), record["unasked"])


def make_plan(corpus: CorpusFiles, part_tokens: int) -> Plan:
    """Cut the corpus into parts of about ``part_tokens`` tokens, estimated as a quarter of the text's bytes.

    Whole row groups go together while they fit (a row group is the unit that is read at once); one that is
    larger than a part is split evenly by rows. Scans the id column for ids used twice, and the question
    column for rows that ask nothing where the job itself asks nothing.
    """
    parts: list[Part] = []
    runs: list[RowRun] = []
    tokens = 0
    for run, run_tokens in _pieces(corpus, part_tokens):
        if runs and tokens + run_tokens > part_tokens:
            parts.append(Part(len(parts), tokens, tuple(runs)))
            runs, tokens = [], 0
        runs.append(run)
        tokens += run_tokens
    if runs:
        parts.append(Part(len(parts), tokens, tuple(runs)))
    return Plan(corpus.files, tuple(parts), find_duplicates(corpus), _count_unasked(corpus))


def verify_unchanged(plan: Plan, corpus: CorpusFiles) -> None:
    """Refuse to resume over other files than were planned; ``CorpusError`` names each one and what happened.

    A file is compared by size and footer (``CorpusFile`` says what that catches); the order counts too.
    """
    planned = {file.path: file for file in plan.files}
    present = {file.path: file for file in corpus.files}
    problems = [
        *(f"{path}: vanished since the run was planned" for path in planned.keys() - present.keys()),
        *(f"{path}: appeared since the run was planned" for path in present.keys() - planned.keys()),
        *(
            f"{path}: changed since the run was planned ({planned[path].size} bytes then, {present[path].size} now)"
            for path in planned.keys() & present.keys()
            if planned[path] != present[path]
        ),
    ]
    if not problems and list(planned) != list(present):
        problems = ["corpus.path: the same files as planned, in another order"]
    if problems:
        advice = "put the planned files back, or give another output.path for a new run"
        raise CorpusError("\n".join([*sorted(problems), advice]))


def _pieces(corpus: CorpusFiles, part_tokens: int) -> Iterator[tuple[RowRun, int]]:
    """Each row group with its tokens, in order; one that is larger than a part in even pieces."""
    for file_index, file in enumerate(corpus.files):
        for group_index, group in enumerate(file.row_groups):
            tokens = max(group.text_bytes // _BYTES_PER_TOKEN, group.rows)
            pieces = min(group.rows, max(1, -(-tokens // part_tokens)))
            for piece in range(pieces):
                start, stop = group.rows * piece // pieces, group.rows * (piece + 1) // pieces
                yield RowRun(file_index, group_index, start, stop), tokens // pieces


def _count_unasked(corpus: CorpusFiles) -> int:
    column = corpus.corpus.question
    if corpus.asked or column is None:
        return 0
    return sum(is_blank(cell) for _, _, cell in readable_cells(corpus, column))
