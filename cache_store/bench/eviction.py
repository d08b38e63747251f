"""How many tokens each eviction rule saves: simulated requests against one tier that holds a share of all bytes.

A request asks for an entry; a miss reads its tokens again and puts it. The share saved is the cost of hits over the
cost of all requests. Four seeded traces resemble this store's: documents of 8,000 tokens (median, log-normal) in
chunks of 2,048, of which jobs keep 2, 4 or 8 KB per token.

    zipf      questions about documents by Zipf's law (exponent 0.9): all chunks of one, in order
    drifting  the same, but what is asked about most changes: one of the first tenth with every tenth question
    nightly   zipf, and the whole corpus once after every eighth of the requests
    mixed     zipf, and every chunk has two entries, asked for equally often: kept pairs and scores only

Invariants: traces depend on the number of requests and the seed only; every rule sees the same requests; nothing
saves more than the bound.
"""

from __future__ import annotations

import argparse
import heapq
import math
import random
from bisect import bisect
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import NamedTuple, Protocol

from cache_store.eviction import CostAware
from cache_store.identity import BlockKey

TRACES = ("zipf", "drifting", "nightly", "mixed")
SHARES = (0.01, 0.05, 0.2)

_CHUNK_TOKENS = 2048
_KEPT_BYTES_PER_TOKEN = (2000, 4000, 8000)
_REQUESTS_PER_DOCUMENT = 80


class Entry(NamedTuple):
    """What is asked for: its size, and the tokens to read when it is not there."""

    key: BlockKey
    num_bytes: int
    cost: float


class Rule(Protocol):
    """A cache of so many bytes, made by ``rule(max_bytes)``."""

    def request(self, entry: Entry) -> bool:
        """Whether the entry was there; if not, it is now, unless it is larger than the cache."""
        ...


class Lru:
    """Least recently used."""

    def __init__(self, max_bytes: int) -> None:
        self._free_bytes = max_bytes
        self._max_bytes = max_bytes
        self._sizes: OrderedDict[BlockKey, int] = OrderedDict()

    def request(self, entry: Entry) -> bool:
        """See ``Rule``."""
        if entry.key in self._sizes:
            self._use(entry.key)
            return True
        if entry.num_bytes <= self._max_bytes:
            while self._free_bytes < entry.num_bytes:
                self._free_bytes += self._sizes.popitem(last=False)[1]
            self._sizes[entry.key] = entry.num_bytes
            self._free_bytes -= entry.num_bytes
        return False

    def _use(self, key: BlockKey) -> None:
        self._sizes.move_to_end(key)


class Fifo(Lru):
    """First in, first out."""

    def _use(self, key: BlockKey) -> None:
        """Leave it where it is."""


