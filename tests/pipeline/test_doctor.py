"""The doctor: every finding is there, in words, and looking changes nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pipeline.doctor import examine
from workers.attention.base import available
from workers.loading import resolve_runtime


def findings() -> dict[str, dict[str, str]]:
    return {section.title: dict(section.findings) for section in examine()}


def test_versions_are_those_of_the_packages() -> None:
    versions = findings()["versions"]
    assert versions["torch"] == torch.__version__
    assert {"foveate", "python", "transformers", "ray", "pyarrow", "flash-attn"} <= set(versions)
    assert all(versions.values())


def test_every_backend_is_usable_or_has_a_reason() -> None:
    assert findings()["attention on cpu"] == available(torch.device("cpu"))


def test_auto_is_what_a_run_would_resolve() -> None:
    from configs.schema import Model

    runtime = resolve_runtime(Model(source="any"))
    assert list(findings()["auto"].values()) == [runtime.device, runtime.dtype, runtime.attention]


def test_the_cache_is_measured_and_not_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "below" / "cache"
    monkeypatch.setenv("FOVEATE_CACHE", str(cache))
    assert f"{cache}: not made yet" in findings()["disk"]["cache"]
    assert not cache.exists()
    (cache / "models").mkdir(parents=True)
    (cache / "models" / "weights").write_bytes(b"x" * 3072)
    assert "3.0 KiB" in findings()["disk"]["cache"]


def test_the_processor_is_described() -> None:
    cpu = findings()["devices"]["cpu"]
    assert "cores" in cpu and "bfloat16" in cpu and torch.backends.cpu.get_cpu_capability() in cpu
