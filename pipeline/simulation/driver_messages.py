"""What messages cost a driver: a Ray of its own on this machine, one actor that does nothing with what it gets."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from workers.messages import Encode, Encoded

_IN_FLIGHT = 8


class Idler:
    """Answers everything with the same result, or sleeps."""

    def __init__(self, result: Encoded) -> None:
        self._result = result

    def attempt(self, task: Encode | None) -> Encoded | None:
        """The result, for a task."""
        return None if task is None else self._result

    def sleep(self) -> None:
        """Hold up everything that comes after."""
        time.sleep(3600)


@contextmanager
def idler(result: Encoded) -> Iterator[Any]:
    """An ``Idler`` as an actor."""
    import ray

    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level=logging.WARNING)
    try:
        actor_class: Any = ray.remote(num_cpus=1)(Idler)
        actor = actor_class.remote(result)
        ray.get(actor.attempt.remote(None))
        yield actor
    finally:
        ray.shutdown()


def message_ms(actor: Any, task: Encode | None, number: int) -> tuple[list[float], list[float], float]:
    """Milliseconds of handing a task to ``actor`` (its pickling included), of taking a result that is there (its
    unpickling included), and of CPU in the driver's process, Ray's threads included, for a task there and back."""
    import ray

    out_ms, back_ms = [], []
    waiting: list[Any] = []
    began_s = time.process_time()
    for _ in range(number):
        started_s = time.perf_counter()
        waiting.append(actor.attempt.remote(task))
        out_ms.append((time.perf_counter() - started_s) * 1000)
        if len(waiting) == _IN_FLIGHT:
            ray.wait(waiting, num_returns=len(waiting))
            for ref in waiting:
                started_s = time.perf_counter()
                ray.get(ref)
                back_ms.append((time.perf_counter() - started_s) * 1000)
            waiting.clear()
    return out_ms, back_ms, (time.process_time() - began_s) * 1000 / number


def looking_us(actor: Any, tasks: Sequence[int], rounds: int) -> dict[int, list[float]]:
    """Microseconds of a look for results for each task, by how many tasks are in workers' hands; none comes back, and
    ``actor`` is of no use any more."""
    import ray

    asleep = actor.sleep.remote()
    refs = [asleep]
    found: dict[int, list[float]] = {}
    for number in tasks:
        refs += [actor.attempt.remote(None) for _ in range(number - len(refs))]
        found[number] = []
        for _ in range(rounds):
            started_s = time.perf_counter()
            done, _ = ray.wait(list(refs), timeout=0)
            found[number].append((time.perf_counter() - started_s) * 1e6 / number)
            assert not done
    return found
