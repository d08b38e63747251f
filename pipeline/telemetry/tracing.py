"""A run as OpenTelemetry spans: run > part > document > chunk read or batch answered.

Spans go where the standard variables ``OTEL_EXPORTER_OTLP_*`` say, over HTTP. All are made by the driver: a task's span
lasts from the moment it is handed to the pool until its result is back, and ``foveate.engine_seconds`` says how much of
that an engine worked.

Invariants: this module is imported only where spans are wanted; a document's span ends with its last task; a batch over
several documents is a child of the first and linked to the others; whatever is open when the run ends is ended too, as
an error if the run failed; a collector that does not answer costs spans, never the run.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

from opentelemetry.context import Context
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace import Link, Span, Status, StatusCode, set_span_in_context

from pipeline.errors import JobError
from pipeline.ledger import FinishedPart
from pipeline.pool import Result, WorkerLost
from pipeline.prepared import Prepared
from pipeline.telemetry.watch import Watch
from workers.messages import Answered, Ask, Encode, Encoded, WorkError

_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_HTTP = "http/protobuf"


def exporter() -> SpanExporter:
    """What sends spans over HTTP. Raises ``JobError`` where another protocol is asked for, ``ImportError`` where the
    package is missing."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    for name in _PROTOCOLS:
        if os.environ.get(name, _HTTP) != _HTTP:
            raise JobError(f"{name}: {os.environ[name]}; allowed: {_HTTP}")
    return OTLPSpanExporter()


@dataclass(eq=False)
class _Document:
    """``ended_ns``: when the last of its tasks came back, or it was read in."""

    span: Span
    part: int
    ended_ns: int


class SpanWatch(Watch):
    """Makes a span of everything that a loop does."""

    def __init__(self, exporter: SpanExporter, *, epoch: int, output: str) -> None:
        """``epoch``: of the driver; ``output``: of the run, by which its traces are found."""
        resource = Resource.create({} if "OTEL_SERVICE_NAME" in os.environ else {SERVICE_NAME: "foveate"})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("foveate")
        self._epoch = epoch
        attributes: dict[str, str | int] = {"foveate.epoch": epoch, "foveate.output": output}
        self._run = self._tracer.start_span("run", Context(), attributes=attributes)
        self._parts: dict[int, Span] = {}
        self._documents: dict[str, _Document] = {}
        self._tasks: dict[int, Span] = {}

    def took(self, part: int, prepared: Prepared) -> None:
        """A document's span begins, and with the first one its part's."""
        attributes: dict[str, str | int] = {"foveate.part": part, "foveate.epoch": self._epoch}
        if part not in self._parts:
            self._parts[part] = self._start("part", self._run, attributes)
        attributes |= {"foveate.document": prepared.name, "foveate.tokens": prepared.num_tokens}
        span = self._start("document", self._parts[part], attributes)
        self._documents[prepared.name] = _Document(span, part, time.time_ns())

    def submitted(self, task_id: int, task: Encode | Ask) -> None:
        """A task's span begins."""
        names = [task.document] if isinstance(task, Encode) else [query.document for query in task.queries]
        first, *others = (self._documents[name] for name in dict.fromkeys(names))
        attributes: dict[str, str | int] = {
            "foveate.document": ", ".join(dict.fromkeys(names)),
            "foveate.part": first.part,
            "foveate.epoch": self._epoch,
            "foveate.task": task_id,
        }
        if isinstance(task, Encode):
            kind = "read chunk"
            attributes["foveate.chunk"] = task.chunks[0].index
            attributes["foveate.tokens"] = sum(len(chunk.token_ids) for chunk in task.chunks)
        else:
            kind = "answer batch"
            attributes["foveate.questions"] = len(task.queries)
        links = [Link(other.span.get_span_context()) for other in others]
        self._tasks[task_id] = self._start(kind, first.span, attributes, links)

    def finished(self, task_id: int, task: Encode | Ask, result: Result) -> None:
        """It ends, and says how."""
        span, now_ns = self._tasks.pop(task_id), time.time_ns()
        match result:
            case Encoded():
                span.set_attribute("foveate.engine_seconds", result.seconds)
                span.set_attribute("foveate.found", result.cache_hits)
            case Answered():
                span.set_attribute("foveate.engine_seconds", sum(answer.seconds for answer in result.answers))
            case WorkError():
                span.set_status(Status(StatusCode.ERROR, f"{result.error}: {result.message}"))
            case WorkerLost():
                span.set_status(Status(StatusCode.ERROR, f"worker lost: {result.why}"))
        span.end(now_ns)
        for name in [task.document] if isinstance(task, Encode) else [query.document for query in task.queries]:
            self._documents[name].ended_ns = now_ns

    def committed(self, part: FinishedPart) -> None:
        """A part's spans end. A document with a failed question is an error."""
        failed = {f"{failure.source_file}:{failure.source_row}": failure.error for failure in part.failures}
        for name in [name for name, document in self._documents.items() if document.part == part.index]:
            document = self._documents.pop(name)
            if name in failed:
                document.span.set_status(Status(StatusCode.ERROR, failed[name]))
            document.span.end(document.ended_ns)
        if part.index in self._parts:
            self._parts.pop(part.index).end()

    def close(self, error: BaseException | None) -> None:
        """The run's span ends, and what is open; everything is sent."""
        left = [*self._tasks.values(), *(document.span for document in self._documents.values())]
        for span in [*left, *self._parts.values(), self._run]:
            if error is not None:
                span.set_status(Status(StatusCode.ERROR, f"{type(error).__name__}: {error}"))
            span.end()
        self._provider.shutdown()

    def _start(
        self, name: str, parent: Span, attributes: dict[str, str | int], links: list[Link] | None = None
    ) -> Span:
        return self._tracer.start_span(name, set_span_in_context(parent, Context()), attributes=attributes, links=links)
