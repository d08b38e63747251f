"""Errors of the workers, by whose they are.

    ModelError             the model or its profile cannot be used: the job cannot run
    BackendUnavailable     an attention backend that was asked for cannot run here: the job cannot run
    DocumentError          this document or question cannot be answered: bad data, never retried

Running out of memory and losing a worker are not errors of ours: they arrive as ``WorkError`` values.
"""

from __future__ import annotations


class ModelError(ValueError):
    """The model cannot be found, loaded, or read with; the message says which and why."""


class BackendUnavailable(RuntimeError):
    """An attention backend cannot run here; the message says what to install or which device it needs."""


class DocumentError(ValueError):
    """One document or question cannot be worked on as it is."""
