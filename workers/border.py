"""The border around an engine: whatever happens inside comes out as a value.

Invariants: here stands the only ``except Exception`` of the workers; an error says whose it is, and its
traceback is logged where it happened.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Protocol

import torch

from workers.errors import DocumentError
from workers.messages import Answered, Ask, Encode, Encoded, WorkError

_log = logging.getLogger(__name__)

_CPU_SHORTAGE = "can't allocate memory"
"""torch's allocator for host memory raises a plain RuntimeError that says so."""


class Works(Protocol):
    """What a pool asks of an engine; ``workers.engine.Engine`` in earnest."""

    def encode(self, task: Encode) -> Encoded:
        """Read chunks."""

    def answer(self, task: Ask) -> Answered:
        """Answer a batch."""

    def free(self, names: Sequence[str]) -> None:
        """Drop store entries."""


def attempt(engine: Works, task: Encode | Ask) -> Encoded | Answered | WorkError:
    """Do one task. A document's fault is ``data``, want of memory ``resource``, all else ``infrastructure``."""
    try:
        return engine.encode(task) if isinstance(task, Encode) else engine.answer(task)
    except DocumentError as error:
        return WorkError("data", type(error).__name__, str(error))
    except Exception as error:
        if isinstance(error, torch.OutOfMemoryError | MemoryError) or _CPU_SHORTAGE in str(error):
            _log.warning("out of memory in %s", type(task).__name__, exc_info=error)
            return WorkError("resource", "OutOfMemoryError", str(error))
        _log.exception("%s failed", type(task).__name__)
        return WorkError("infrastructure", type(error).__name__, str(error))
