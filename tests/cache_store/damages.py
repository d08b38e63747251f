"""What can become of an entry's bytes, whatever medium they lie in: every one must be found."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from cache_store.codec import encode
from tests.cache_store.blocks import make_block


def flip(content: bytes) -> bytes:
    """With one bit of the last byte changed."""
    return content[:-1] + bytes([content[-1] ^ 1])


DAMAGES: Mapping[str, Callable[[bytes], bytes]] = {
    "emptied": lambda content: b"",
    "truncated": lambda content: content[: len(content) // 2],
    "extended": lambda content: content + b"x",
    "flipped": flip,
    "foreign": lambda content: b"something else entirely",
    "another key's": lambda content: encode(make_block(1)),
}
