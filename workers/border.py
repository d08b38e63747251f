"""The border around an engine: whatever happens inside comes out as a value.

Invariants: here stands the only ``except Exception`` of the workers; an error says whose it is, and its
traceback is logged where it happened.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Protocol, TypeVar

import torch

from workers.errors import DocumentError
from workers.logs import bound
from workers.messages import WorkError
from workers.subject import subject

_log = logging.getLogger(__name__)

_CPU_SHORTAGE = "can't allocate memory"
"""torch's allocator for host memory raises a plain RuntimeError that says so."""


Task = TypeVar("Task", contravariant=True)
Done = TypeVar("Done", covariant=True)
_T = TypeVar("_T")
_D = TypeVar("_D")


class Works(Protocol[Task, Done]):
    """Who does a pool's work; ``workers.engine.Engine`` in earnest."""

    def work(self, task: Task) -> Done:
        """Do one task."""

    def free(self, names: Sequence[str]) -> None:
        """Drop store entries."""

    def close(self) -> None:
        """Finish what goes on behind tasks: nothing is asked any more."""


def attempt(engine: Works[_T, _D], task: _T) -> _D | WorkError:
    """Do one task. A document's fault is ``data``, want of memory ``resource``, all else ``infrastructure``."""
    with bound(**subject(task)):
        try:
            return engine.work(task)
        except DocumentError as error:
            return WorkError("data", type(error).__name__, str(error))
        except Exception as error:
            if isinstance(error, torch.OutOfMemoryError | MemoryError) or _CPU_SHORTAGE in str(error):
                _log.warning("out of memory in %s", type(task).__name__, exc_info=error)
                return WorkError("resource", "OutOfMemoryError", str(error))
            _log.exception("%s failed", type(task).__name__)
            return WorkError("infrastructure", type(error).__name__, str(error))
