"""A small run over imagined documents, and a script that kills it at every step, or has drivers race.

    python -m tests.pipeline.killed commit DIR   kills a run before each of its system calls, DIR/1, DIR/2, ...
    python -m tests.pipeline.killed retry DIR    the same for a retry of a finished run's failures
    python -m tests.pipeline.killed race DIR     four drivers at once
    python -m tests.pipeline.killed limit DIR    a run whose files must not grow beyond 4,000 bytes

It forks, so it imports neither torch nor anything else that starts threads. Killed is SIGKILL: no handler
runs, nothing is flushed. A killed ``write`` has written half.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline import directory as directory_module
from pipeline.commit import Totals
from pipeline.corpus import CorpusFile, RowGroup, RowRun
from pipeline.directory import RunDirectory, open_directory
from pipeline.outcome import Answer, Failure, Span
from pipeline.plan import Part, Plan
from pipeline.sink import RunState
from pipeline.status import read_answers, read_failures, read_status

JOB = {"questions": [{"id": "who"}, {"id": "what"}]}
IDENTITY = {"read": {"chunk_tokens": 2048}, "model": "tiny"}
ROWS = 4
QUESTIONS = ("who", "what", "row")
STEPS = ("open", "write", "fsync", "close", "link", "unlink")


def plan_of(num_parts: int = 3) -> Plan:
    """``num_parts`` parts of ``ROWS`` rows each, of one file."""
    file = CorpusFile("a.parquet", 100, "digest", tuple(RowGroup(ROWS, 100) for _ in range(num_parts)))
    return Plan((file,), tuple(Part(index, 25, (RowRun(0, index, 0, ROWS),)) for index in range(num_parts)))


def answer(row: int, question: str) -> Answer:
    """The answer to one question of one row; every driver and every attempt finds the same."""
    return Answer(
        id=f"d{row}",
        question_id=question,
        question=f"{question}?",
        answer=f"answer {row} 😀",
        spans=(Span(0, 5, 0.5, "hello"), Span(9, 12, 0.25, "you")),
        document_tokens=100 + row,
        kept_tokens=10,
        relevance_kept=0.75,
        generated_tokens=3,
        seconds_encode=0.5,
        seconds_answer=0.25,
        source_file="a.parquet",
        source_row=row,
    )


def failure(row: int, question: str) -> Failure:
    """The failure of one question of one row."""
    return Failure(
        id=None if row == 0 else f"d{row}",
        question_id=question,
        question=f"{question}?",
        stage="encode",
        error="WorkerLost",
        message="gone",
        attempts=3,
        retryable=row % 2 == 1,
        source_file="a.parquet",
        source_row=row,
    )


def outcomes(part: int) -> tuple[list[Answer], list[Failure]]:
    """All outcomes of a part: the odd parts have failures; part 0 has answers only."""
    rows = range(part * ROWS, (part + 1) * ROWS)
    asked = [(row, question) for row in rows for question in QUESTIONS]
    failed = [(row, question) for row, question in asked if part % 2 and row % 3 == 0]
    return [answer(*key) for key in asked if key not in failed], [failure(*key) for key in failed]


def start(directory: RunDirectory, plan: Plan | None = None) -> RunState:
    """Start or resume the run."""
    return RunState.start(directory, JOB, IDENTITY, lambda: plan or plan_of())


def commit_part(state: RunState, part: int) -> bool:
    """Commit one part."""
    answers, failures = outcomes(part)
    return state.commit(part, answers, failures, ROWS, ROWS * len(QUESTIONS))


def commit_all(path: Path) -> Totals:
    """A whole run, or what is left of it."""
    state = start(open_directory(str(path)))
    for part in state.plan.parts:
        if part.index not in state.committed():
            commit_part(state, part.index)
    return state.finish()


def retry_all(path: Path) -> Totals:
    """Answer every failure of a run, in one new revision for each part that has any."""
    state = start(open_directory(str(path)))
    for part, record in state.committed().items():
        if record.failed:
            healed = [answer(failed.source_row, failed.question_id) for failed in state.failures(part)]
            state.recommit(part, healed, [], record.revision)
    return state.finish()


class KillingOs:
    """The ``os`` of ``pipeline.directory``, until its ``kill_at``-th step."""

    def __init__(self, kill_at: int) -> None:
        self._steps_left = kill_at

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        return self._step(name, real) if name in STEPS else real

    def _step(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def step(*arguments: Any) -> Any:
            self._steps_left -= 1
            if self._steps_left == 0:
                if name == "write":
                    real(arguments[0], arguments[1][: len(arguments[1]) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments)

        return step


def forked(work: Callable[[], object]) -> int:
    """Start ``work`` in a child process; its exit status is 0 unless it raises."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)
        os._exit(0)
    return child


