"""What a run directory holds, read by anyone at any time: nothing is written, no lock is taken.

A directory tells what was committed and when, on a local disk and in object storage alike. It cannot tell whether a
driver works at this moment: it tells when one gave its last sign of life, and whether the next is overdue.

Invariants: answers and failures are those of exactly the committed parts, whole, although a driver may be
committing while they are read; a status is read from records alone, so its cost grows with the parts and not with
what they hold.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum

import pyarrow as pa

from pipeline.commit import CommitRecord, CommittedFile, Totals
from pipeline.directory import RunDirectory
from pipeline.errors import DirectoryError
from pipeline.highlights import FailureClass, SlowDocument, merged, slowest_among
from pipeline.plan import Plan
from pipeline.rates import Done, Rates, is_silent, longest_gap_s, rates_of
from pipeline.records import (
    ENDS,
    EPOCHS,
    SUCCESS,
    EndRecord,
    EpochRecord,
    read_commits,
    read_committed,
    read_ends,
    read_epochs,
    read_first_commits,
    read_job,
    read_plan,
    unnamed_files,
)
from pipeline.tables import ANSWER_SCHEMA, FAILURE_SCHEMA, to_table

_LOOKS = 3

Clock = Callable[[], datetime]
"""The time, with its zone."""


class Phase(StrEnum):
    """What can be said of a run at a moment."""

    FINISHED = "finished"
    WORKING = "working"  # signs of life come as often as they did
    SILENT = "silent"  # the next sign of life is overdue: stopped without a word, killed, or stuck
    STOPPED = "stopped"  # the last sign of life is a farewell
    UNKNOWN = "unknown"  # no commit yet, so nothing to compare with


@dataclass(frozen=True)
class Life:
    """Signs of life, which are starts, commits and farewells: the last one, seconds since then (never negative, though
    clocks differ), and how far apart those of one start were at most. None where there is none, or only one.
    ``end``: the last sign, where that is a farewell and no later start is without one."""

    last_sign: datetime | None
    silent_s: float | None
    gap_s: float | None
    end: EndRecord | None = None

    @property
    def phase(self) -> Phase:
        """That of a run that is not finished."""
        if self.end is not None:
            return Phase.STOPPED
        if self.silent_s is None or self.gap_s is None:
            return Phase.UNKNOWN
        return Phase.SILENT if is_silent(self.silent_s, self.gap_s) else Phase.WORKING


@dataclass(frozen=True)
class Status:
    """A run at one moment. ``parts``, ``documents`` and ``tokens`` are planned (tokens as ``plan.Part``
    estimates them), ``tokens_committed`` the same estimate of the committed parts, ``totals`` what the commits
    say. ``orphans``: data files that no commit names, in the making or left by a killed driver. ``left_s``: for what
    is not committed, at the recent rate; None where it is not known. ``untold``: parts whose records are of a version
    that did not write times, slowest documents and examples. ``ends``: the farewells of those ``epochs`` that gave
    one."""

    url: str
    phase: Phase
    parts: int
    documents: int
    unasked: int
    tokens: int
    tokens_committed: int
    totals: Totals
    epochs: tuple[EpochRecord, ...]
    ends: tuple[EndRecord, ...]
    orphans: tuple[str, ...]
    rates: Rates
    left_s: float | None
    life: Life
    failures: tuple[FailureClass, ...]
    slowest: tuple[SlowDocument, ...]
    untold: int

    @property
    def is_finished(self) -> bool:
        """Whether every question has ended and the run says so."""
        return self.phase == Phase.FINISHED


def _now() -> datetime:
    return datetime.now(UTC)


class StatusReader:
    """Reads a run's status again and again; what never changes is read once."""

    def __init__(self, directory: RunDirectory, clock: Clock = _now) -> None:
        self._directory, self._clock = directory, clock
        self._plan: Plan | None = None
        self._records: dict[int, CommitRecord] = {}
        self._first: dict[int, CommitRecord] = {}

    def read(self) -> Status:
        """The status now. ``DirectoryError`` where no run was started or a record is damaged."""
        directory = self._directory
        read_job(directory)
        # In this order: a run that is marked as finished has all its commits, and a commit has its start.
        is_finished = directory.read(SUCCESS) is not None
        self._plan = self._plan or read_plan(directory)
        self._records = read_commits(directory, self._records)
        self._first = read_first_commits(directory, self._records, self._first)
        plan, records, ends = self._plan or Plan((), ()), self._records, read_ends(directory)
        epochs = read_epochs(directory)  # behind the ends, each of which has its start
        starts = {record.epoch: self._seconds(record.started, f"{EPOCHS}/{record.epoch}.json") for record in epochs}
        life, rates = self._life(starts, ends), rates_of(starts, self._done(plan))
        tokens_committed = sum(part.tokens for part in plan.parts if part.index in records)
        left_s = rates.recent.seconds_for(plan.tokens - tokens_committed) if rates.recent else None
        return Status(
            url=directory.url,
            phase=Phase.FINISHED if is_finished else life.phase,
            parts=len(plan.parts),
            documents=plan.rows,
            unasked=plan.unasked,
            tokens=plan.tokens,
            tokens_committed=tokens_committed,
            totals=Totals.of(records.values()),
            epochs=epochs,
            ends=ends,
            orphans=tuple(unnamed_files(directory, records.values())),
            rates=rates,
            left_s=0.0 if is_finished else left_s,
            life=life,
            failures=merged([r.errors for r in records.values()], [r.examples for r in records.values()]),
            slowest=slowest_among(document for r in records.values() for document in r.slowest or ()),
            untold=sum(record.committed is None for record in records.values()),
        )

    def _life(self, starts: Mapping[int, float], ends: Sequence[EndRecord]) -> Life:
        signs: dict[int, set[float]] = {}
        for record in (*self._records.values(), *self._first.values()):
            if (moment := self._moment(record)) is not None:
                signs.setdefault(record.epoch, set()).add(moment)
        ended = {record.epoch: self._seconds(record.ended, f"{ENDS}/{record.epoch}.json") for record in ends}
        worked = [*starts.values(), *(moment for moments in signs.values() for moment in moments)]
        last_s = max([*worked, *ended.values()], default=None)
        if last_s is None:
            return Life(None, None, None)
        silent_s = max(0.0, self._clock().timestamp() - last_s)
        # Starts are known to the second only: one that came right behind a farewell may seem to lie before it.
        unended = max(starts.keys() - ended.keys(), default=0)
        end = next((record for record in ends if ended[record.epoch] == last_s and record.epoch > unended), None)
        return Life(datetime.fromtimestamp(last_s, UTC), silent_s, longest_gap_s(starts, signs), end)

    def _done(self, plan: Plan) -> list[Done]:
        """The first commits: a retry of failures reads a few documents, and its record counts all."""
        return [
            Done(
                start=record.epoch,
                at_s=moment,
                documents=record.documents,
                tokens=record.document_tokens,
                planned_tokens=plan.parts[part].tokens if part < len(plan.parts) else 0,
            )
            for part, record in self._first.items()
            if (moment := self._moment(record)) is not None
        ]

    def _moment(self, record: CommitRecord) -> float | None:
        if record.committed is None:
            return None
        return self._seconds(record.committed, f"the commit of part {record.part}")

    def _seconds(self, moment: str, what: str) -> float:
        """In Unix time."""
        try:
            return datetime.fromisoformat(moment).timestamp()
        except (TypeError, ValueError, OverflowError) as error:
            raise DirectoryError(f"{self._directory.url}: {what} is damaged: its time is {moment!r}") from error


