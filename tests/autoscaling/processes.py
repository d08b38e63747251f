"""Ray's commands as processes of a test.

Invariant: of what was started here nothing lives on after its scope, also what Ray started in turn, and what lost its
parent: a command is the first of a session of its own, and the whole session is ended, process by process.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
LIMIT_S = 120.0
"""How long anything here is waited for: far longer than it takes on two busy cores."""
_RAY = (sys.executable, "-m", "ray.scripts.scripts")


def environment(changes: Mapping[str, str]) -> dict[str, str]:
    """Of every process: no cluster but ours is found, and what is meant for this machine stays on it."""
    inherited = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    return inherited | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",  # Ray's autoscaler calls `ray`
        "NO_PROXY": "127.0.0.1",
        "OMP_NUM_THREADS": "1",
        "RAY_AUTH_MODE": "disabled",
        **changes,
    }


def start(command: Sequence[str], log: Path, changes: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start ``command`` in a session of its own, which writes to the end of ``log``."""
    with log.open("ab") as output:
        return subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment(changes),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def start_ray(
    subcommand: str, options: Mapping[str, object], log: Path, changes: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    """Start `ray subcommand` with options; one whose value is None stands alone."""
    words = [f"--{name}" if value is None else f"--{name}={value}" for name, value in options.items()]
    return start([*_RAY, subcommand, *words], log, changes)


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill a command's whole session."""
    process.kill()
    deadline_s = time.monotonic() + LIMIT_S
    while living := _session(process.pid):
        for process_id in living:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process_id, signal.SIGKILL)
        assert time.monotonic() < deadline_s, f"processes that cannot be killed: {living}"
        time.sleep(0.05)
    process.wait(timeout=LIMIT_S)


def wait_until(reached: Callable[[], bool], otherwise: Callable[[], str]) -> None:
    """Wait for something to become true; fails with what ``otherwise`` says."""
    deadline_s = time.monotonic() + LIMIT_S
    while not reached():
        if time.monotonic() > deadline_s:
            raise AssertionError(otherwise())
        time.sleep(0.1)


def wait_for_head(address: str, head: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until the head at ``address`` can be asked."""
    host, _, port = address.rpartition(":")

    def answers() -> bool:
        assert head.poll() is None, log.read_text()
        with contextlib.suppress(OSError), socket.create_connection((host, int(port))):
            return True
        return False

    wait_until(answers, log.read_text)


def _session(leader: int) -> list[int]:
    """Its processes that live (zombies do not), as Linux tells."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            state, _, _, session = path.read_text().rpartition(")")[2].split()[:4]
            if state != "Z" and int(session) == leader:
                found.append(int(path.parent.name))
    return found
