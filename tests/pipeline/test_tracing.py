"""Spans: what they tell of a run, sent as real bytes to a collector, and what is said where they cannot be had."""

from __future__ import annotations

import sys
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from pipeline import driver
from pipeline.errors import JobError
from pipeline.ledger import FinishedPart
from pipeline.pool import WorkerLost
from pipeline.telemetry.opening import refuse_unavailable
from pipeline.telemetry.tracing import SpanWatch
from tests.pipeline.fakes import prepared
from tests.pipeline.jobs import Bench
from workers.messages import Ask, Encode, Encoded, Query, WorkError

HTTP_EXPORTER = "opentelemetry.exporter.otlp.proto.http.trace_exporter"
Values = dict[str, str | int | float]


class Collector:
    """An OTLP collector that remembers what it was sent."""

    def __init__(self) -> None:
        self.requests: list[ExportTraceServiceRequest] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                assert self.path == "/v1/traces"
                body = self.rfile.read(int(self.headers["Content-Length"]))
                collector.requests.append(ExportTraceServiceRequest.FromString(body))
                self.send_response(200)
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None: ...

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()

    @property
    def spans(self) -> list[Span]:
        resources = [resource for request in self.requests for resource in request.resource_spans]
        return [span for resource in resources for scope in resource.scope_spans for span in scope.spans]


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    found = Collector()
    monkeypatch.setenv("FOVEATE_OTEL", "1")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{found.server.server_port}")
    try:
        yield found
    finally:
        found.server.shutdown()
        found.thread.join()
        found.server.server_close()


def values(span: Span) -> Values:
    """The attributes of a span, without our prefix."""
    return {
        each.key.removeprefix("foveate."): getattr(each.value, str(each.value.WhichOneof("value")))
        for each in span.attributes
    }


def test_a_run_is_sent_as_spans_within_spans(tmp_path: Path, tiny_model: Path, collector: Collector) -> None:
    job = Bench(tmp_path, tiny_model, [700, 0, 900]).job()
    driver.run(job)
    spans = {span.span_id: span for span in collector.spans}
    [run] = [span for span in spans.values() if span.name == "run"]
    parents = {"part": "run", "document": "part", "read chunk": "document", "answer batch": "document"}
    for span in spans.values():
        assert span.trace_id == run.trace_id
        assert span.start_time_unix_nano <= span.end_time_unix_nano
        if span is not run:
            parent = spans[span.parent_span_id]
            assert parent.name == parents[span.name]
            assert parent.start_time_unix_nano <= span.start_time_unix_nano
            assert parent.end_time_unix_nano >= span.end_time_unix_nano
            assert values(span)["epoch"] == 1 and values(span)["part"] in (0, 1)
    assert values(run) == {"epoch": 1, "output": job.output.path}
    names = Counter(span.name for span in spans.values())
    assert (names["part"], names["document"], names["read chunk"]) == (2, 3, 6 + 8)
    documents = [span for span in spans.values() if span.name == "document"]
    assert {str(values(span)["document"]).rpartition(":")[2] for span in documents} == {"0", "1", "2"}
    assert [span.status.message for span in documents if span.status.code == Status.STATUS_CODE_ERROR] == ["NullText"]
    chunks = [values(span) for span in spans.values() if span.name == "read chunk"]
    assert all(float(chunk["engine_seconds"]) > 0 for chunk in chunks)
    assert sum(int(chunk["tokens"]) for chunk in chunks) == sum(int(values(span)["tokens"]) for span in documents)
    service = collector.requests[0].resource_spans[0].resource.attributes
    assert "foveate" in [each.value.string_value for each in service if each.key == "service.name"]


def test_a_collector_that_is_not_there_costs_the_run_nothing(
    tmp_path: Path, tiny_model: Path, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    assert driver.run(Bench(tmp_path, tiny_model, [300]).job()).totals.answered == 2


def test_what_goes_wrong_is_an_error_and_nothing_stays_open() -> None:
    exporter = InMemorySpanExporter()
    watch = SpanWatch(exporter, epoch=2, output="out")
    rows = [prepared(row, num_chunks=2) for row in range(2)]
    names = [row.name for row in rows]
    tasks = [Encode(name, row.chunks[:1], row.probes, 1) for name, row in zip(names, rows, strict=True)]
    ask = Ask(tuple(Query(name, row.probes[0], (), 1) for name, row in zip(names, rows, strict=True)))
    for row in rows:
        watch.took(0, row)
    for task_id, task in enumerate([*tasks, ask]):
        watch.submitted(task_id, task)
    watch.finished(0, tasks[0], WorkerLost(why="hung"))
    watch.finished(2, ask, WorkError("infrastructure", "CudaError", "broken"))
    watch.submitted(0, tasks[0])
    watch.finished(0, tasks[0], Encoded((), (), 1.0, 0))
    watch.committed(FinishedPart(1, (), (), 0, 0, ()))
    watch.close(RuntimeError("stopped"))
    spans = exporter.get_finished_spans()
    said = Counter((span.name, span.status.description) for span in spans)
    assert said == {
        ("read chunk", "worker lost: hung"): 1,
        ("read chunk", None): 1,
        ("read chunk", "RuntimeError: stopped"): 1,
        ("answer batch", "CudaError: broken"): 1,
        ("document", "RuntimeError: stopped"): 2,
        ("part", "RuntimeError: stopped"): 1,
        ("run", "RuntimeError: stopped"): 1,
    }
    [batch] = [span for span in spans if span.name == "answer batch"]
    first, second = (span for span in spans if span.name == "document")
    assert batch.parent and batch.parent.span_id == first.get_span_context().span_id
    assert [link.context.span_id for link in batch.links] == [second.get_span_context().span_id]


def test_spans_without_opentelemetry_are_refused_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOVEATE_OTEL", "1")
    monkeypatch.setitem(sys.modules, HTTP_EXPORTER, None)
    with pytest.raises(JobError, match=r"is not installed: pip install 'foveate\[otel\]'"):
        refuse_unavailable()


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("FOVEATE_OTEL", "yes", "FOVEATE_OTEL: yes; allowed: 0, 1"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc", "OTEL_EXPORTER_OTLP_PROTOCOL: grpc; allowed: http/protobuf"),
    ],
)
def test_a_wrong_value_is_refused(monkeypatch: pytest.MonkeyPatch, name: str, value: str, words: str) -> None:
    monkeypatch.setenv("FOVEATE_OTEL", "1")
    monkeypatch.setenv(name, value)
    with pytest.raises(JobError, match=words):
        refuse_unavailable()
