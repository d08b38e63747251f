"""Who watches a run: what the job and the environment ask for.

Invariant: what is not asked for is not imported, and costs nothing.
"""

from __future__ import annotations

import os

from configs.schema import Job
from pipeline.errors import JobError
from pipeline.telemetry.logs import LogWatch
from pipeline.telemetry.metrics import MetricsWatch
from pipeline.telemetry.watch import Watch, Watches
from workers.logs import wants_json

SPANS = "FOVEATE_OTEL"


def refuse_unavailable() -> None:
    """Raise ``JobError`` where spans are asked for and cannot be had: before anything is begun."""
    if not _wants_spans():
        return
    try:
        from pipeline.telemetry import tracing

        tracing.exporter().shutdown()
    except ImportError as error:
        raise JobError(
            f"{SPANS}: 1 asks for spans, and {error.name} is not installed: pip install 'foveate[otel]'"
        ) from error


def watch_of(job: Job, epoch: int) -> Watch:
    """Metrics where the pool is Ray's, log lines with ``FOVEATE_LOG=json``, spans with ``FOVEATE_OTEL=1``; once for
    each loop, when the pool has been started. ``epoch``: of the driver."""
    watches: list[Watch] = []
    if job.pool.kind == "ray":
        from workers.ray_metrics import RayMeter  # no Ray without a Ray pool

        watches.append(MetricsWatch(RayMeter()))
    if wants_json():
        watches.append(LogWatch())
    if _wants_spans():
        from pipeline.telemetry import tracing

        watches.append(tracing.SpanWatch(tracing.exporter(), epoch=epoch, output=job.output.path))
    return Watches(watches) if watches else Watch()


def _wants_spans() -> bool:
    asked = os.environ.get(SPANS, "0")
    if asked not in ("0", "1"):
        raise JobError(f"{SPANS}: {asked}; allowed: 0, 1")
    return asked == "1"
