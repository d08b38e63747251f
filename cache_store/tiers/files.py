"""The tier in a directory: shared by every process that sees it, and still there after a crash."""

from __future__ import annotations

from pathlib import Path

from cache_store.errors import UnusableTier
from cache_store.tiers.booked import BookedTier
from cache_store.tiers.directory import EntryDirectory
from configs.schema import FilesTier as FilesConfig


class FilesTier(BookedTier):
    """Blocks as safetensors files below ``path``, ``max_bytes`` of file contents at most.

    Raises UnusableTier where the directory cannot be made, read or written.
    """

    def __init__(self, path: Path, max_bytes: int, name: str = "files") -> None:
        try:
            super().__init__(name, max_bytes, EntryDirectory(path))
        except OSError as error:
            raise UnusableTier(
                f"path: {str(path)!r} cannot be used as a cache directory: {error}; "
                "allowed: a directory that this process may create, read and write"
            ) from error

    @classmethod
    def from_config(cls, config: FilesConfig, name: str) -> FilesTier:
        """The tier that a job's ``{kind: files}`` asks for."""
        return cls(Path(config.path).expanduser(), int(config.max_bytes), name)
