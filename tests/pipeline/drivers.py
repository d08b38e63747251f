"""Real drivers in processes of their own, to be killed, interrupted and raced.

Processes fork from a server that has imported torch and started no thread, so one costs a third of a second.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import Any

from configs.schema import Job
from pipeline import driver
from pipeline.directory import RunDirectory, open_directory
from pipeline.driver import StopRequest
from pipeline.errands import Share
from pipeline.errors import Interrupted, JobError
from pipeline.loop import Progress

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload([__name__])


class KillingDirectory:
    """A run directory whose process dies by SIGKILL before or after it creates the first name with ``prefix``."""

    def __init__(self, inner: RunDirectory, prefix: str, moment: str) -> None:
        self._inner, self._prefix, self._moment = inner, prefix, moment

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def create(self, name: str, content: bytes) -> bool:
        fatal = name.startswith(self._prefix)
        if fatal and self._moment == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        created = self._inner.create(name, content)
        if fatal:
            os.kill(os.getpid(), signal.SIGKILL)
        return created


def drive_and_die(job: Job, prefix: str, moment: str) -> None:
    """Run ``job`` and be killed on the way."""
    driver.open_directory = lambda path: KillingDirectory(open_directory(path), prefix, moment)  # type: ignore
    driver.run(job)


def drive_together(job: Job, barrier: Any, share: str = "1/1") -> None:
    """Run ``job`` when the other drivers are ready too."""
    barrier.wait()
    driver.run(job, share=Share.parse(share))


def drive_until_interrupted(job: Job, num_parts: int) -> None:
    """Run ``job`` as the command line does, with a Ctrl-C after ``num_parts`` parts."""
    stop = StopRequest()

    def handler(number: int, frame: FrameType | None) -> None:
        stop.set()

    def progress(now: Progress) -> None:
        if now.parts == num_parts:
            os.kill(os.getpid(), signal.SIGINT)

    signal.signal(signal.SIGINT, handler)
    try:
        driver.run(job, progress=progress, stop=stop)
    except Interrupted:
        sys.exit(130)


def start(work: Callable[..., None], *arguments: Any) -> BaseProcess:
    """Start ``work`` in a process of its own."""
    process = SERVER.Process(target=work, args=arguments)
    process.start()
    return process


def finish(process: BaseProcess) -> int:
    """Wait for a process; its exit code, or minus the signal that ended it."""
    process.join(timeout=120)
    assert process.exitcode is not None, "still running after two minutes"
    return process.exitcode


def drive_with_own_ray(job: Job) -> None:
    """Run ``job`` where no Ray is, and leave none."""
    import ray

    driver.run(job)
    assert not ray.is_initialized()


def expect_job_error(job: Job, words: str) -> None:
    """Run ``job``, which must be refused with ``words``."""
    try:
        driver.run(job)
    except JobError as error:
        assert words in str(error), error
        return
    raise AssertionError("it ran")
