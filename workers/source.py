"""From ``model.source`` to a directory of safetensors, and a fingerprint of what is in it.

Invariants: a GGUF file is converted once and cached under its own hash; what is found under a name in the
cache is complete (it is written aside, then named); a fingerprint is a digest of content, the same on
every machine.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from blake3 import blake3

from workers.errors import ModelError
from workers.hf import convert_gguf

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ModelSource:
    """A model on disk: its directory, the digests of its weights and of its tokenizer (hex)."""

    directory: Path
    weights: str
    tokenizer: str


def cache_directory() -> Path:
    """Where converted models and calibrated profiles are kept: ``$FOVEATE_CACHE`` or ``~/.cache/foveate``."""
    return Path(os.environ.get("FOVEATE_CACHE") or Path.home() / ".cache" / "foveate")


def locate(source: str) -> ModelSource:
    """Find, and where needed convert or download, the model that ``model.source`` names. Raises ``ModelError``."""
    path = _package_file(source) if source.startswith("package:") else Path(source).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ModelError(f"model.source: {source}: no such file")
        weights = _digest([path])
        return ModelSource(_converted(path, weights), weights, weights)
    directory = path if path.is_dir() else _downloaded(source)
    shards = sorted(directory.glob("*.safetensors")) or sorted(directory.glob("*.bin"))
    if not shards or not (directory / "config.json").is_file():
        raise ModelError(f"model.source: {directory}: is no model: it needs config.json and *.safetensors weights")
    words = [file for file in sorted(directory.glob("*token*")) if file.is_file()]
    return ModelSource(directory, _digest([directory / "config.json", *shards]), _digest(words))


def _package_file(source: str) -> Path:
    """``package:NAME/FILE``: a file inside an installed package, found without importing the package."""
    name, _, file = source.removeprefix("package:").partition("/")
    try:
        spec = importlib.util.find_spec(name) if name.isidentifier() else None
    except (ImportError, ValueError):
        spec = None
    if spec is None or not spec.submodule_search_locations or not file:
        raise ModelError(f"model.source: {source}: no installed package {name!r}; expected package:NAME/FILE")
    return Path(next(iter(spec.submodule_search_locations))) / file


def _converted(gguf: Path, digest: str) -> Path:
    """The safetensors form of a GGUF file: cached, or converted now into the cache."""
    target = cache_directory() / "models" / f"{gguf.stem}-{digest[:16]}"
    if not target.is_dir():
        _log.info("converting %s once into %s", gguf.name, target)
        target.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=".converting-", dir=target.parent))
        try:
            convert_gguf(gguf, staging)
            staging.rename(target)
        except OSError:
            if not target.is_dir():  # otherwise another process was first, with the same bytes
                raise
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    return target


def _downloaded(source: str) -> Path:
    """A hub id, through the hub's own cache. Names that look like paths are not looked up."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    known = "a directory, a .gguf file, package:NAME/FILE.gguf, or a hub id such as HuggingFaceTB/SmolLM2-135M-Instruct"
    try:
        return Path(snapshot_download(source, allow_patterns=["*.json", "*.safetensors", "*.model", "*.jinja"]))
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise ModelError(f"model.source: {source}: unknown model; allowed: {known}") from error
    except (HfHubHTTPError, LocalEntryNotFoundError) as error:
        why = f"unknown model, or the hub cannot be reached: {str(error).strip().splitlines()[0]}"
        raise ModelError(f"model.source: {source}: {why}; allowed: {known}") from error


def _digest(files: list[Path]) -> str:
    """blake3 over names and contents, read by memory map."""
    hasher = blake3(max_threads=blake3.AUTO)
    for file in files:
        hasher.update(file.name.encode() + b"\0" + file.stat().st_size.to_bytes(8, "little"))
        hasher.update_mmap(file)
    return hasher.hexdigest()
