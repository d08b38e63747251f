"""Ray is started where a test asks for its tier, and stopped with that test's module."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cache_store.clusters import leave_shared_cluster


@pytest.fixture(scope="module", autouse=True)
def _no_cluster_stays() -> Iterator[None]:
    yield
    leave_shared_cluster()
