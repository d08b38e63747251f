"""In which order messages are read: longest document first, within a part.

A long document that is begun last keeps one engine busy while all others wait (list scheduling by longest processing
time: Graham 1969, "Bounds on Multiprocessing Timing Anomalies"). Parts are not mixed: a short document that waited for
every longer one of the corpus would keep its part open, and with it all that the part holds in memory.

Invariants: what was begun goes on first; then parts in the order in which they were begun, in each the longest of the
documents that wait, of equals the earlier; a document's messages come out in order; dropping a document costs no more
than what is begun.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Hashable, Sequence
from typing import Generic, Protocol, TypeVar


class OfDocument(Protocol):
    """A message that waits to be read."""

    @property
    def document(self) -> Hashable:
        """Whose it is."""


Message = TypeVar("Message", bound=OfDocument)


class ReadingOrder(Generic[Message]):
    """Messages that wait to be read."""

    def __init__(self) -> None:
        self._begun: deque[Message] = deque()
        self._fresh: dict[Hashable, deque[Message]] = {}
        self._ranks: list[tuple[int, int, int, Hashable]] = []
        """A heap over the fresh documents, and over some that were dropped since: part, minus length, arrival."""
        self._num_arrived = 0
        self._num_fresh = 0

    def __len__(self) -> int:
        return len(self._begun) + self._num_fresh

    def add(self, messages: Sequence[Message], part: int, num_tokens: int) -> None:
        """All messages of a document that nothing was read of. ``part``: the how manieth that was begun."""
        if messages:
            document = messages[0].document
            self._fresh[document] = deque(messages)
            self._num_fresh += len(messages)
            self._num_arrived += 1
            heapq.heappush(self._ranks, (part, -num_tokens, self._num_arrived, document))

    def put_first(self, messages: Sequence[Message]) -> None:
        """Messages of a document that was begun, in this order before all others."""
        self._begun.extendleft(reversed(messages))

    def drop(self, document: Hashable) -> None:
        """Forget all messages of a document."""
        self._num_fresh -= len(self._fresh.pop(document, ()))
        if any(message.document is document for message in self._begun):
            self._begun = deque(message for message in self._begun if message.document is not document)

    def take(self) -> Message | None:
        """The next one."""
        if self._begun:
            return self._begun.popleft()
        while self._ranks:
            document = self._ranks[0][-1]
            if messages := self._fresh.get(document):
                self._num_fresh -= 1
                return messages.popleft()
            self._fresh.pop(document, None)
            heapq.heappop(self._ranks)
        return None
