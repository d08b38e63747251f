"""The tier in a directory: shared by every process that sees it, and still there after a crash.

One process keeps its budget exactly. Several at once learn of each other's entries from the directory, which
each reads again after it wrote a sixteenth of the budget: with P writers the directory can be over for a
while by (P - 1) / 16 of the budget.

Invariants: besides those of every tier, opening reads names and sizes only; what does not decode is moved to
``quarantine/`` and is a miss; a reader never waits for a writer's disk.
"""

from __future__ import annotations

from pathlib import Path

from cache_store.block import KVBlock
from cache_store.codec import decode_file, encode
from cache_store.errors import CorruptBlock, OtherVersion, UnusableTier
from cache_store.identity import BlockKey
from cache_store.tiers.booked import BookedTier
from cache_store.tiers.directory import EntryDirectory
from configs.schema import FilesTier as FilesConfig

_RESCAN_FRACTION = 16


class FilesTier(BookedTier):
    """Blocks as safetensors files below ``path``, ``max_bytes`` of file contents at most.

    Raises UnusableTier where the directory cannot be made, read or written.
    """

    def __init__(self, path: Path, max_bytes: int, name: str = "files") -> None:
        super().__init__(name, max_bytes)
        self._directory = EntryDirectory(path)
        try:
            self._directory.open()
            self._rescan()
            for key in self._rule.over_budget():
                self._evict(key)
        except OSError as error:
            raise UnusableTier(
                f"path: {str(path)!r} cannot be used as a cache directory: {error}; "
                "allowed: a directory that this process may create, read and write"
            ) from error

    @classmethod
    def from_config(cls, config: FilesConfig, name: str) -> FilesTier:
        """The tier that a job's ``{kind: files}`` asks for."""
        return cls(Path(config.path).expanduser(), int(config.max_bytes), name)

    def get(self, key: BlockKey, layers: range | None = None) -> KVBlock | None:
        """The block last put under ``key`` by any process, mapped from its file; None where it is absent, unreadable
        or damaged. With ``layers``, the pairs of these layers."""
        try:
            block: KVBlock | None = decode_file(self._directory.path_of(key), key, layers)
        except FileNotFoundError:
            block = None
        except OSError:
            self._count("read_errors")
            return None
        except OtherVersion:
            self._count("other_version")
            return None
        except CorruptBlock:
            self._count("corrupt")
            self._set_aside(key)
            return None
        with self._books:
            was_known = key in self._rule
            self._rule.touch(key)
        if was_known != (block is not None):
            self._learn(key)
        if block is not None:
            self._directory.mark_used(key)
        return block

    def put(self, block: KVBlock) -> tuple[KVBlock, ...]:
        """Write the block durably; gives the block itself where it cannot fit or be written, else nothing."""
        content = encode(block) if block.num_bytes <= self.max_bytes else None
        with self._writing:
            if self._unscanned_bytes * _RESCAN_FRACTION >= self.max_bytes:
                self._try_rescan()
            victims = None if content is None else self._room_for(block.key, len(content))
            if content is None or victims is None:
                self._count("refused")
                self.discard(block.key)
                return (block,)
            try:
                for key in victims:
                    self._evict(key)
                self._directory.publish(block.key, content)
            except OSError:
                self._count("write_errors")
                self.discard(block.key)  # the former entry must not answer for the new one
                return (block,)
            with self._books:
                self._rule.add(block.key, len(content), block.cost)
            self._unscanned_bytes += len(content)
            return ()

    def discard(self, key: BlockKey) -> None:
        """Have no entry of this key, for any process."""
        with self._writing:
            try:
                self._remove(key)
            except OSError:
                self._count("write_errors")

    def __contains__(self, key: BlockKey) -> bool:
        try:
            return self._directory.stat(key) is not None
        except OSError:
            return False

    def _evict(self, key: BlockKey) -> None:
        """Remove the file, then its bytes from the books; raises OSError with both as they were."""
        self._directory.remove(key)
        with self._books:
            self._rule.evict(key)
        self._count("evictions")

    def _remove(self, key: BlockKey) -> None:
        """Remove the file, then its bytes from the books; raises OSError with both as they were."""
        self._directory.remove(key)
        with self._books:
            self._rule.remove(key)

    def _set_aside(self, key: BlockKey) -> None:
        """Move a damaged entry out of the way, so that it is read once only."""
        with self._writing:
            try:
                self._directory.quarantine(key)
            except OSError:
                self._count("write_errors")
                return
            with self._books:
                self._rule.remove(key)

    def _learn(self, key: BlockKey) -> None:
        """Make the books say of one key what the directory says: another process wrote or removed it."""
        with self._writing:
            try:
                entry = self._directory.stat(key)
            except OSError:
                self._count("read_errors")
                return
            with self._books:
                if entry is None:
                    self._rule.remove(key)
                elif key not in self._rule:
                    self._rule.add(key, entry.num_bytes, None)

    def _rescan(self) -> None:
        entries = self._directory.scan()
        with self._books:
            self._rule.replace_all((entry.key, entry.num_bytes, None) for entry in entries)
        self._unscanned_bytes = 0

    def _try_rescan(self) -> None:
        """Read the directory again; where that fails, the books stay as they are."""
        try:
            self._rescan()
        except OSError:
            self._count("read_errors")
