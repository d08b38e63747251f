"""What a store's files are called, below its root and with slashes: the one place that names them and knows the names.

    in a directory                         in object storage
    ab/cd/<64 hex digits>.safetensors      ab/<64 hex digits>.safetensors      an entry, whole
    staging/<32 hex digits>.tmp            probe/<32 hex digits>               in a writer's hand, or left when it died
    quarantine/<64>.<32 hex digits>        the same                            damaged or foreign, kept for a look

Folders keep a directory's listings short. Object stores have none and split their key space by themselves, evenly here
because the names are digests; one level keeps a console readable. Invariant: a name of no sort is a stranger's, and
nobody here counts, moves or removes it.
"""

from __future__ import annotations

import re
import uuid
from dataclasses import dataclass
from enum import Enum, auto

from cache_store.identity import BlockKey

QUARANTINE = "quarantine"

_SUFFIX = ".safetensors"
_ENTRY = re.compile(r"(?:[0-9a-f]{2}/){0,2}([0-9a-f]{64})\.safetensors")
_QUARANTINED = re.compile(r"quarantine/[0-9a-f]{64}\.[0-9a-f]{32}")


class Sort(Enum):
    """What a file is by its name. ``MISPLACED``: an entry's name where no tier looks for it."""

    ENTRY = auto()
    MISPLACED = auto()
    QUARANTINED = auto()
    STAGED = auto()


@dataclass(frozen=True)
class Layout:
    """The names of one medium. ``depth``: how many folders an entry lies in. ``staging``: where writers begin."""

    depth: int
    staging: str
    staged_suffix: str

    def entry(self, key: BlockKey) -> str:
        """Where the entry of this key belongs."""
        return self._home(key.hex)

    def new_staged(self) -> str:
        """A name for what is being written, that no other writer has."""
        return f"{self.staging}/{uuid.uuid4().hex}{self.staged_suffix}"

    def new_quarantined(self, key: BlockKey) -> str:
        """A name for an entry of this key that is set aside, that no other file has."""
        return f"{QUARANTINE}/{key.hex}.{uuid.uuid4().hex}"

    def sort_of(self, name: str) -> Sort | None:
        """What a file of this name is; None for a stranger."""
        if _ENTRY.fullmatch(name):
            return Sort.MISPLACED if self.key_at(name) is None else Sort.ENTRY
        if _QUARANTINED.fullmatch(name):
            return Sort.QUARANTINED
        staged = rf"{self.staging}/[0-9a-f]{{32}}{re.escape(self.staged_suffix)}"
        return Sort.STAGED if re.fullmatch(staged, name) else None

    def key_at(self, name: str) -> BlockKey | None:
        """Whose entry this is; None where it is none, or where no tier looks for it."""
        match = _ENTRY.fullmatch(name)
        return None if match is None or self._home(match[1]) != name else BlockKey(bytes.fromhex(match[1]))

    def _home(self, digits: str) -> str:
        folders = [digits[level : level + 2] for level in range(0, 2 * self.depth, 2)]
        return "/".join([*folders, digits + _SUFFIX])


def key_in(name: str) -> BlockKey | None:
    """Whose entry a name says that this is, wherever it lies; None where it says nothing of the kind."""
    match = _ENTRY.fullmatch(name)
    return None if match is None else BlockKey(bytes.fromhex(match[1]))


IN_DIRECTORY = Layout(depth=2, staging="staging", staged_suffix=".tmp")
IN_BUCKET = Layout(depth=1, staging="probe", staged_suffix="")
