"""Fixtures shared by all tests: the tiny model, and where the real one is."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from tests.pipeline.s3 import s3_bucket, s3_endpoint
from tests.tiny import save_tiny_model

__all__ = ["s3_bucket", "s3_endpoint", "tiny_model"]

# No test waits for a network, and none is judged by a clock: two shared cores can be slow.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["RAY_AUTH_MODE"] = "disabled"  # otherwise Ray writes a token into the home directory, and keeps to it
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
settings.register_profile("foveate", deadline=None)
settings.load_profile("foveate")


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Engines use one thread each; so do the tests, which share two cores."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _ray_folder() -> Iterator[None]:
    """Ray's folder where a test names none: the user's own, /tmp/ray, is never written to and need not be there.

    ``ray.cluster_utils.Cluster`` notes its address in it even if its nodes have another.
    """
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # socket paths must be short
    (Path(folder) / "ray").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TMPDIR", folder)
        yield
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of a tiny random Llama with a byte tokenizer (one token per byte), window 2,048."""
    return save_tiny_model(tmp_path_factory.mktemp("tiny-model"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What the costly kinds of tests took: the cluster tests are meant to stay under 15 minutes of two cores."""
    reports = [
        report
        for reports in terminalreporter.stats.values()
        for report in reports
        if isinstance(report, pytest.TestReport)
    ]
    for marker in ("cluster", "model"):
        seconds = [report.duration for report in reports if marker in report.keywords]
        if seconds:
            tests = len({report.nodeid for report in reports if marker in report.keywords})
            terminalreporter.write_line(f"{tests} tests marked {marker}: {sum(seconds) / 60:.1f} min")
