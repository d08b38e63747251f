"""Metrics by way of Ray: each node's agent exports what the processes there record, for Prometheus to fetch.

Invariant: used in a process that is part of a Ray cluster; a metric is registered when it first has a value.
"""

from __future__ import annotations

from ray.util.metrics import Counter, Gauge, Histogram

from workers.metrics import Meter, Metric

_Series = tuple[Metric, tuple[str, ...]]


class RayMeter(Meter):
    """Records through ``ray.util.metrics``; one for each process and connection. An instrument for each combination of
    labels, because Ray then need not merge and check them at every value."""

    def __init__(self) -> None:
        self._counters: dict[_Series, Counter] = {}
        self._gauges: dict[_Series, Gauge] = {}
        self._histograms: dict[_Series, Histogram] = {}

    def add(self, metric: Metric, amount: float, *labels: str) -> None:
        """As ``Meter.add``."""
        counter = self._counters.get((metric, labels))
        if counter is None:
            counter = self._counters[metric, labels] = Counter(metric.name, metric.help, metric.tags)
            counter.set_default_tags(_named(metric, labels))
        counter.inc(amount)

    def set(self, metric: Metric, value: float, *labels: str) -> None:
        """As ``Meter.set``."""
        gauge = self._gauges.get((metric, labels))
        if gauge is None:
            gauge = self._gauges[metric, labels] = Gauge(metric.name, metric.help, metric.tags)
            gauge.set_default_tags(_named(metric, labels))
        gauge.set(value)

    def observe(self, metric: Metric, value: float, *labels: str) -> None:
        """As ``Meter.observe``."""
        histogram = self._histograms.get((metric, labels))
        if histogram is None:
            buckets = list(metric.buckets)
            histogram = self._histograms[metric, labels] = Histogram(metric.name, metric.help, buckets, metric.tags)
            histogram.set_default_tags(_named(metric, labels))
        histogram.observe(value)


def _named(metric: Metric, labels: tuple[str, ...]) -> dict[str, str]:
    return dict(zip(metric.tags, labels, strict=True))