def read_status(directory: RunDirectory, clock: Clock = _now) -> Status:
    """The status of a run, running or not. ``DirectoryError`` where none was started or a record is damaged."""
    return StatusReader(directory, clock).read()


def read_answers(directory: RunDirectory) -> pa.Table:
    """All committed answers, in part order; columns as ``outcome.Answer``. ``DirectoryError`` for damage."""
    return _read_tables(directory, lambda record: record.answers, ANSWER_SCHEMA)


def read_failures(directory: RunDirectory) -> pa.Table:
    """All committed failures, in part order; columns as ``outcome.Failure``. ``DirectoryError`` for damage."""
    return _read_tables(directory, lambda record: record.failures, FAILURE_SCHEMA)


def _read_tables(
    directory: RunDirectory, choose: Callable[[CommitRecord], CommittedFile | None], schema: pa.Schema
) -> pa.Table:
    """A file that is gone was replaced by a later revision: look at the records again."""
    for look in range(_LOOKS):
        files = [file for record in read_commits(directory).values() if (file := choose(record)) is not None]
        try:
            tables = [to_table(read_committed(directory, file)) for file in files]
        except FileNotFoundError:
            if look == _LOOKS - 1:
                raise
            continue
        return pa.concat_tables([schema.empty_table(), *tables])
    raise AssertionError("the last look returns or raises")
