"""What became of each part, and of each task and question that failed, as log lines with their fields.

Invariant: only for logs that machines read (``FOVEATE_LOG=json``); people see progress, and failures in ``failed/``.
"""

from __future__ import annotations

import logging

from pipeline.ledger import FinishedPart
from pipeline.pool import Result, WorkerLost
from pipeline.prepared import Prepared
from pipeline.telemetry.watch import Watch
from workers.messages import Ask, Encode, WorkError
from workers.subject import subject

_log = logging.getLogger(__name__)


class LogWatch(Watch):
    """Logs what a loop does."""

    def __init__(self) -> None:
        self._parts: dict[str, int] = {}

    def took(self, part: int, prepared: Prepared) -> None:
        """Remember which part a document is of."""
        self._parts[prepared.name] = part

    def finished(self, task_id: int, task: Encode | Ask, result: Result) -> None:
        """Say what failed, though it may be tried again."""
        if not isinstance(result, WorkError | WorkerLost):
            return
        fields = {"task": task_id, **subject(task)}
        document = task.document if isinstance(task, Encode) else task.queries[0].document
        if document in self._parts:
            fields["part"] = self._parts[document]
        why = f"{result.error}: {result.message}" if isinstance(result, WorkError) else f"worker lost: {result.why}"
        _log.warning("%s failed: %s", type(task).__name__, why, extra=fields)

    def committed(self, part: FinishedPart) -> None:
        """Say what is durable now."""
        self._parts = {document: of for document, of in self._parts.items() if of != part.index}
        for failure in part.failures:
            document = f"{failure.source_file}:{failure.source_row}"
            message = "question %s is a dead letter: %s: %s"
            fields = {"document": document, "part": part.index}
            _log.warning(message, failure.question_id, failure.error, failure.message, extra=fields)
        message = "part %d committed: %d documents, %d questions answered, %d failed"
        counts = part.num_documents, len(part.answers), len(part.failures)
        _log.info(message, part.index, *counts, extra={"part": part.index})
