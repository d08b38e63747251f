"""What a process says while it works: lines for people, or one JSON object per line for machines.

``FOVEATE_LOG=json`` makes a line ``{"time": ..., "level": ..., "logger": ..., "message": ...}`` and adds what is known
of ``FIELDS``: from ``extra=`` of the call, from ``bound`` around it, or from ``known`` for the whole process. Lines for
people end with what is bound around them.

Invariants: lines go to stderr, results to stdout; a field that is not known is left out; nothing here fails for a value
that JSON does not know; text of a corpus or a model moves no cursor and passes for no line of ours.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from types import TracebackType

SWITCH = "FOVEATE_LOG"
FIELDS = ("document", "part", "epoch", "task", "engine")
"""``document``: source file and row; ``task``: the scheduler's number; ``engine``: where one runs."""
_KNOWN = "FOVEATE_LOG_KNOWN"
_PACKAGES = ("cache_store", "workers", "pipeline")

_process: dict[str, object] = {}
_around: ContextVar[Mapping[str, object]] = ContextVar("around", default={})  # noqa: B039  (never changed in place)


def wants_json() -> bool:
    """Whether this process is asked for JSON."""
    return os.environ.get(SWITCH, "").lower() == "json"


def speak() -> None:
    """Let our own packages say on stderr what they do; other libraries speak only to warn. Does nothing where logging
    is set up already."""
    known(**json.loads(os.environ.get(_KNOWN, "{}")))
    handler = logging.StreamHandler()
    handler.setFormatter(_formatter())
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    for package in _PACKAGES:
        logging.getLogger(package).setLevel(logging.INFO)
    if wants_json():
        logging.captureWarnings(True)
        sys.excepthook = _log_uncaught


def known(**fields: object) -> None:
    """From now on these fields hold for the whole process."""
    _process.update(fields)


def for_workers() -> dict[str, str]:
    """Environment variables with which the processes of a pool speak as this one does, of the same epoch."""
    fields = {name: value for name, value in _process.items() if name != "engine"}
    return {_KNOWN: json.dumps(fields)} | ({SWITCH: os.environ[SWITCH]} if SWITCH in os.environ else {})


@contextmanager
def bound(**fields: object) -> Iterator[None]:
    """These fields hold for what is logged inside, in this thread."""
    token = _around.set({**_around.get(), **fields})
    try:
        yield
    finally:
        _around.reset(token)


def as_line(message: str) -> str:
    """An error as this process would log it, for what is printed to stderr without a logger."""
    record = logging.LogRecord("pipeline", logging.ERROR, "", 0, message, None, None)
    return _formatter().format(record)


def json_line(record: Mapping[str, object]) -> str:
    """A record on one line: text as it is, but characters that do something on a terminal as JSON's escapes."""
    line = json.dumps(record, ensure_ascii=False, default=str)
    return "".join(one if one.isprintable() else json.dumps(one)[1:-1] for one in line)


def shown(text: str) -> str:
    """Text for a terminal: characters that would do something there appear as their escapes, and lines after the first
    are indented, so that a file or a document called ``a\\nb`` cannot write a line of its own."""
    letters = (one if one.isprintable() or one == "\n" else one.encode("unicode_escape").decode() for one in text)
    return "".join(letters).replace("\n", "\n  ")


class PlainLines(logging.Formatter):
    """The message alone, and what is bound around it."""

    def format(self, record: logging.LogRecord) -> str:
        """As ``logging.Formatter``."""
        return shown(super().format(record))

    def formatMessage(self, record: logging.LogRecord) -> str:
        """As ``logging.Formatter``."""
        around = ", ".join(f"{name} {value}" for name, value in _around.get().items())
        return f"{record.message} [{around}]" if around else record.message


class JsonLines(logging.Formatter):
    """One JSON object, on one line whatever the message holds."""

    def format(self, record: logging.LogRecord) -> str:
        """As ``logging.Formatter``."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        around = _around.get()
        for field in FIELDS:
            value = getattr(record, field, around.get(field, _process.get(field)))
            if value is not None:
                line[field] = value
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json_line(line)


def _formatter() -> logging.Formatter:
    return JsonLines() if wants_json() else PlainLines()


def _log_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """The end of a process by an error that is nobody's fault but ours."""
    logging.getLogger("pipeline").critical("%s", error, exc_info=(kind, error, trace))
