"""Sending a job to a Ray cluster: this directory travels along, and the cluster runs ``python -m pipeline run``.

Invariants: nothing is decided here; the job that runs is the one that the file and the overrides say, read again on the
cluster; whatever becomes of the connection, the job goes on.
"""

from __future__ import annotations

import asyncio
import logging
import re
import shlex
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import JobError

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

ENTRYPOINT_CPUS = 1.0
"""The driver reads, tokenizes and commits: without a CPU of its own it would share one with an engine."""
STOP_GRACE_S = 30
"""How long ``ray job stop`` waits between SIGTERM and SIGKILL; Ray's own 3 seconds are short for a slow bucket."""
_NOISE = re.compile(r"[-\d]+ [:,\d]+\tINFO job_manager\.py:\d+ -- .*\n")


def submit(
    job_file: Path,
    address: str,
    settings: Sequence[str] = (),
    *,
    entrypoint_num_cpus: float = ENTRYPOINT_CPUS,
    write: Callable[[str], object] = sys.stdout.write,
) -> int:
    """Run ``job_file`` with overrides ``settings`` on the cluster whose dashboard is at ``address`` (URL).

    Writes its log as it comes, and returns its exit code; 130 for a job that somebody stopped, and after Ctrl-C, which
    leaves the job alone. The current directory is sent, without what git ignores; ``job_file`` must lie in it. Raises
    ``JobError`` for a file outside and for no cluster there, ``ConnectionError`` where the cluster answers no more.
    """
    from ray.job_submission import JobSubmissionClient  # no Ray but for this

    for handler in logging.getLogger("ray").handlers:
        handler.setLevel(logging.WARNING)
    inside = relative_to_working_directory(job_file)
    try:
        client = JobSubmissionClient(address)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise JobError(f"--address: {address}: no Ray cluster there: {error}") from error
    job = _send(client, entrypoint(inside, settings), entrypoint_num_cpus)
    write(f"submitted {job}; if this connection breaks: ray job logs --address {address} {job}\n")
    try:
        asyncio.run(_follow(client.tail_job_logs(job), write))
        return _ending(client, job, write)
    except KeyboardInterrupt:
        write(f"\n{job} goes on; to stop it: ray job stop --address {address} {job}\n")
        return 130
    except (ConnectionError, RuntimeError) as error:
        raise ConnectionError(f"{address} answers no more; {job} may go on: {error}") from error


def _send(client: JobSubmissionClient, command: str, num_cpus: float) -> str:
    """Have the cluster begin; Ray's name of the job."""
    runtime_env = {
        "working_dir": ".",
        "excludes": [".git"],
        "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_GRACE_S)},
    }
    try:
        return str(client.submit_job(entrypoint=command, entrypoint_num_cpus=num_cpus, runtime_env=runtime_env))
    except (RuntimeError, ValueError) as error:
        raise JobError(
            f"{Path.cwd()}: cannot be sent to the cluster; what git ignores, or .rayignore names, is left out: {error}"
        ) from error


def _ending(client: JobSubmissionClient, job: str, write: Callable[[str], object]) -> int:
    """Say how a job ended, whose log was shown; its exit code."""
    details = client.get_job_info(job)
    if details.status == "STOPPED":
        write(f"{job}: STOPPED; the same command resumes\n")
        return 130
    if not details.status.is_terminal():
        raise ConnectionError("its log ended before it did")
    if details.driver_exit_code is None:  # it never came to run
        write(f"{job}: {details.status}: {details.message}\n")
        return 1
    ended = "" if details.status == "SUCCEEDED" else f" with exit code {details.driver_exit_code}"
    write(f"{job}: {details.status}{ended}\n")
    return int(details.driver_exit_code)


def entrypoint(job_file: Path, settings: Sequence[str]) -> str:
    """The command that the cluster runs, quoted for its shell."""
    options = [word for setting in settings for word in ("--set", setting)]
    return shlex.join(["python", "-m", "pipeline", "run", job_file.as_posix(), *options])


def relative_to_working_directory(job_file: Path) -> Path:
    """``job_file`` as the cluster will find it in its copy of this directory."""
    here = Path.cwd()
    try:
        return job_file.resolve().relative_to(here.resolve())
    except ValueError as error:
        raise JobError(
            f"{job_file}: lies outside {here}, and only this directory is sent to the cluster; run the command in a "
            "directory that holds the job file"
        ) from error


async def _follow(pieces: AsyncIterator[str], write: Callable[[str], object]) -> None:
    """Write what comes, line by line, without what Ray says of itself."""
    rest = ""
    async for piece in pieces:
        *lines, rest = (rest + piece).splitlines(keepends=True) or [""]
        if rest.endswith("\n"):
            lines, rest = [*lines, rest], ""
        for line in lines:
            if not _NOISE.fullmatch(line):
                write(line)
    if rest:
        write(rest)