class S3Fifo:
    """Yang, Zhang, Qiu, Yue, Rashmi (2023), "FIFO queues are all you need for cache eviction": a small queue of a
    tenth, a main queue, a ghost queue of as many keys as the main one; at most three uses count."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._small: OrderedDict[BlockKey, int] = OrderedDict()
        self._main: OrderedDict[BlockKey, int] = OrderedDict()
        self._ghosts: OrderedDict[BlockKey, None] = OrderedDict()
        self._small_bytes = self._main_bytes = 0
        self._uses: dict[BlockKey, int] = {}

    def request(self, entry: Entry) -> bool:
        """See ``Rule``."""
        key, num_bytes, _ = entry
        if key in self._uses:
            self._uses[key] = min(3, self._uses[key] + 1)
            return True
        if num_bytes <= self._max_bytes:
            while self._small_bytes + self._main_bytes + num_bytes > self._max_bytes:
                if self._small and (self._small_bytes >= self._max_bytes / 10 or not self._main):
                    self._leave_small()
                else:
                    self._leave_main()
            self._uses[key] = 0
            if key in self._ghosts:
                del self._ghosts[key]
                self._enter_main(key, num_bytes)
            else:
                self._small[key] = num_bytes
                self._small_bytes += num_bytes
        return False

    def _enter_main(self, key: BlockKey, num_bytes: int) -> None:
        self._main[key] = num_bytes
        self._main_bytes += num_bytes

    def _leave_small(self) -> None:
        key, num_bytes = self._small.popitem(last=False)
        self._small_bytes -= num_bytes
        if self._uses[key] > 1:
            self._uses[key] = 0
            self._enter_main(key, num_bytes)
            return
        del self._uses[key]
        self._ghosts[key] = None
        while len(self._ghosts) > max(1, len(self._main)):
            self._ghosts.popitem(last=False)

    def _leave_main(self) -> None:
        key, num_bytes = self._main.popitem(last=False)
        self._main_bytes -= num_bytes
        if self._uses[key] > 0:
            self._uses[key] -= 1
            self._enter_main(key, num_bytes)
        else:
            del self._uses[key]


class Gdsf:
    """GreedyDual-Size-Frequency without segments, see ``CostAware``."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._free_bytes = max_bytes
        self._clock = 0.0
        self._time = 0
        self._uses: Counter[BlockKey] = Counter()
        self._latest: dict[BlockKey, int] = {}
        self._heap: list[tuple[float, int, Entry]] = []

    def request(self, entry: Entry) -> bool:
        """See ``Rule``."""
        hit = entry.key in self._latest
        if entry.num_bytes > self._max_bytes:
            return False
        while not hit and self._free_bytes < entry.num_bytes:
            priority, time, least = heapq.heappop(self._heap)
            if self._latest.get(least.key) == time:
                del self._latest[least.key], self._uses[least.key]
                self._free_bytes += least.num_bytes
                self._clock = priority
        self._free_bytes -= 0 if hit else entry.num_bytes
        self._uses[entry.key] += 1
        self._time += 1
        self._latest[entry.key] = self._time
        priority = self._clock + self._uses[entry.key] * entry.cost / entry.num_bytes
        heapq.heappush(self._heap, (priority, self._time, entry))
        return hit


class ThisStore:
    """``CostAware``, asked as a tier asks it."""

    def __init__(self, max_bytes: int) -> None:
        self._rule = CostAware(max_bytes)

    def request(self, entry: Entry) -> bool:
        """See ``Rule``."""
        if entry.key in self._rule:
            self._rule.touch(entry.key)
            return True
        victims = self._rule.room_for(entry.key, entry.num_bytes)
        if victims is not None:
            for key in victims:
                self._rule.evict(key)
            self._rule.add(entry.key, entry.num_bytes, entry.cost)
        return False


RULES: Mapping[str, Callable[[int], Rule]] = {
    "FIFO": Fifo,
    "LRU": Lru,
    "S3-FIFO": S3Fifo,
    "GDSF": Gdsf,
    "this store": ThisStore,
}


def saved_by(rule: Rule, requests: Sequence[Entry]) -> float:
    """Share of the requests' cost that hits of a rule save."""
    return sum(entry.cost for entry in requests if rule.request(entry)) / sum(entry.cost for entry in requests)


def offline_bound(requests: Sequence[Entry], max_bytes: int) -> float:
    """Share of the requests' cost that no rule can exceed, even if it knows the future.

    A hit occupies the entry's bytes since its last request. All hits together occupy at most ``max_bytes`` at each
    request; here only their sum over the whole trace is bounded, and the last hit may count in part: PFOO-L of
    Berger, Beckmann, Harchol-Balter (2018), "Practical Bounds on Optimal Caching with Variable Object Sizes".
    """
    last: dict[BlockKey, int] = {}
    hits: list[tuple[float, float]] = []  # cost, bytes x requests that it takes
    for now, entry in enumerate(requests):
        if entry.key in last and entry.num_bytes <= max_bytes:
            hits.append((entry.cost, entry.num_bytes * (now - last[entry.key])))
        last[entry.key] = now
    room, saved = float(max_bytes * len(requests)), 0.0
    for cost, area in sorted(hits, key=lambda hit: hit[1] / hit[0]):
        taken = min(area, room)
        room -= taken
        saved += cost * taken / area
    return saved / sum(entry.cost for entry in requests)


