"""Joining a Ray cluster or starting one, and what a driver asks of it.

Invariant: a Ray that was running before stays; one that was started here is stopped by whoever was told so.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from typing import Any

import ray

from configs.schema import RayWorkers
from pipeline.errors import JobError
from workers import logs

_KNOCK_S = 10.0

_log = logging.getLogger(__name__)


def connect(settings: RayWorkers) -> bool:
    """Join the cluster that ``pool.address`` means, or for ``auto`` without one, and for ``local``, start one on
    this machine. Whether this process must disconnect (and stop what it started) at the end."""
    if ray.is_initialized():
        return False
    if settings.address not in ("auto", "local"):
        _refuse_silence(settings.address)
    with _sigterm_kept():
        return _join_or_start(settings)


def _join_or_start(settings: RayWorkers) -> bool:
    if settings.address != "local":
        try:
            ray.init(address=settings.address, **_quietly())
            return True
        except (ConnectionError, ValueError) as error:
            named = os.environ.get("RAY_ADDRESS")
            if settings.address != "auto" or named:
                where = f"auto, and RAY_ADDRESS={named}" if settings.address == "auto" else settings.address
                raise JobError(f"pool.address: {where}: no Ray cluster there: {error}") from error
    num_cpus = math.ceil(settings.workers * settings.num_cpus)
    ray.init(address="local", num_cpus=num_cpus, include_dashboard=False, **_quietly())
    if not ip_address(ray.util.get_node_ip_address()).is_loopback:  # type: ignore[no-untyped-call]
        _log.warning(
            "the Ray of this run listens on every interface of this machine, since Ray was imported before the run; "
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0 in the environment keeps it to itself"
        )
    if settings.num_gpus > free_resources().get("GPU", 0):
        ray.shutdown()
        raise JobError(
            f"pool.num_gpus: {settings.num_gpus}: this machine has no such GPU and no cluster was found; allowed: 0, "
            "or the pool.address of a cluster that has"
        )
    return True


def _quietly() -> dict[str, Any]:
    """Ray itself only warns. What engines say is shown to people, who read it as it comes. For machines it stays in
    the files of each node: here Ray would put a prefix before each line, which then is no JSON."""
    if not sys.stderr.isatty():
        os.environ.setdefault("RAY_COLOR_PREFIX", "0")
    return {"logging_level": logging.WARNING, "log_to_driver": not logs.wants_json()}


@contextmanager
def _sigterm_kept() -> Iterator[None]:
    """Ray puts handlers of its own in the place of the process's, which end it without a farewell."""
    handler = signal.getsignal(signal.SIGTERM)
    yield
    if callable(handler) and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)


def _refuse_silence(address: str) -> None:
    """Knock before Ray does, which waits for minutes where nobody listens."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        raise JobError(f"pool.address: {address}; allowed: auto, local, HOST:PORT or ray://HOST:PORT")
    try:
        socket.create_connection((host, int(port)), timeout=_KNOCK_S).close()
    except OSError as error:
        raise JobError(f"pool.address: {address}: no Ray cluster there: {error}") from error


def free_resources() -> dict[str, float]:
    """What of the cluster nobody has reserved: ``CPU``, ``GPU``, ``memory`` (bytes), ..."""
    resources: dict[str, float] = ray.available_resources()  # type: ignore[no-untyped-call]
    return resources


def draining_nodes() -> frozenset[str]:
    """Ids of the nodes that will go soon: told to end, or chosen by an autoscaler. Ray has no public call for this;
    its own libraries use the same one."""
    from ray._private.state import state

    return frozenset(state.get_draining_nodes())
