"""Fixtures shared by all tests: the tiny model, and where the real one is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.tiny import save_tiny_model


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Engines use one thread each; so do the tests, which share two cores."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of a tiny random Llama with a byte tokenizer (one token per byte), window 2,048."""
    return save_tiny_model(tmp_path_factory.mktemp("tiny-model"))