def make_trace(name: str, num_requests: int, seed: int = 0) -> tuple[list[Entry], int]:
    """At least so many requests of one of ``TRACES``, and the bytes of all entries of its corpus."""
    chance = random.Random(seed)
    kinds = 2 if name == "mixed" else 1  # entries of a document: for each kind all of its chunks
    documents = _read_documents(chance, max(20, num_requests // _REQUESTS_PER_DOCUMENT))
    weights = list(accumulate((1 + rank) ** -0.9 for rank in range(len(documents))))
    chance.shuffle(documents)  # by rank from here on
    requests: list[Entry] = []
    nights = 0
    while len(requests) < num_requests:
        if name == "drifting" and chance.random() < 0.1:
            one, other = chance.randrange(len(documents) // 10), chance.randrange(len(documents))
            documents[one], documents[other] = documents[other], documents[one]
        asked = documents[bisect(weights, chance.random() * weights[-1])]
        requests.extend(asked[chance.randrange(kinds)])
        if name == "nightly" and len(requests) * 8 // num_requests > nights:
            requests.extend(entry for pairs, _ in documents for entry in pairs)
            nights = len(requests) * 8 // num_requests
    total_bytes = sum(entry.num_bytes for document in documents for kind in document[:kinds] for entry in kind)
    return requests, total_bytes


def _read_documents(chance: random.Random, num_documents: int) -> list[tuple[list[Entry], list[Entry]]]:
    """Each document's entries: kept pairs of its chunks, and scores only."""
    documents: list[tuple[list[Entry], list[Entry]]] = []
    num_keys = 0
    for _ in range(num_documents):
        num_tokens = min(200_000, max(100, round(math.exp(chance.gauss(math.log(8000), 1.0)))))
        bytes_per_token = chance.choice(_KEPT_BYTES_PER_TOKEN)
        pairs, scores = [], []
        for start in range(0, num_tokens, _CHUNK_TOKENS):
            tokens = max(100, min(_CHUNK_TOKENS, num_tokens - start))  # 100: anchor and probe are read too
            keys = [BlockKey((num_keys + kind).to_bytes(32, "big")) for kind in range(2)]
            num_keys += 2
            pairs.append(Entry(keys[0], tokens * bytes_per_token, float(tokens)))
            scores.append(Entry(keys[1], 500 + tokens // 2, float(tokens)))
        documents.append((pairs, scores))
    return documents


def table(num_requests: int) -> str:
    """The Markdown table: a line per trace and cache size, a column per rule."""
    header = ["trace", "cache", *RULES, "bound"]
    lines = [header, ["---"] * 2 + ["---:"] * (len(header) - 2)]
    for name in TRACES:
        requests, total_bytes = make_trace(name, num_requests)
        for share in SHARES:
            max_bytes = int(total_bytes * share)
            saved = [saved_by(rule(max_bytes), requests) for rule in RULES.values()]
            saved.append(offline_bound(requests, max_bytes))
            lines.append([name, f"{share:.0%}", *(f"{100 * each:.1f}" for each in saved)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main(arguments: Sequence[str]) -> None:
    """Print the table for the requests that were asked for."""
    parser = argparse.ArgumentParser(prog="python -m cache_store.bench eviction")
    parser.add_argument("--requests", type=int, default=20_000, help="how many entries are asked for, per trace")
    num_requests = parser.parse_args(arguments).requests
    if num_requests < 1:
        parser.error(f"--requests: {num_requests}; allowed: 1 or more")
    print(f"Tokens saved, in per cent of all that {num_requests:,} requests need:\n\n{table(num_requests)}")
