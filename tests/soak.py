"""A cluster on this machine that loses something every few seconds, and a corpus that must come through it whole.

    python -m tests.soak --minutes 30 --documents 2000 --every 20

Tiny model, three nodes, at most two engines at once: two cores are enough. A round is a run of the corpus in a fresh
directory, by turns with answers over kept pairs in Ray's memory and over text that is read again; a round that is done
is followed by another until the time is over, and the last one is let finish. Every ``--every`` seconds one thing goes:
an engine's process, a node's raylet, a whole node (another takes its place), or the driver, by SIGKILL or SIGTERM (the
same command follows). The summary goes to stdout, in Markdown; the exit code is 1 if anything is not as it must be.

Invariant: what a round must come to is what a run in one process came to, before anything was killed.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from configs.schema import Job
from pipeline import driver
from pipeline.directory import existing_directory
from pipeline.status import read_status
from tests.pipeline import hosts
from tests.pipeline.jobs import Bench
from tests.pipeline.nodes import Nodes, children, kill, nodes, processes_with, read_proc
from tests.tiny import save_tiny_model

NUM_NODES = 3
NUM_ENGINES = 2
METHODS: dict[str, dict[str, Any]] = {
    "reread": {},
    "kept": {"answer": {"over": "kept", "batch_size": 3}, "store": {"tiers": [{"kind": "ray"}]}},
}
DRIVE = """
import sys, pathlib
from tests.pipeline import hosts, nodes
nodes.drive_command(pathlib.Path(sys.argv[1]), hosts.LoggingHost)
"""
PATIENCE_S = 600.0
"""Without a commit, before a round counts as hung."""
_MARK = "FOVEATE_SOAK"
_KILLED = (-signal.SIGKILL, -signal.SIGTERM, 130)
"""How a driver ends that was killed, told to end before it listened, or told."""


@dataclass
class Tale:
    """What happened so far. ``memory_kib``: of each driver that lived longer than half a minute, early and late."""

    killed: Counter[str] = field(default_factory=Counter)
    rounds: Counter[str] = field(default_factory=Counter)
    rows: int = 0
    begun: int = 0
    repeated: int = 0
    memory_kib: list[tuple[int, int]] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


class Driver:
    """A process that runs a job."""

    def __init__(self, job_file: Path, log: Path) -> None:
        self._started_s = time.monotonic()
        self._early_kib = self._late_kib = 0
        with log.open("ab") as output:
            command = [sys.executable, "-c", DRIVE, str(job_file)]
            self.process = subprocess.Popen(command, stdout=output, stderr=output)

    def weigh(self) -> None:
        """Look at its memory."""
        resident = re.search(r"VmRSS:\s+(\d+)", read_proc(f"/proc/{self.process.pid}/status"))
        if resident and time.monotonic() - self._started_s > 30:
            self._late_kib = int(resident[1])
            self._early_kib = self._early_kib or self._late_kib

    @property
    def memory_kib(self) -> list[tuple[int, int]]:
        """Half a minute after its start, and when it was last looked at; nothing if it did not live so long."""
        return [(self._early_kib, self._late_kib)] if self._early_kib else []


class Commits:
    """What a run has committed, by whichever driver."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._seen, self._moved_s = 0, time.monotonic()

    def quiet_s(self) -> float:
        """Since when there was no new one."""
        seen = len(list(self._folder.glob("*.json"))) if self._folder.exists() else 0
        if seen != self._seen:
            self._seen, self._moved_s = seen, time.monotonic()
        return time.monotonic() - self._moved_s


