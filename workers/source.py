"""From ``model.source`` to a directory of safetensors, and a fingerprint of what is in it.

Invariants: a GGUF file, whole or in parts, is converted once and cached under its own hash; what is found under a
name in the cache is complete (it is written aside, then named); a fingerprint is a digest of content, the same on
every machine.
"""

from __future__ import annotations

import glob
import importlib.util
import logging
import os
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from blake3 import blake3

from workers.errors import ModelError
from workers.hf import convert_gguf

_log = logging.getLogger(__name__)

_PART = re.compile(r"\.part(\d+)$")


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
    pieces = _package_files(source) if source.startswith("package:") else [Path(source).expanduser()]
    name = _PART.sub("", pieces[0].name)
    if name.endswith(".gguf"):
        if not pieces[0].is_file():
            raise ModelError(f"model.source: {source}: no such file")
        weights = _digest(pieces)
        return ModelSource(_converted(name, pieces, weights), weights, weights)
    directory = pieces[0] if pieces[0].is_dir() else _downloaded(source)
    shards = sorted(directory.glob("*.safetensors"))
    if not shards or not (directory / "config.json").is_file():
        raise ModelError(f"model.source: {directory}: is no model: it needs config.json and *.safetensors weights")
    words = [file for file in sorted(directory.glob("*token*")) if file.is_file()]
    return ModelSource(directory, _digest([directory / "config.json", *shards]), _digest(words))


def _package_files(source: str) -> list[Path]:
    """``package:NAME/FILE``: a file inside an installed package, found without importing the package. Or its parts in
    order, where it was cut to fit: FILE.part00, FILE.part01, ... at FILE's place in NAME and the packages NAME_*."""
    name, _, file = source.removeprefix("package:").partition("/")
    try:
        spec = importlib.util.find_spec(name) if name.isidentifier() else None
    except (ImportError, ValueError):
        spec = None
    if spec is None or not spec.submodule_search_locations or not file:
        raise ModelError(f"model.source: {source}: no installed package {name!r}; expected package:NAME/FILE")
    package = Path(next(iter(spec.submodule_search_locations)))
    if (package / file).exists():
        return [package / file]
    parts: dict[int, Path] = {}
    for folder in (package, *sorted(package.parent.glob(f"{name}_*"))):
        for path in (folder / file).parent.glob(f"{glob.escape(Path(file).name)}.part*"):
            if number := _PART.search(path.name):
                parts[int(number[1])] = path
    numbers = sorted(parts)
    if numbers and (numbers[0] > 1 or numbers != [*range(numbers[0], numbers[-1] + 1)]):
        raise ModelError(f"model.source: {source}: only its parts {numbers} are installed; want all, from 0 or 1")
    return [parts[number] for number in numbers] or [package / file]


def _converted(name: str, pieces: list[Path], digest: str) -> Path:
    """The safetensors form of a GGUF file, which lies in one piece or in several: cached, or converted now into the
    cache."""
    target = cache_directory() / "models" / f"{name.removesuffix('.gguf')}-{digest[:16]}"
    if not target.is_dir():
        _log.info("converting %s once into %s", name, target)
        target.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=".converting-", dir=target.parent))
        try:
            if len(pieces) == 1 and pieces[0].name == name:
                convert_gguf(pieces[0], staging)
            else:
                convert_gguf(_joined(pieces, staging / name), staging)
                (staging / name).unlink()
            staging.rename(target)
        except OSError:
            if not target.is_dir():  # otherwise another process was first, with the same bytes
                raise
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    return target


def _joined(pieces: list[Path], whole: Path) -> Path:
    """The pieces one behind the other, as one file."""
    with whole.open("wb") as out:
        for piece in pieces:
            with piece.open("rb") as part:
                shutil.copyfileobj(part, out)
    return whole


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
