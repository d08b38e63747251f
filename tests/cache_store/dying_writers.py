"""Run as a program: writers that really die, or whose disk really refuses, each in a process of its own.

``python -m tests.cache_store.dying_writers DIRECTORY`` gives every writer a tier of its own in
``DIRECTORY/<name>`` that already holds the former block, lets it overwrite that block, and prints a JSON object
of how each ended (as ``os.waitstatus_to_exitcode``: minus the signal's number).
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from cache_store.codec import encode
from cache_store.tiers.base import TierCounters
from cache_store.tiers.files import FilesTier
from tests.cache_store.blocks import make_block, same

FORMER = make_block(0, version=1)
LATTER = make_block(0, version=2, tokens=400)
LATTER_BYTES = len(encode(LATTER))


def killed_at(event: str) -> Callable[[Path], None]:
    """A writer that is killed when Python is about to make the system call that audits as ``event``."""

    def write(root: Path) -> None:
        tier = FilesTier(root, 2**20)
        sys.addaudithook(lambda name, _: os.kill(os.getpid(), signal.SIGKILL) if name == event else None)
        tier.put(LATTER)

    return write


def killed_after_bytes(num_bytes: int) -> Callable[[Path], None]:
    """A writer that the kernel kills in the middle of its write."""

    def write(root: Path) -> None:
        tier = FilesTier(root, 2**20)
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, num_bytes))
        tier.put(LATTER)

    return write


def refused_after_bytes(root: Path) -> None:
    """A writer whose writes fail beyond a size, as on a full disk."""
    tier = FilesTier(root, 2**20)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LATTER_BYTES // 2, LATTER_BYTES // 2))
    assert tier.put(LATTER) == (LATTER,)
    assert tier.counters == TierCounters(write_errors=1)
    assert tier.get(LATTER.key) is None
    assert tier.put(FORMER) == ()
    assert same(tier.get(FORMER.key), FORMER)


WRITERS: Mapping[str, tuple[Callable[[Path], None], int]] = {
    "before its stamp": (killed_at("os.utime"), -signal.SIGKILL),
    "before its rename": (killed_at("os.rename"), -signal.SIGKILL),
    "after 1 byte": (killed_after_bytes(1), -signal.SIGXFSZ),
    "after half": (killed_after_bytes(LATTER_BYTES // 2), -signal.SIGXFSZ),
    "before the last byte": (killed_after_bytes(LATTER_BYTES - 1), -signal.SIGXFSZ),
    "refused": (refused_after_bytes, 0),
}


def run(writer: Callable[[Path], None], root: Path) -> int:
    """How the writer ended, in a process of its own."""
    FilesTier(root, 2**20).put(FORMER)
    child = os.fork()
    if child == 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        writer(root)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    print(json.dumps({name: run(writer, Path(sys.argv[1]) / name) for name, (writer, _) in WRITERS.items()}))