class Soak:
    """Rounds of one corpus on one cluster, and what is done to it."""

    def __init__(self, bench: Bench, cluster: Nodes, tale: Tale, every_s: float, seed: int) -> None:
        self._bench, self._cluster, self._tale = bench, cluster, tale
        self._every_s = every_s
        self._chance = random.Random(seed)
        self._next_s = time.monotonic() + every_s

    def round(self, method: str, expected: list[dict[str, Any]], until_s: float) -> None:
        """One run of the corpus; kills until ``until_s`` (monotonic), and then lets it finish."""
        name = f"{method}-{self._tale.rounds.total()}"
        pool = {"kind": "ray", "workers": NUM_ENGINES, "address": self._cluster.address}
        job = soak_job(self._bench, name, pool=pool, **METHODS[method])
        if self._see_through(name, job, until_s):
            self._judge(name, method, job, expected)

    def _see_through(self, name: str, job: Job, until_s: float) -> bool:
        """Drive ``job`` to its end, anew after whatever ends the driver. Whether it got there."""
        file, log = self._bench.write_job(job, f"{name}.yaml"), self._log(name)
        commits = Commits(Path(job.output.path, "_job", "commits"))
        running = Driver(file, log)
        try:
            while (code := running.process.poll()) != 0:
                if commits.quiet_s() > PATIENCE_S:
                    self._tale.wrong.append(f"{name}: no commit within {PATIENCE_S:g} s: {self._last_words(name)}")
                    return False
                if code is not None:
                    if code not in _KILLED:
                        self._tale.wrong.append(f"{name}: the driver ended with {code}: {self._last_words(name)}")
                    self._tale.memory_kib += running.memory_kib
                    running = Driver(file, log)
                now_s = time.monotonic()
                if self._next_s < now_s < until_s:
                    self._strike(running.process)
                    self._next_s = now_s + self._every_s
                running.weigh()
                time.sleep(0.2)
        finally:
            running.process.kill()
            running.process.wait()
        self._tale.memory_kib += running.memory_kib
        return True

    def _strike(self, running: subprocess.Popen[bytes]) -> None:
        raylet = self._chance.choice(self._cluster.raylets)
        processes = [process for each in self._cluster.raylets for process in children(each)]
        engines = [process for process in processes if "Host" in read_proc(f"/proc/{process}/cmdline")]
        ways: dict[str, tuple[float, Callable[[], object]]] = {
            "a node": (3, lambda: self._lose(raylet)),
            "a raylet": (1, lambda: self._lose(raylet, with_workers=False)),
            "the driver, SIGKILL": (1, running.kill),
            "the driver, SIGTERM": (1, running.terminate),
        }
        if engines:
            ways["an engine"] = (5, lambda: kill(self._chance.choice(engines)))
        [way] = self._chance.choices(list(ways), [weight for weight, _ in ways.values()])
        self._tale.killed[way] += 1
        print(f"{time.strftime('%H:%M:%S')} {way}", file=sys.stderr, flush=True)
        ways[way][1]()

    def _lose(self, raylet: int, *, with_workers: bool = True) -> None:
        if with_workers:
            self._cluster.vanish(raylet)
        else:
            kill(raylet)
            self._cluster.bury(raylet)
        self._cluster.add()

    def _judge(self, name: str, method: str, job: Job, expected: list[dict[str, Any]]) -> None:
        rows, status = self._bench.rows(name), read_status(existing_directory(job.output.path))
        tale, begun = self._tale, hosts.counted(hosts.log_of(job))
        tale.rounds[method] += 1
        tale.rows += len(rows)
        tale.begun += begun.total()
        tale.repeated += begun.total() - len(begun)
        if rows != expected:
            wrong = sum(row not in expected for row in rows)
            tale.wrong.append(f"{name}: {len(rows)} rows, {wrong} of them not among the {len(expected)} expected")
        if not status.is_finished or status.orphans:
            tale.wrong.append(f"{name}: finished {status.is_finished}, files without an owner: {status.orphans}")
        if strange := strange_files(Path(job.output.path)):
            tale.wrong.append(f"{name}: files that belong to nothing: {strange}")
        print(f"{time.strftime('%H:%M:%S')} {name}: {len(rows)} rows", file=sys.stderr, flush=True)

    def _log(self, name: str) -> Path:
        return self._bench.root / f"{name}.driver"

    def _last_words(self, name: str) -> str:
        return " / ".join(self._log(name).read_text(errors="replace").splitlines()[-3:])


