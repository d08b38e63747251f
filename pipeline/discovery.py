"""Which Parquet files a ``corpus.path`` names, and how one is opened.

Invariants: the order is a function of the names alone (sorted within each pattern, patterns as given) and
no file comes twice, whatever overlaps. In a directory, names that begin with ``.`` or ``_`` are left out
(``_temporary``, ``_job``): writers of Parquet hide unfinished things there. What a run of ours wrote is no
document, wherever its output directory lies; only naming such a file itself reads it.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

import obstore
import pyarrow as pa

from pipeline.errors import CorpusError
from pipeline.objects import ObjectReader, as_os_error, is_url, local_path, locate


def find_files(path: str | Sequence[str]) -> list[str]:
    """Every file that ``path`` names: a file, a directory (all ``*.parquet`` below it), a glob (``**`` goes
    deep) or a URL of either; or several of those. Raises ``CorpusError`` for a pattern that matches nothing.
    """
    found: dict[str, str] = {}
    for pattern in (path,) if isinstance(path, str) else path:
        names = _in_store(pattern) if is_url(pattern) else _on_disk(local_path(pattern))
        if not names:
            raise CorpusError(
                f"corpus.path: {pattern!r} matches no Parquet file; allowed: a file, a directory with "
                f"*.parquet below it, a glob, or an object-storage URL of these (relative to {Path.cwd()})"
            )
        for name in names:
            found.setdefault(name if is_url(name) else os.path.realpath(name), name)
    return list(found.values())


def open_file(path: str) -> pa.NativeFile:
    """A found file, for reading at any place. Raises ``OSError``."""
    if not is_url(path):
        return pa.OSFile(path, "rb")
    return pa.PythonFile(ObjectReader(*locate(path)), mode="r")


def _on_disk(path: Path) -> list[str]:
    if path.is_dir():
        inside = (found.relative_to(path) for found in path.rglob("*.parquet"))
        files = (path / name for name in inside if not _is_hidden(name.parts))
        return sorted(str(file) for file in files if file.is_file() and not _is_output(file))
    if path.exists():
        return [str(path)]
    names = glob.glob(str(path), recursive=True)  # noqa: PTH207 - Path.glob takes no absolute patterns
    return sorted(name for name in names if Path(name).is_file() and not _is_output(Path(name)))


def _is_output(file: Path) -> bool:
    """Whether a file lies where a run puts its answers and failures: ``RUN/data/file``, beside ``RUN/_job``."""
    return (file.parent.parent / "_job" / "job.json").is_file()


def _in_store(url: str) -> list[str]:
    try:
        store, key = locate(url)
        root = url.removesuffix("/").removesuffix(key)
        with as_os_error(url):
            return [root + name for name in _keys(store, key)]
    except (ValueError, OSError) as error:
        raise CorpusError(f"corpus.path: {url} cannot be listed: {error}") from error


def _keys(store: obstore.store.ObjectStore, key: str) -> list[str]:
    pattern = tuple(key.split("/"))
    if glob.has_magic(key):
        fixed = tuple(_leading(pattern))
        return sorted(name for name in _listed(store, fixed) if _matches(tuple(name.split("/")), pattern))
    try:
        obstore.head(store, key)
    except FileNotFoundError:
        depth = len(pattern) if key else 0
        names = (name for name in _listed(store, pattern) if name.endswith(".parquet"))
        return sorted(name for name in names if not _is_hidden(tuple(name.split("/"))[depth:]))
    return [key]


def _leading(pattern: tuple[str, ...]) -> Iterator[str]:
    for part in pattern:
        if glob.has_magic(part):
            return
        yield part


def _listed(store: obstore.store.ObjectStore, folder: tuple[str, ...]) -> Iterator[str]:
    names = [item["path"] for page in obstore.list(store, "/".join(folder) or None, chunk_size=1000) for item in page]
    runs = {name.removesuffix("_job/job.json") for name in names if name.endswith("_job/job.json")}
    return (name for name in names if "/".join([*name.split("/")[:-2], ""]) not in runs)


def _matches(parts: tuple[str, ...], pattern: tuple[str, ...]) -> bool:
    """As ``glob`` matches: ``*`` within a name, ``**`` over any folders, neither of them a leading dot."""
    if not pattern:
        return not parts
    if pattern[0] == "**":
        deeper = bool(parts) and not parts[0].startswith(".") and _matches(parts[1:], pattern)
        return deeper or _matches(parts, pattern[1:])
    if not parts or (parts[0].startswith(".") and not pattern[0].startswith(".")):
        return False
    return fnmatchcase(parts[0], pattern[0]) and _matches(parts[1:], pattern[1:])


def _is_hidden(parts: tuple[str, ...]) -> bool:
    return any(part.startswith((".", "_")) for part in parts)
