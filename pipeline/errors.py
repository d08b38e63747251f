"""Errors a user can mend.

    JobError                 the job cannot run as it is: exit 2
      CorpusError            a file, column or type of the corpus
      DirectoryError         the output directory is foreign, unwritable, or another job's
    TooManyFailures          the run stopped itself: exit 1, resumable

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
