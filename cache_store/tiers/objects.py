"""The tier in object storage (S3, GCS, Azure): shared by every process that has the credentials, on any machine.

Invariants: besides those of a booked tier, an object store that does not answer costs one timeout, then nothing until
it is asked again (``CoolOff``): a get is a miss and a put is refused, and a run goes on. What such a put would have
replaced may stay: it is the same, for a key decides its bytes.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from cache_store.errors import UnusableTier
from cache_store.tiers.booked import BookedTier
from cache_store.tiers.bucket import SCHEMES, Bucket, without_secrets
from cache_store.tiers.cooloff import CoolOff
from configs.schema import ObjectsTier as ObjectsConfig


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
        try:
            super().__init__(name, max_bytes, Bucket(url, timeout_s, CoolOff(clock)))
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
