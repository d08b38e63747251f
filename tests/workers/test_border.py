"""Whose an error is, with the errors that torch itself raises."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from workers.border import attempt
from workers.errors import DocumentError
from workers.messages import Answered, Ask, Encode, Encoded, WorkError


class Failing:
    """An engine whose every task does this instead."""

    def __init__(self, action: Callable[[], object]) -> None:
        self._action = action

    def work(self, task: Encode | Ask) -> Encoded | Answered:
        self._action()
        return Encoded((), (), 0.0, 0) if isinstance(task, Encode) else Answered(())

    def free(self, names: object) -> None:
        raise AssertionError

    def close(self) -> None:
        raise AssertionError


def refuse() -> None:
    raise DocumentError("no words")


def out_of_device_memory() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory")


@pytest.mark.parametrize("task", [Encode("d", (), (), 1), Ask(())], ids=["encode", "answer"])
@pytest.mark.parametrize(
    ("action", "kind", "error"),
    [
        (refuse, "data", "DocumentError"),
        (out_of_device_memory, "resource", "OutOfMemoryError"),
        (lambda: bytearray(2**62), "resource", "OutOfMemoryError"),
        (lambda: torch.empty(2**50), "resource", "OutOfMemoryError"),
        (lambda: torch.ones(2) @ torch.ones(3), "infrastructure", "RuntimeError"),
        (lambda: [][0], "infrastructure", "IndexError"),
    ],
    ids=["data", "device memory", "memory", "torch's host memory", "shapes", "bug"],
)
def test_an_error_is_a_value_that_says_whose_it_is(
    task: Encode | Ask, action: Callable[[], object], kind: str, error: str
) -> None:
    found = attempt(Failing(action), task)
    assert isinstance(found, WorkError)
    assert (found.kind, found.error) == (kind, error)


def stop() -> None:
    raise KeyboardInterrupt


def test_a_wish_to_end_the_process_is_not_an_error_of_the_work() -> None:
    with pytest.raises(KeyboardInterrupt):
        attempt(Failing(stop), Ask(()))


def test_a_result_passes_the_border_as_it_is() -> None:
    assert attempt(Failing(lambda: None), Ask(())) == Answered(())