def soak_job(bench: Bench, name: str, **changes: Any) -> Job:
    """A job in parts of about ten documents."""
    return bench.job(name, output={"part_tokens": 2000, "max_failed_fraction": 0.2}, **changes)


def strange_files(output: Path) -> list[str]:
    """What a finished run does not leave behind."""
    known = (
        "data/",
        "failed/",
        "_job/job.json",
        "_job/plan.json",
        "_job/epoch/",
        "_job/end/",
        "_job/commits/",
        "_SUCCESS",
        "report",
    )
    found = [path.relative_to(output).as_posix() for path in output.rglob("*") if path.is_file()]
    return [name for name in found if not name.startswith(known)]


def soak(minutes: float, documents: int, every_s: float, seed: int, root: Path) -> Tale:
    """The whole of it, in ``root``."""
    chance = random.Random(seed)
    drawn = [min(3000, int(chance.lognormvariate(5.5, 0.9)) + 1) for _ in range(documents)]
    lengths = [0 if chance.random() < 0.01 else length for length in drawn]
    bench = Bench(root, save_tiny_model(root / "model"), lengths)
    expected = {}
    for method, changes in METHODS.items():
        driver.run(
            soak_job(bench, f"local-{method}", **{key: value for key, value in changes.items() if key != "store"})
        )
        expected[method] = bench.rows(f"local-{method}")
    tale = Tale()
    with nodes(NUM_NODES, environment={_MARK: root.name}) as cluster:
        whole = Soak(bench, cluster, tale, every_s, seed)
        until_s = time.monotonic() + 60 * minutes
        while time.monotonic() < until_s:
            method = list(METHODS)[tale.rounds.total() % len(METHODS)]
            whole.round(method, expected[method], until_s)
    deadline_s = time.monotonic() + 30
    while (left := processes_with(f"{_MARK}={root.name}")) and time.monotonic() < deadline_s:
        time.sleep(0.5)
    tale.wrong += [f"still running: {line}" for line in left]
    return tale


def summary(tale: Tale, documents: int) -> Iterator[str]:
    """Lines of Markdown."""
    yield "| | |"
    yield "| --- | --- |"
    yield f"| rounds of {documents:,} documents | {_counts(tale.rounds)} |"
    yield f"| killed | {tale.killed.total()}: {_counts(tale.killed)} |"
    yield f"| rows, each checked against a run in one process | {tale.rows:,} |"
    share = tale.repeated / tale.begun if tale.begun else 0.0
    yield f"| chunks begun again | {tale.repeated:,} of {tale.begun:,} ({share:.2%}) |"
    early, late = max(tale.memory_kib, key=lambda pair: pair[1] - pair[0], default=(0, 0))
    yield f"| memory of the driver that grew most, after 30 s and at its end | {early >> 10} MiB, {late >> 10} MiB |"
    yield f"| not as it must be | {len(tale.wrong) or 'nothing'} |"
    yield from (f"\n* {line}" for line in tale.wrong)


def _counts(counter: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counter.most_common())


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--documents", type=int, default=2000)
    parser.add_argument("--every", type=float, default=20.0, metavar="SECONDS")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    os.nice(5)
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    root = Path(tempfile.mkdtemp(prefix="soak-", dir="/tmp"))
    tale = soak(asked.minutes, asked.documents, asked.every, asked.seed, root)
    print("\n".join(summary(tale, asked.documents)))
    if tale.wrong:
        print(f"jobs, outputs and logs are in {root}", file=sys.stderr)
        sys.exit(1)
    shutil.rmtree(root)


if __name__ == "__main__":
    main()