def joined(children: Iterable[int]) -> list[int]:
    """Exit statuses of children; minus the signal for those that were killed."""
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def kill_everywhere(base: Path, run: Callable[[Path], object], prepare: Callable[[Path], object]) -> int:
    """Kill ``run`` before each of its steps, in a directory for each; look at what is there, and run it again.
    Returns the number of steps."""

    def killed(path: Path, step: int) -> None:
        directory_module.os = KillingOs(step)  # type: ignore[assignment]
        run(path)

    def resumed(path: Path) -> None:
        refuse_partial_files(path)
        run(path)

    for step in range(1, 10_000):
        path = base / str(step)
        prepare(path)
        (status,) = joined([forked(lambda path=path, step=step: killed(path, step))])
        if status == 0:
            shutil.rmtree(path)
            return step - 1
        assert status == -signal.SIGKILL, f"step {step} ended with {status}"
        assert joined([forked(lambda path=path: resumed(path))]) == [0], f"after a kill at step {step}"
    raise AssertionError("the run never ends")


def refuse_partial_files(path: Path) -> None:
    """Every file that can be seen under its final name is whole."""
    for found in path.rglob("*"):
        if "staging" in found.parts or not found.is_file() or found.name.startswith("probe-"):
            continue
        if found.suffix == ".parquet":
            assert found.read_bytes()[-4:] == b"PAR1", found
        else:
            json.loads(found.read_bytes())
    if (path / "_job" / "job.json").exists():
        directory = directory_module.existing_directory(str(path))
        read_status(directory), read_answers(directory), read_failures(directory)


def race(path: Path, drivers: int = 4, parts: int = 12) -> None:
    """Let several drivers start at once and commit each part at once; each writes down what it won."""
    barrier = multiprocessing.get_context("fork").Barrier(drivers)

    def drive(number: int) -> None:
        barrier.wait()
        state = start(open_directory(str(path)), plan_of(parts))
        won = []
        for part in range(parts):
            barrier.wait()
            if commit_part(state, part):
                won.append(part)
        state.finish()
        (path.parent / f"won-{number}.json").write_text(json.dumps({"epoch": state.epoch, "parts": won}))

    assert joined([forked(lambda number=number: drive(number)) for number in range(drivers)]) == [0] * drivers


def limited(path: Path) -> None:
    """A driver for whom the disk is full after 4,000 bytes of one file."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))
    state = start(open_directory(str(path)))
    answers, failures = outcomes(0)
    noise = [replace(item, answer=os.urandom(4000).hex()) for item in answers]
    try:
        state.commit(0, noise, failures, ROWS, ROWS * len(QUESTIONS))
    except OSError as error:
        print(f"OSError {error.errno}")


def main(mode: str, base: Path) -> None:
    """Run one of the modes of this module's docstring."""
    if mode == "commit":
        print(kill_everywhere(base, commit_all, lambda path: None))
    elif mode == "retry":
        template = base / "finished"
        assert joined([forked(lambda: commit_all(template))]) == [0]
        print(kill_everywhere(base, retry_all, lambda path: shutil.copytree(template, path)))
    elif mode == "race":
        race(base / "run")
    else:
        limited(base)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
