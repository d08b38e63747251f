"""What this package raises.

    StoreError
      UnusableTier         a tier that the job asked for cannot be opened: the job cannot run
      NoSuchStore          a place that was named to be looked into, and is no store
      UnreadableBlock      bytes that are not the block that was asked for; a tier makes it a miss
        CorruptBlock         damaged, truncated, foreign, or another key's
        OtherVersion         intact, but written by another version of the format

Once a store is open, none of these leaves it: every fault is a miss and a counter.
"""

from __future__ import annotations


class StoreError(Exception):
    """Root of what this package raises."""


class UnusableTier(StoreError):
    """A tier that was asked for cannot be opened; the message names its key, its value and the reason."""


class NoSuchStore(StoreError):
    """The place that was named holds no store, or may not be looked into."""


class UnreadableBlock(StoreError):
    """Bytes that cannot be given back as the block that was asked for."""


class CorruptBlock(UnreadableBlock):
    """Bytes that are damaged, cut short, foreign, or that hold another key's block."""


class OtherVersion(UnreadableBlock):
    """An intact block of another format ``version`` than this program ``reads``: not ours to throw away."""

    def __init__(self, version: int, reads: int) -> None:
        super().__init__(version, reads)
        self.version = version
        self.reads = reads

    def __str__(self) -> str:
        return f"block of format version {self.version}; this one reads {self.reads}"
