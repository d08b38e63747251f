"""What this machine can do, for ``foveate doctor``: versions, devices, attention backends, what ``auto`` means.

Invariants: looks, and changes nothing; what is missing or unusable is a finding with its reason, not an error.
"""

from __future__ import annotations

import os
import platform
import shutil
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from configs.schema import Model
from pipeline.quantities import in_bytes
from workers.attention.base import available
from workers.errors import BackendUnavailable, ModelError
from workers.loading import resolve_runtime
from workers.source import cache_directory

_PACKAGES = ("torch", "transformers", "ray", "pyarrow", "obstore", "flash-attn")


@dataclass(frozen=True)
class Section:
    """Findings under one heading: (name, what was found)."""

    title: str
    findings: tuple[tuple[str, str], ...]


def examine() -> tuple[Section, ...]:
    """Look at everything a run depends on."""
    return (
        Section("versions", _versions()),
        Section("devices", _devices()),
        *(Section(f"attention on {device}", tuple(available(device).items())) for device in _torch_devices()),
        Section("auto", _auto()),
        Section("disk", _disk()),
    )


def _versions() -> tuple[tuple[str, str], ...]:
    return (
        ("foveate", _version("foveate", "not installed, runs from its sources")),
        ("python", platform.python_version()),
        *((name, _version(name)) for name in _PACKAGES),
    )


def _version(package: str, otherwise: str = "not installed") -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return otherwise


def _devices() -> tuple[tuple[str, str], ...]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    cpu = (
        f"{platform.machine()}, {cores} cores, {in_bytes(memory)} of memory, "
        f"{torch.backends.cpu.get_cpu_capability()}, {_cpu_bf16()}"
    )
    if not torch.cuda.is_available():
        built = torch.version.cuda
        return ("cpu", cpu), ("cuda", "no device found" if built else "this torch is built without CUDA")
    return ("cpu", cpu), *((f"cuda:{index}", _gpu(index)) for index in range(torch.cuda.device_count()))


def _cpu_bf16() -> str:
    """Whether the processor multiplies bfloat16; without it bfloat16 is emulated, and slower than float32."""
    flags = torch.cpu.get_capabilities()
    found = [name for name in ("amx_bf16", "avx512_bf16", "bf16", "sve_bf16") if flags.get(name)]
    return f"bfloat16 by {found[0]}" if found else "no bfloat16 instructions"


def _gpu(index: int) -> str:
    found = torch.cuda.get_device_properties(index)
    return f"{found.name}, {in_bytes(found.total_memory)}, compute capability {found.major}.{found.minor}"


def _torch_devices() -> list[torch.device]:
    return [torch.device(name) for name in ("cuda", "cpu") if name == "cpu" or torch.cuda.is_available()]


def _auto() -> tuple[tuple[str, str], ...]:
    try:
        runtime = resolve_runtime(Model(source="any"))
    except (ModelError, BackendUnavailable) as error:
        return (("unresolved", str(error)),)
    return (
        ("model.device", runtime.device),
        ("model.dtype", runtime.dtype),
        ("model.attention", runtime.attention),
    )


def _disk() -> tuple[tuple[str, str], ...]:
    cache = cache_directory()
    files = [path for path in cache.rglob("*") if path.is_file() and not path.is_symlink()]
    held = sum(path.stat().st_size for path in files)
    return (
        ("cache", f"{cache}: {in_bytes(held) if cache.is_dir() else 'not made yet'}, {_free(cache)}"),
        ("here", f"{Path.cwd()}: {_free(Path.cwd())}"),
    )


def _free(path: Path) -> str:
    """Free space where ``path`` is, or would be."""
    place = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
    return f"{in_bytes(shutil.disk_usage(place).free)} free"
