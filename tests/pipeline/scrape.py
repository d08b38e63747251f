"""What Prometheus would see: names and labels under which Ray exports a metric, and a scrape of a real node."""

from __future__ import annotations

import urllib.request
from collections.abc import Iterator
from typing import NamedTuple

from prometheus_client.parser import text_string_to_metric_families

from workers.metrics import METRICS, Metric

RAY_LABELS = frozenset({"Component", "NodeAddress", "SessionName", "Version", "WorkerId"})
"""Labels that Ray 2.60 adds to every metric of a program."""
SCOPE_LABELS = frozenset({"otel_scope_name", "otel_scope_schema_url", "otel_scope_version"})
"""And its exporter, about itself."""


class Sample(NamedTuple):
    """One line of a scrape."""

    name: str
    labels: dict[str, str]
    value: float


def series_of(metric: Metric) -> dict[str, frozenset[str]]:
    """The names under which Ray exports a metric, each with its labels."""
    name, labels = f"ray_{metric.name}", RAY_LABELS | SCOPE_LABELS | set(metric.tags)
    if metric.kind != "histogram":
        return {name: labels}
    return {f"{name}_bucket": labels | {"le"}, f"{name}_count": labels, f"{name}_sum": labels}


SERIES = {name: labels for metric in METRICS for name, labels in series_of(metric).items()}


def scrape(url: str) -> list[Sample]:
    """Our samples at a metrics endpoint."""
    with urllib.request.urlopen(url, timeout=30) as answer:
        text = answer.read().decode()
    return list(_ours(text))


def _ours(text: str) -> Iterator[Sample]:
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name.startswith("ray_foveate_"):
                yield Sample(sample.name, dict(sample.labels), sample.value)


def total(samples: list[Sample], metric: Metric, **labels: str) -> float:
    """The sum of a counter, or of a histogram's count, over all processes."""
    name = f"ray_{metric.name}" + ("_count" if metric.kind == "histogram" else "")
    return sum(s.value for s in samples if s.name == name and labels.items() <= s.labels.items())
