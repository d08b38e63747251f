"""A writer may die at any moment: the former entry stays whole, and nothing half-written is ever readable."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cache_store.tiers.base import TierCounters
from cache_store.tiers.directory import STALE_STAGED_S
from cache_store.tiers.files import FilesTier
from tests.cache_store.blocks import same
from tests.cache_store.dying_writers import FORMER, WRITERS


@pytest.fixture(scope="module")
def aftermath(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, int]]:
    """Where the writers died, and how."""
    root = tmp_path_factory.mktemp("dying-writers")
    done = subprocess.run(
        [sys.executable, "-m", "tests.cache_store.dying_writers", root],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return root, json.loads(done.stdout)


@pytest.mark.parametrize("name", WRITERS)
def test_a_writer_that_dies_leaves_the_former_entry(aftermath: tuple[Path, dict[str, int]], name: str) -> None:
    root, endings = aftermath
    assert endings[name] == WRITERS[name][1]
    leftovers = list((root / name / "staging").iterdir())
    assert len(leftovers) == (0 if name == "refused" else 1)
    tier = FilesTier(root / name, 2**20)
    assert same(tier.get(FORMER.key), FORMER)
    assert list(tier.keys()) == [FORMER.key] and tier.counters == TierCounters()
    for leftover in leftovers:
        past_s = leftover.stat().st_mtime - STALE_STAGED_S - 1
        os.utime(leftover, (past_s, past_s))
    FilesTier(root / name, 2**20)
    assert list((root / name / "staging").iterdir()) == []
