"""The state of a run in its directory: start or resume, commit parts, finish.

Invariants: the creation of a commit record is the only thing that makes a part done, and of two drivers one
creates it; it is created after the part's files are durable, so what a record names is there; a kill at any
step leaves a directory that the same command resumes, and rows that no record names are not output. Every
question ends once: a commit is refused unless ``expected == answered + failed`` and no question comes twice.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
from blake3 import blake3

from configs.load import differences
from pipeline.commit import CommitRecord, CommittedFile, Totals, record_of, refuse_wrong_outcomes
from pipeline.directory import RunDirectory
from pipeline.errors import DirectoryError, IncompleteRun, Interrupted
from pipeline.outcome import Answer, Failure, Outcome
from pipeline.plan import Plan
from pipeline.records import (
    ANSWERS,
    ENDS,
    EPOCHS,
    FAILURES,
    FORMAT,
    JOB,
    PLAN,
    SUCCESS,
    EndRecord,
    EpochRecord,
    commit_name,
    is_settled,
    read_commits,
    read_committed,
    read_job,
    read_plan,
    to_json,
    unnamed_files,
)
from pipeline.tables import ANSWER_SCHEMA, FAILURE_SCHEMA, to_answers, to_failures, to_parquet

_ERROR_CHARACTERS = 500


class RunState:
    """One driver's hold on a run directory. ``epoch`` is this driver's own number; not for several threads."""

    def __init__(self, directory: RunDirectory, job_record: dict[str, Any], plan: Plan, epoch: int) -> None:
        self.directory, self.plan, self.epoch = directory, plan, epoch
        self._records: dict[int, CommitRecord] = {}
        self._file_order = {file.path: index for index, file in enumerate(plan.files)}
        self._question_order = {question["id"]: index for index, question in enumerate(job_record.get("questions", ()))}

    @classmethod
    def start(
        cls,
        directory: RunDirectory,
        job_record: dict[str, Any],
        identity: dict[str, Any],
        plan_factory: Callable[[], Plan],
    ) -> RunState:
        """Start the run, or resume it; ``plan_factory`` is asked only where no plan is stored yet.

        ``identity`` is what a resume must share with the first start; ``DirectoryError`` names each key that
        differs. Both are JSON values. Whether the files are still those of the plan is the caller's to check
        (``plan.verify_unchanged``).
        """
        if directory.read(JOB) is not None:
            _refuse_other_job(directory, identity)
        stored = read_plan(directory)
        plan = plan_factory() if stored is None else stored
        directory.sweep()
        directory.create(JOB, to_json({"format": FORMAT, "identity": identity, "job": job_record}))
        _refuse_other_job(directory, identity)
        if stored is None and not directory.create(PLAN, plan.to_json()):
            plan = read_plan(directory) or plan
        job, _ = read_job(directory)
        return cls(directory, job, plan, _claim_epoch(directory))

    @contextmanager
    def farewell(self) -> Iterator[None]:
        """What ends this driver's work before the run is finished is written down, for ``status`` to tell a run that
        was stopped from one that works. Not after an ``OSError``: where saving failed nothing more is saved."""
        try:
            yield
        except OSError:
            raise
        except BaseException as error:
            why = None if isinstance(error, (Interrupted, KeyboardInterrupt)) else _in_a_line(error)
            end = EndRecord(self.epoch, datetime.now(UTC).isoformat(timespec="milliseconds"), why)
            with suppress(OSError):  # of the two errors the first is the one to hear of
                self.directory.create(f"{ENDS}/{self.epoch}.json", to_json(asdict(end)))
            raise

    @property
    def is_finished(self) -> bool:
        """Whether ``finish`` came to its end, here or in another process."""
        return self.directory.read(SUCCESS) is not None

    def committed(self) -> dict[int, CommitRecord]:
        """The record that counts of each committed part, by any driver, up to now."""
        self._records = read_commits(self.directory, self._records)
        return dict(self._records)

    def commit(
        self, part_index: int, answers: Sequence[Answer], failures: Sequence[Failure], documents: int, expected: int
    ) -> bool:
        """Write and commit one part: all its outcomes, in any order. ``expected``: questions of its documents.

        False if another driver was first; this one's files are removed. Raises ``IncompleteRun`` if the
        outcomes are not exactly one for each question, and ``OSError`` if they cannot be saved: the part is
        then not committed and may be committed again.
        """
        planned = self.plan.parts[part_index].rows
        if documents != planned:
            raise IncompleteRun(f"part {part_index}: {documents} documents were read, {planned} are planned")
        return self._publish(part_index, 0, answers, failures, documents, expected)

    def answers(self, part_index: int) -> list[Answer]:
        """The committed answers of a part."""
        return self._answers_of(self._record(part_index))

    def failures(self, part_index: int) -> list[Failure]:
        """The committed failures of a part."""
        file = self._record(part_index).failures
        return to_failures(read_committed(self.directory, file)) if file is not None else []

    def recommit(
        self, part_index: int, answers: Sequence[Answer], failures: Sequence[Failure], base_revision: int
    ) -> bool:
        """Replace the failures of revision ``base_revision``: ``answers`` are new, ``failures`` remain. The
        revision's own answers are kept, and its files removed afterwards.

        False if another driver made that next revision first. Raises as ``commit`` does.
        """
        base = self._record(part_index)
        if base.revision != base_revision:
            return False
        try:
            kept = self._answers_of(base)
        except FileNotFoundError:
            if self._record(part_index).revision != base_revision:
                return False
            raise
        outcomes = [*kept, *answers]
        if not self._publish(part_index, base.revision + 1, outcomes, failures, base.documents, base.expected):
            return False
        for file in base.files:
            self.directory.delete(file.name)
        return True

    def finish(self) -> Totals:
        """Check that every question ended, remove orphans, and mark the run as done.

        Raises ``IncompleteRun`` where a part is not committed, the sums do not agree or a file is gone.
        """
        records = self.committed()
        totals = Totals.of(records.values())
        if missing := [part.index for part in self.plan.parts if part.index not in records]:
            raise IncompleteRun(f"{len(missing)} parts are not committed, the first is part {missing[0]}")
        if (totals.documents, totals.expected) != (self.plan.rows, totals.answered + totals.failed):
            raise IncompleteRun(
                f"{totals.documents} documents of {self.plan.rows}, {totals.expected} questions, but "
                f"{totals.answered} answered and {totals.failed} failed"
            )
        self._refuse_lost_files()
        for name in unnamed_files(self.directory, records.values()):
            if is_settled(name, records):
                self.directory.delete(name)
        self.directory.sweep()
        self.directory.create(SUCCESS, to_json({"documents": totals.documents, "questions": totals.expected}))
        return totals

    def _answers_of(self, record: CommitRecord) -> list[Answer]:
        file = record.answers
        return to_answers(read_committed(self.directory, file)) if file is not None else []

    def _record(self, part_index: int) -> CommitRecord:
        records = self.committed()
        if part_index not in records:
            raise IncompleteRun(f"part {part_index} is not committed")
        return records[part_index]

    def _publish(
        self,
        part: int,
        revision: int,
        answers: Sequence[Answer],
        failures: Sequence[Failure],
        documents: int,
        expected: int,
    ) -> bool:
        """Files first, the record last. Once the record was tried, only its presence tells what became of it."""
        refuse_wrong_outcomes(part, answers, failures, expected)
        name = f"part-{part:05d}.{revision}-e{self.epoch}-{secrets.token_hex(4)}.parquet"
        try:
            saved = [
                self._save(f"{ANSWERS}/{name}", sorted(answers, key=self._order), ANSWER_SCHEMA),
                self._save(f"{FAILURES}/{name}", sorted(failures, key=self._order), FAILURE_SCHEMA),
            ]
        except OSError:
            self._discard(name)
            raise
        record = record_of(part, revision, self.epoch, saved, answers, failures, documents)
        content, commit = to_json(asdict(record)), commit_name(part, revision)
        if self.directory.create(commit, content) or self.directory.read(commit) == content:
            return True
        self._discard(name)
        return False

    def _save(self, name: str, outcomes: Sequence[Outcome], schema: pa.Schema) -> CommittedFile | None:
        if not outcomes:
            return None
        content = to_parquet(outcomes, schema)
        if not self.directory.create(name, content) and self.directory.read(name) != content:
            raise FileExistsError(f"{self.directory.url}: {name} exists, though its name was drawn at random")
        return CommittedFile(name, len(outcomes), len(content), blake3(content).hexdigest())

    def _discard(self, name: str) -> None:
        """Remove the files of a commit that will never be named; what cannot be removed is swept later."""
        for folder in (ANSWERS, FAILURES):
            with suppress(OSError):
                self.directory.delete(f"{folder}/{name}")

    def _order(self, outcome: Outcome) -> tuple[int, int, int, int]:
        """Reading order of rows, the job's questions in their order, then the row's own in theirs."""
        own = len(self._question_order)
        number = outcome.question_id.rpartition("-")[2]
        return (
            self._file_order[outcome.source_file],
            outcome.source_row,
            self._question_order.get(outcome.question_id, own),
            int(number) if number.isdecimal() else 0,
        )

    def _refuse_lost_files(self) -> None:
        """The files are listed before the records are read, so that another driver's new revision shows as a
        file too many or as one too few; in the second case a second look settles it."""
        for _ in range(2):
            present = {*self.directory.names(ANSWERS), *self.directory.names(FAILURES)}
            named = {file.name for record in self.committed().values() for file in record.files}
            lost = sorted(named - present)
            if not lost:
                return
        raise IncompleteRun(f"{self.directory.url}: {lost[0]} was committed and is gone")


def _in_a_line(error: BaseException) -> str:
    message = " ".join(str(error).split())
    return f"{type(error).__name__}: {message}"[:_ERROR_CHARACTERS]


def _refuse_other_job(directory: RunDirectory, identity: dict[str, Any]) -> None:
    _, stored = read_job(directory)
    if differing := differences(stored, json.loads(json.dumps(identity))):
        listed = "".join(f"\n  {line}" for line in differing)
        raise DirectoryError(
            f"{directory.url}: holds the state of another job (there -> now):{listed}\n"
            "give another output.path, or the settings it was started with"
        )


def _claim_epoch(directory: RunDirectory) -> int:
    """The next number that no driver has; the nonce tells this claim from one with the same content."""
    taken = [int(name.rpartition("/")[2].removesuffix(".json")) for name in directory.names(EPOCHS)]
    epoch = max(taken, default=0) + 1
    while True:
        started = datetime.now(UTC).isoformat(timespec="seconds")
        claim = EpochRecord(epoch, socket.gethostname(), os.getpid(), started, secrets.token_hex(8))
        content = to_json(asdict(claim))
        name = f"{EPOCHS}/{epoch}.json"
        if directory.create(name, content) or directory.read(name) == content:
            return epoch
        epoch += 1
