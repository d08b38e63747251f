"""Errors a user can mend.

    JobError                 the job cannot run as it is: exit 2
      CorpusError            a file, column or type of the corpus
      DirectoryError         the output directory is foreign, unwritable, or another job's
    TooManyFailures          the run stopped itself: exit 1, resumable
    WorkersUnavailable       no worker can start, or none is left: exit 1, resumable
    Interrupted              the user stopped the run: exit 130, resumable
    IncompleteRun            outcomes are missing or double: exit 1, a fault of ours or of the storage

A failed row is a value (``outcome.Failure``), never an exception; a failed save is an ``OSError``.
"""

from __future__ import annotations


class JobError(ValueError):
    """The job cannot run as it is; the message names the file, key or row and what is allowed."""


class CorpusError(JobError):
    """Something about the corpus as a whole: a missing file, column or type."""


class DirectoryError(JobError):
    """The output directory cannot be used for this job."""


class TooManyFailures(RuntimeError):
    """More questions failed than ``output.max_failed_fraction`` allows; what is committed stays."""


class WorkersUnavailable(RuntimeError):
    """Workers cannot start; the message holds what the last one said."""


class Interrupted(RuntimeError):
    """The run was asked to stop and did; what is committed stays, and the same command resumes."""


class IncompleteRun(RuntimeError):
    """Not every question has exactly one outcome, or a committed file is gone; nothing is marked as done."""
