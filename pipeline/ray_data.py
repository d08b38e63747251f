"""Foveate inside a Ray Data pipeline: a class for ``ds.map_batches``, one row in, one row out.

It is the loop, the scheduler and the engine of ``pipeline.driver.run``, over the rows of one batch at a time. This
module imports no Ray: Ray Data makes the class in its actors.

Invariants: a row comes out as it went in, in its place, with one column more, whose type never changes; every question
of a row has one entry there, and what is wrong with a row is in that row; each row is a part of its own, so that no
batch of questions crosses rows and no answer depends on how Ray Data cuts its batches.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from configs.load import load_job
from configs.schema import Corpus, Job, LocalWorkers, RayWorkers
from pipeline.columns import cell_values, column_problems
from pipeline.corpus import refuse_reserved
from pipeline.document import Document, job_questions, make_document
from pipeline.document import Row as Cells
from pipeline.errands import NOTHING, Extent, Row
from pipeline.errors import CorpusError, WorkersUnavailable
from pipeline.ledger import FinishedPart
from pipeline.loop import Loop
from pipeline.outcome import Answer, Failure, Outcome
from pipeline.pool import EnginePool, LocalPool
from pipeline.reading import DocumentReader
from pipeline.tables import ANSWER_SCHEMA, FAILURE_SCHEMA
from workers.loading import find_or_calibrate, load_engine, load_method, load_reading, with_dtype
from workers.selection.profile import Profile

MAX_FAILED_ROWS = 10
"""In a row, each for want of memory or a machine: then it is the worker that is ill and not the rows."""

_OF_THE_ROW = ("id", "source_file", "source_row")
_FIELDS = {field.name: field for field in (*ANSWER_SCHEMA, *FAILURE_SCHEMA) if field.name not in _OF_THE_ROW}
ANSWERS_TYPE = pa.list_(pa.struct(list(_FIELDS.values())))
"""The new column: the columns of ``data/`` and ``failed/`` of a run but those that say which row it is, null where they
do not apply. ``error`` is null of every answer and of no failure."""


class LongDocumentProcessor:
    """Asks a job's questions of the documents of each batch.

        ds.map_batches(
            LongDocumentProcessor,
            batch_size=8,
            compute=ray.data.ActorPoolStrategy(size=4),
            **LongDocumentProcessor.arguments("job.yaml", num_cpus=1),
        )

    Of the job count ``questions``, ``prompt``, ``model``, ``read``, ``keep``, ``answer``, ``store`` and the names of
    columns in ``corpus``. ``corpus.path``, ``output`` and ``pool`` do not: Ray Data reads, writes and starts workers.
    """

    def __init__(
        self, job: Job | Path | str, *, column: str = "answers", num_threads: int = 1, profile: Profile | None = None
    ) -> None:
        """Loads the model. ``column``: name of the new one; ``num_threads``: chunks that are read at once, by threads
        that share the weights; ``profile``: the model's retrieval heads, looked for (or calibrated) where None is given
        and the job needs them. Raises ``ConfigError``, ``JobError`` or ``ModelError``."""
        self._job = with_dtype(_loaded(job).model_copy(update={"pool": LocalWorkers(workers=num_threads)}))
        self._column = column
        self._reader, found = _reader(self._job, profile)
        self._asked = job_questions(self._job.questions)
        self._make_pool = partial(LocalPool, partial(load_engine, self._job, found), num_threads)
        self._failed_rows = 0
        self._one_at_a_time = threading.Lock()
        self._start()

    @classmethod
    def arguments(
        cls, job: Job | Path | str, *, column: str = "answers", num_cpus: float = 1.0, num_gpus: float = 0.0
    ) -> dict[str, Any]:
        """Arguments of ``map_batches`` that belong together, for workers of this size. What the job leaves open is
        settled here, once for all workers: ``model.dtype: auto``, and a calibration where one is needed. Raises as the
        constructor, before anything is started."""
        settled = with_dtype(_loaded(job).model_copy(update={"pool": RayWorkers(num_cpus=num_cpus, num_gpus=num_gpus)}))
        _, profile = _reader(settled, None)
        threads = {"num_threads": max(1, int(num_cpus))}
        return {
            "fn_constructor_kwargs": {"job": settled, "column": column, "profile": profile} | threads,
            "batch_format": "pyarrow",
            "num_cpus": num_cpus,
            "num_gpus": num_gpus,
            "udf_modifying_row_count": False,
        }

    def __call__(self, batch: pa.Table) -> pa.Table:
        """``batch`` with the new column behind its own. Raises ``CorpusError`` where a column is missing, of a type
        that cannot be used, or already named as the new one; ``WorkersUnavailable`` after ``MAX_FAILED_ROWS``."""
        _refuse_columns(batch.schema, self._job.corpus, self._column)
        errand = _Batch(self._documents(batch), batch.num_rows, keep=self._job.store.keep)
        with self._one_at_a_time:
            self._work_through(errand, batch.num_rows)
            self._refuse_to_fail_on(errand.outcomes)
        answers = [[_record(outcome) for outcome in outcomes] for outcomes in errand.outcomes]
        return batch.append_column(self._column, pa.array(answers, ANSWERS_TYPE))

    def _start(self) -> None:
        """Start the engine; it stops when nobody needs this object any more."""
        self._pool: EnginePool = self._make_pool()
        self._stop = weakref.finalize(self, self._pool.close, abandon=True)

    def _work_through(self, errand: _Batch, num_rows: int) -> None:
        loop = Loop(
            self._reader,
            self._pool,
            batch_size=self._job.answer.batch_size,
            chunk_tokens=self._job.read.chunk_tokens,
            total=Extent(num_rows, num_rows, 0),
            done=NOTHING,
        )
        try:
            loop.run(errand)
        except BaseException:
            self._stop()  # what still runs would come back among the tasks of the next batch
            self._start()
            raise

    def _documents(self, batch: pa.Table) -> Iterator[Document]:
        corpus, index = self._job.corpus, 0
        for piece in batch.select(list(corpus.columns)).to_batches():
            columns = {name: cell_values(piece.column(name)) for name in corpus.columns}
            for at in range(piece.num_rows):
                cells = {name: values[at] for name, values in columns.items()}
                row = Cells(cells, "batch", index, default_id=str(index))
                yield make_document(row, corpus, self._asked, used_at=None)
                index += 1

    def _refuse_to_fail_on(self, rows: Sequence[Sequence[Outcome]]) -> None:
        """A broken device fails whatever it is given, and faster than a sound one answers: it would empty the queue."""
        for outcomes in rows:
            is_ill = bool(outcomes) and all(isinstance(o, Failure) and o.retryable for o in outcomes)
            self._failed_rows = self._failed_rows + 1 if is_ill else 0
            if self._failed_rows >= MAX_FAILED_ROWS:
                last = outcomes[-1]
                assert isinstance(last, Failure)
                raise WorkersUnavailable(
                    f"{MAX_FAILED_ROWS} rows in a row failed on this worker, so it seems ill and not they; the last "
                    f"one: {last.error}: {last.message}"
                )


class _Batch:
    """``errands.Errand`` over the rows of a batch. ``outcomes``: of each row, in the order of its questions."""

    elsewhere = NOTHING
    """As ``Errand.elsewhere``: nobody else is at it."""

    def __init__(self, documents: Iterator[Document], num_rows: int, *, keep: bool) -> None:
        """``keep``: store entries outlive their row."""
        self._documents, self._keep = documents, keep
        self._places: dict[int, dict[str, int]] = {}
        self.outcomes: list[list[Outcome]] = [[] for _ in range(num_rows)]

    def rows(self) -> Iterator[Row]:
        """As ``Errand.rows``: each row is a part."""
        for part, document in enumerate(self._documents):
            self._places[part] = {asked.question_id: place for place, asked in enumerate(document.questions)}
            yield Row(part, document)
            yield Row(part, None)

    def commit(self, part: FinishedPart) -> bool:
        """As ``Errand.commit``: a row is done."""
        places = self._places.pop(part.index)
        outcomes: tuple[Outcome, ...] = (*part.answers, *part.failures)
        self.outcomes[part.index] = sorted(outcomes, key=lambda outcome: places[outcome.question_id])
        return True

    def unwanted(self, part: FinishedPart) -> Sequence[str]:
        """As ``Errand.unwanted``."""
        return () if self._keep else part.keys


def _loaded(job: Job | Path | str) -> Job:
    loaded = job if isinstance(job, Job) else load_job(job)
    refuse_reserved(loaded.corpus, loaded.questions)
    return loaded


def _reader(job: Job, profile: Profile | None) -> tuple[DocumentReader, Profile | None]:
    """What prepares and chooses for ``job``, and the profile that it needs."""
    reading = load_reading(job)
    profile = profile or find_or_calibrate(job, reading)
    method = load_method(job, reading, profile)
    return DocumentReader(job, reading, method.scorer, method.budget), profile


def _refuse_columns(schema: pa.Schema, corpus: Corpus, column: str) -> None:
    problems = column_problems("dataset", schema, corpus)
    if column in schema.names:
        problems.append(
            f"dataset: column {column!r} is there already and the answers would get its name; rename it, or give "
            "another name as column=..."
        )
    if problems:
        raise CorpusError("\n".join(problems))


def _record(outcome: Answer | Failure) -> dict[str, Any]:
    """An entry of the new column. A lone surrogate, which UTF-8 cannot hold, becomes its escape."""
    return {
        name: value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value
        for name, value in asdict(outcome).items()
        if name in _FIELDS
    }
