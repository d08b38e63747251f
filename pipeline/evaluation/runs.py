"""One measured run: the product itself in a process of its own, and what it cost.

Invariants: what is measured is ``foveate run`` as users start it; a run that finished is not repeated, its
record lies beside its answers.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow.compute as pc

from pipeline.directory import existing_directory
from pipeline.status import read_answers


@dataclass(frozen=True)
class Cost:
    """What a process cost: ``wall_s`` includes loading the model, ``peak_bytes`` is its largest resident set."""

    wall_s: float
    peak_bytes: int


@dataclass(frozen=True)
class Measured:
    """What a run over documents cost. Seconds are engine time per 1,000 document tokens, summed over workers."""

    document_tokens: int
    encode_s_per_1000: float
    answer_s_per_1000: float
    cost: Cost

    @property
    def tokens_per_s(self) -> float:
        """Document tokens by wall clock, loading the model included."""
        return self.document_tokens / self.cost.wall_s


def measure(name: str, job: Path, corpus: Path, output: Path, overrides: Sequence[str]) -> Measured:
    """Run ``job`` over ``corpus`` into ``output``, or read the record of having done so. ``corpus`` has one question
    per row. Raises as ``run_job``."""
    cost = run_job(name, job, output, (f"corpus.path={corpus}", *overrides))
    answers = read_answers(existing_directory(str(output)))
    tokens = pc.sum(answers["document_tokens"]).as_py()
    return Measured(
        document_tokens=tokens,
        encode_s_per_1000=1000 * pc.sum(answers["seconds_encode"]).as_py() / tokens,
        answer_s_per_1000=1000 * pc.sum(answers["seconds_answer"]).as_py() / tokens,
        cost=cost,
    )


def run_job(name: str, job: Path, output: Path, overrides: Sequence[str]) -> Cost:
    """Run ``foveate run`` to its end and say what it cost, or read what it cost when it ran.

    Raises ``RuntimeError`` with the end of the run's own words if it does not exit with 0.
    """
    record = output.with_suffix(".json")
    if record.is_file():
        return Cost(**json.loads(record.read_text()))
    command = [sys.executable, "-m", "pipeline", "run", str(job), "--output", str(output)]
    for override in overrides:
        command += ["--set", override]
    started = time.monotonic()
    log = output.with_suffix(".log")
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as sink:
        process = subprocess.Popen(command, stdout=sink, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise RuntimeError(f"{name}: exit {process.returncode}:\n{log.read_text()[-2000:]}")
    cost = Cost(time.monotonic() - started, usage.ru_maxrss * 1024)
    record.write_text(json.dumps(asdict(cost), indent=1) + "\n")
    return cost
