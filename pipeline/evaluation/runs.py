"""One measured run: the product itself in a process of its own, its answers checked, its cost taken.

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
import pyarrow.parquet as pq

from pipeline.directory import existing_directory
from pipeline.status import read_answers


@dataclass(frozen=True)
class Cost:
    """What a process cost: ``wall_s`` includes loading the model, ``peak_bytes`` is its largest resident set."""

    wall_s: float
    peak_bytes: int


@dataclass(frozen=True)
class Measured:
    """What a run came to. Seconds are engine time per 1,000 document tokens, summed over workers; the last two are
    its ``Cost``."""

    name: str
    items: int
    correct: int
    document_tokens: int
    encode_s_per_1000: float
    answer_s_per_1000: float
    wall_s: float
    peak_bytes: int

    @property
    def accuracy(self) -> float:
        """Share of the items whose answer contains the expected string."""
        return self.correct / self.items


def measure(name: str, job: Path, corpus: Path, output: Path, overrides: Sequence[str]) -> Measured:
    """Run ``job`` over ``corpus`` into ``output``, or read the record of having done so. ``corpus`` has one question
    and one answer per row. Raises as ``run_job``."""
    cost = run_job(name, job, output, (f"corpus.path={corpus}", *overrides))
    answers = read_answers(existing_directory(str(output)))
    expected = {row["id"]: row["answer"] for row in pq.read_table(corpus, columns=["id", "answer"]).to_pylist()}
    correct = sum(expected[row["id"]] in row["answer"] for row in answers.select(["id", "answer"]).to_pylist())
    tokens = pc.sum(answers["document_tokens"]).as_py()
    return Measured(
        name=name,
        items=len(expected),
        correct=correct,
        document_tokens=tokens,
        encode_s_per_1000=1000 * pc.sum(answers["seconds_encode"]).as_py() / tokens,
        answer_s_per_1000=1000 * pc.sum(answers["seconds_answer"]).as_py() / tokens,
        wall_s=cost.wall_s,
        peak_bytes=cost.peak_bytes,
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
