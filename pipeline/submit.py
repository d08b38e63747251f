"""Sending a job to a Ray cluster: this directory travels along, and the cluster runs ``python -m pipeline run``.

Invariant: nothing is decided here; the job that runs is the one that the file and the overrides say, read
again on the cluster.
"""

from __future__ import annotations

import asyncio
import shlex
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

from pipeline.errors import JobError

ENTRYPOINT_CPUS = 1.0
"""The driver reads, tokenizes and commits: without a CPU of its own it would share one with an engine."""


def submit(
    job_file: Path,
    address: str,
    settings: Sequence[str] = (),
    *,
    entrypoint_num_cpus: float = ENTRYPOINT_CPUS,
    write: Callable[[str], object] = sys.stdout.write,
) -> int:
    """Run ``job_file`` with overrides ``settings`` on the cluster whose dashboard is at ``address`` (URL).

    Writes its log as it comes, and returns its exit code. The current directory is sent, without what git
    ignores; ``job_file`` must lie in it. Raises ``JobError`` for a file outside and for no cluster there.
    """
    from ray.job_submission import JobStatus, JobSubmissionClient  # no Ray but for this

    inside = relative_to_working_directory(job_file)
    try:
        client = JobSubmissionClient(address)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise JobError(f"--address: {address}: no Ray cluster there: {error}") from error
    submission_id = client.submit_job(
        entrypoint=entrypoint(inside, settings),
        entrypoint_num_cpus=entrypoint_num_cpus,
        runtime_env={"working_dir": ".", "excludes": [".git"]},
    )
    write(f"submitted {submission_id}; if this connection breaks: ray job logs --address {address} {submission_id}\n")
    asyncio.run(_follow(client.tail_job_logs(submission_id), write))
    details = client.get_job_info(submission_id)
    write(
        f"{submission_id}: {details.status}{'' if details.status == JobStatus.SUCCEEDED else f': {details.message}'}\n"
    )
    if details.driver_exit_code is not None:
        return int(details.driver_exit_code)
    return 0 if details.status == JobStatus.SUCCEEDED else 1


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


async def _follow(lines: AsyncIterator[str], write: Callable[[str], object]) -> None:
    async for piece in lines:
        write(piece)
