"""The tier in object storage (S3, GCS, Azure): shared by every process that has the credentials, on any machine.

One process keeps its budget exactly. Several at once learn of each other's entries from a listing, which each reads
again after it wrote a sixteenth of the budget. Object stores do not record uses: what is in the bucket when it is
opened counts as used when it was written, what others write later as used when it is first seen.

Invariants: besides those of every tier, opening reads names and sizes only; what does not decode is moved to
``quarantine/`` and is a miss; an object store that does not answer costs one timeout, then nothing until it is asked
again (``CoolOff``): a get is a miss and a put is refused, and a run goes on. What such a put would have replaced may
stay: it is the same, for a key decides its bytes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from cache_store.block import KVBlock
from cache_store.codec import decode, encode
from cache_store.errors import CorruptBlock, OtherVersion, UnusableTier
from cache_store.identity import BlockKey
from cache_store.tiers.booked import BookedTier
from cache_store.tiers.bucket import SCHEMES, Bucket, NoAnswer, Resting, without_secrets
from cache_store.tiers.cooloff import CoolOff
from configs.schema import ObjectsTier as ObjectsConfig

_RESCAN_FRACTION = 16


class ObjectsTier(BookedTier):
    """Blocks as safetensors objects below ``url``, ``max_bytes`` of them at most.

    ``timeout_s``: about the longest that one request takes, its transfer included. Raises UnusableTier for a URL that
    names no object store, a bucket that is not there or that refuses this process. One that does not answer is a
    fault like any later one.
    """

    def __init__(
        self,
        url: str,
        max_bytes: int,
        timeout_s: float = 10.0,
        name: str = "objects",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(name, max_bytes)
        try:
            self._bucket = Bucket(url, timeout_s, CoolOff(clock))
            self._open()
        except (OSError, ValueError) as error:
            reason = "there is no such bucket or container" if isinstance(error, FileNotFoundError) else error
            raise UnusableTier(
                f"url: {without_secrets(url)!r} cannot be used as a store: {reason}; allowed: a URL of an existing "
                f"bucket ({', '.join(SCHEMES)}) and a folder in it, where this process may list, read, write and "
                "delete; credentials come from the environment"
            ) from error

    @classmethod
    def from_config(cls, config: ObjectsConfig, name: str) -> ObjectsTier:
        """The tier that a job's ``{kind: objects}`` asks for."""
        return cls(config.url, int(config.max_bytes), config.timeout_seconds, name)

    def get(self, key: BlockKey, layers: range | None = None) -> KVBlock | None:
        """The whole block last put under ``key`` by any process, in one request, which costs less time than several
        for a few layers; None where it is absent, damaged or cannot be read now."""
        try:
            content = self._bucket.read(key)
            block = None if content is None else decode(content, key)
        except OSError as error:
            self._count_fault("read_errors", error)
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
        return block

    def put(self, block: KVBlock) -> tuple[KVBlock, ...]:
        """Write the block; gives the block itself where it cannot fit or be written, else nothing."""
        if self._bucket.is_resting:  # before the work of encoding, and before waiting for other writers
            self._count("skipped")
            return (block,)
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
                self._evict(victims)
                self._bucket.publish(block.key, content)
            except OSError as error:
                self._count_fault("write_errors", error)
                return (block,)
            with self._books:
                self._rule.add(block.key, len(content), block.cost)
            self._unscanned_bytes += len(content)
            return ()

    def discard(self, key: BlockKey) -> None:
        """Have no entry of this key, for any process."""
        with self._writing:
            try:
                self._remove([key])
            except OSError as error:
                self._count_fault("write_errors", error)

    def __contains__(self, key: BlockKey) -> bool:
        try:
            return self._bucket.size_of(key) is not None
        except OSError:
            return False

    def _open(self) -> None:
        """Prove the bucket, count what is in it and keep the budget; where it does not answer, count later."""
        try:
            self._bucket.open()
            self._rescan()
            self._evict(self._rule.over_budget())
        except NoAnswer:
            self._count("read_errors")
            self._unscanned_bytes = self.max_bytes

    def _count_fault(self, name: str, error: OSError) -> None:
        self._count("skipped" if isinstance(error, Resting) else name)

    def _evict(self, keys: Sequence[BlockKey]) -> None:
        """Remove the objects, then their bytes from the books; raises OSError with the books as they were."""
        self._bucket.remove(keys)
        with self._books:
            for key in keys:
                self._rule.evict(key)
        self._count("evictions", len(keys))

    def _remove(self, keys: Sequence[BlockKey]) -> None:
        """Remove the objects, then their bytes from the books; raises OSError with the books as they were."""
        self._bucket.remove(keys)
        with self._books:
            for key in keys:
                self._rule.remove(key)

    def _set_aside(self, key: BlockKey) -> None:
        """Move a damaged entry out of the way, so that it is read once only."""
        with self._writing:
            try:
                self._bucket.quarantine(key)
            except OSError as error:
                self._count_fault("write_errors", error)
                return
            with self._books:
                self._rule.remove(key)

    def _learn(self, key: BlockKey) -> None:
        """Make the books say of one key what the bucket says: another process wrote or removed it."""
        with self._writing:
            try:
                num_bytes = self._bucket.size_of(key)
            except OSError as error:
                self._count_fault("read_errors", error)
                return
            with self._books:
                if num_bytes is None:
                    self._rule.remove(key)
                elif key not in self._rule:
                    self._rule.add(key, num_bytes, None)

    def _rescan(self) -> None:
        listed = dict(self._bucket.scan())
        with self._books:
            known = {key: listed[key] for key in self._rule if key in listed}
            self._rule.replace_all(
                (key, num_bytes, None) for key, num_bytes in (known | listed).items()
            )  # what is known keeps its place, what is new comes last
        self._unscanned_bytes = 0

    def _try_rescan(self) -> None:
        """List the bucket again; where that fails, the books stay as they are."""
        try:
            self._rescan()
        except OSError as error:
            self._count_fault("read_errors", error)
