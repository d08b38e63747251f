"""The tier in Ray's object store: one copy per node that wants one, read in place, moved between nodes by Ray.

    ledger   one actor on the head node: says what is held, keeps the budgets, owns every entry
    hand     one actor per node that holds entries: copies a block there on the ledger's behalf

An object of Ray lives as long as its owner, which is whoever put it, or called for it. A worker's own objects would
die with the worker; so the ledger calls for them, and the hand on the worker's node answers with a copy: the bytes stay
on that node, the ownership is the ledger's. Blocks below 100 KB travel in the answer itself, to the ledger's memory.

Invariants: besides those of every tier, a node holds a hand only while entries that were made there are held, so that
what was freed keeps no node from being taken away; nothing here holds a reference to an entry but the ledger, so that
a dropped entry leaves the object store once its last reader is done; entries end with the process that opened the tier
first (a job's driver) at the latest; entries are read in place, so their bytes are Ray's to protect: no checksums.
"""

from __future__ import annotations

import threading
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

import ray
import torch
from ray.exceptions import ObjectStoreFullError, OutOfDiskError, RayActorError, RayError, RaySystemError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from torch.utils.dlpack import from_dlpack

from cache_store.block import KVBlock
from cache_store.errors import UnusableTier
from cache_store.identity import BlockKey, Identity
from cache_store.tiers.base import TierCounters
from cache_store.tiers.ledger import Ledger, Verdict, Weight
from configs.schema import RayTier as RayConfig

PATIENCE_S = 30.0
"""How long one answer of Ray may take; what takes longer is a miss."""
START_PATIENCE_S = 180.0
"""The same of the first one: the ledger may have to start, on a node that has other things to do."""

_LEDGER = "foveate-store"
_ON_HEAD = {"node:__internal_head__": 0.001}  # the one node that is never idle, by the name that Ray gives it
_BIT_TWINS = {torch.bfloat16: torch.int16}
"""Dtypes that numpy has not, and those that stand in for them."""


class Caller(NamedTuple):
    """Who asks the ledger, about which budget."""

    tier: str
    max_bytes: int
    process: str


class _Entry(NamedTuple):
    """A copy of a block, and the hand that made it: without entries, a hand ends."""

    copy: ray.ObjectRef[Any]
    hand: Any


class LedgerHost:
    """The ledgers of all Ray tiers, to run as one actor. Its methods run one after another."""

    def __init__(self) -> None:
        self._ledgers: dict[tuple[str, int], Ledger[_Entry]] = {}
        self._hands: WeakValueDictionary[str, Any] = WeakValueDictionary()

    def find(self, caller: Caller, key: BlockKey) -> list[ray.ObjectRef[Any]]:
        """The reference to a block's copy, in a list so that Ray does not follow it; or nothing."""
        entry = self._of(caller).find(key)
        return [] if entry is None else [entry.copy]

    def keep(self, caller: Caller, key: BlockKey, weight: Weight, node: str, made: list[ray.ObjectRef[Any]]) -> Verdict:
        """Hold a copy, on its own node, of what a process there made. Does not wait for it: readers do."""
        return self._of(caller).keep(key, weight, lambda: self._copy(node, made[0]))

    def drop(self, caller: Caller, key: BlockKey, lost: str | None = None) -> None:
        """Hold nothing for the key; ``lost``: only if it is this reference."""
        ledger = self._of(caller)
        entry = ledger.find(key)
        if entry is not None and lost in (None, entry.copy.hex()):
            ledger.drop(key)

    def holds(self, caller: Caller, key: BlockKey) -> bool:
        """Whether there is an entry; not a use."""
        return key in self._of(caller)

    def pin(self, caller: Caller, keys: Iterable[BlockKey]) -> None:
        """As ``Ledger.pin``."""
        self._of(caller).pin(caller.process, keys)

    def unpin(self, caller: Caller, keys: Iterable[BlockKey]) -> None:
        """As ``Ledger.unpin``."""
        self._of(caller).unpin(caller.process, keys)

    def keys(self, caller: Caller) -> tuple[BlockKey, ...]:
        """As ``Ledger.keys``."""
        return self._of(caller).keys()

    def num_bytes(self, caller: Caller) -> int:
        """As ``Ledger.num_bytes``."""
        return self._of(caller).num_bytes

    def _copy(self, node: str, made: ray.ObjectRef[Any]) -> _Entry:
        hand = self._hands.get(node)
        if hand is None:
            hand = self._hands[node] = _start_hand(node)
        return _Entry(hand.copy.remote(made), hand)

    def _of(self, caller: Caller) -> Ledger[_Entry]:
        ledger = self._ledgers.setdefault((caller.tier, caller.max_bytes), Ledger(caller.max_bytes))
        ledger.hear(caller.process)
        return ledger


def _start_hand(node: str) -> Any:
    # A class made here is shipped by value; one of this module would have every node import torch for it.
    class StoreHand:
        def copy(self, parts: Any) -> Any:
            return parts

    there = NodeAffinitySchedulingStrategy(node, soft=False)
    return ray.remote(StoreHand).options(num_cpus=0, max_restarts=-1, scheduling_strategy=there).remote()


def open_ledger() -> Any:
    """The ledger of this Ray namespace, which is started if there is none. It ends with the process that started it,
    or when that process drops what it got here."""
    return ray.remote(LedgerHost).options(name=_LEDGER, get_if_exists=True, num_cpus=0, resources=_ON_HEAD).remote()


class RayTier:
    """Blocks in the object stores of all nodes, ``max_bytes`` of tensor elements at most, each counted once.

    Raises UnusableTier where this process is not part of a Ray cluster.
    """

    shared = True

    def __init__(self, max_bytes: int, name: str = "ray") -> None:
        self.name = name
        self.max_bytes = max_bytes
        self._caller = Caller(name, max_bytes, uuid.uuid4().hex)
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        if not ray.is_initialized():
            raise UnusableTier(
                "kind: 'ray' needs a process that is part of a Ray cluster; allowed: with pool.kind: ray, or after "
                "ray.init()"
            )
        self._node = ray.get_runtime_context().get_node_id()
        try:
            self._ledger = open_ledger()
            try:
                self._call("num_bytes", timeout_s=START_PATIENCE_S)
            except RayActorError:  # it was ending with the process that had it
                self._ledger = open_ledger()
                self._call("num_bytes", timeout_s=START_PATIENCE_S)
        except RayError as error:
            raise UnusableTier(f"kind: 'ray' found a Ray cluster that does not answer: {error}") from error

    @classmethod
    def from_config(cls, config: RayConfig, name: str) -> RayTier:
        """The tier that a job's ``{kind: ray}`` asks for."""
        return cls(int(config.max_bytes), name)

    @property
    def num_bytes(self) -> int:
        """Bytes of all entries' tensor elements, whoever put them."""
        return self._ask("num_bytes") or 0

    @property
    def counters(self) -> TierCounters:
        """What happened since this process opened the tier."""
        with self._lock:
            return TierCounters(**self._counts)

    def get(self, key: BlockKey, layers: range | None = None) -> KVBlock | None:
        """The whole block last put under ``key`` by any process, its tensors in shared memory that nobody may write to;
        None where it is absent, or its node gone. They stay readable for as long as they are referred to."""
        found = self._ask("find", key)
        if not found:
            return None
        try:
            block = _unpack(*ray.get(found[0], timeout=PATIENCE_S))
        except RayError:
            self._count("read_errors")
        else:
            if block.key == key:
                return block
            self._count("corrupt")
        self._ask("drop", key, found[0].hex())
        return None

    def put(self, block: KVBlock) -> tuple[KVBlock, ...]:
        """Keep a copy on this node; gives the block itself where it cannot fit or be copied, else nothing."""
        if block.num_bytes > self.max_bytes:
            return self._leave_out(block, "refused")
        try:
            _require_ray()
            made = ray.put(_pack(block))
        except (ObjectStoreFullError, OutOfDiskError, RaySystemError):
            return self._leave_out(block, "write_errors")
        verdict: Verdict | None = self._ask("keep", block.key, Weight(block.num_bytes, block.cost), self._node, [made])
        if verdict is None or not verdict.kept:
            self._count("write_errors" if verdict is None else "refused")
            return (block,)
        self._count("evictions", verdict.evictions)
        return ()

    def discard(self, key: BlockKey) -> None:
        """Have no entry of this key, for any process."""
        self._ask("drop", key)

    def pin(self, keys: Iterable[BlockKey]) -> None:
        """Let no process evict entries of these keys until ``unpin`` was called as often, or until nothing was heard
        of this process for ``ledger.LEASE_S``."""
        self._ask("pin", tuple(keys))

    def unpin(self, keys: Iterable[BlockKey]) -> None:
        """Take back one ``pin`` of each of these keys."""
        self._ask("unpin", tuple(keys))

    def keys(self) -> Iterator[BlockKey]:
        """Keys of all entries, first to leave first, as a snapshot."""
        return iter(self._ask("keys") or ())

    def __contains__(self, key: BlockKey) -> bool:
        return bool(self._ask("holds", key))

    def _leave_out(self, block: KVBlock, reason: str) -> tuple[KVBlock, ...]:
        self._count(reason)
        self.discard(block.key)  # the former entry must not answer for the new one
        return (block,)

    def _ask(self, verb: str, *arguments: Any) -> Any:
        """What the ledger answers; None and a counter where it does not. A dead one is replaced, once."""
        try:
            try:
                return self._call(verb, *arguments)
            except RayActorError:
                self._count("read_errors")
                self._ledger = open_ledger()
                return self._call(verb, *arguments)
        except RayError:
            self._count("read_errors")
            return None

    def _call(self, verb: str, *arguments: Any, timeout_s: float = PATIENCE_S) -> Any:
        _require_ray()
        return ray.get(getattr(self._ledger, verb).remote(self._caller, *arguments), timeout=timeout_s)

    def _count(self, name: str, times: int = 1) -> None:
        with self._lock:
            self._counts[name] += times


def _require_ray() -> None:
    """Refuse a process that has left its cluster: Ray would start another one for whatever it is asked."""
    if not ray.is_initialized():
        raise RaySystemError("this process has left its Ray cluster")  # type: ignore[no-untyped-call]


def _pack(block: KVBlock) -> tuple[dict[str, object], int, int, dict[str, tuple[str, Any]]]:
    """The block as plain values and arrays, which Ray stores as they are and lets others read in place."""
    arrays = {}
    for name, tensor in block.tensors.items():
        plain = tensor.detach().contiguous().view(_BIT_TWINS.get(tensor.dtype, tensor.dtype))
        arrays[name] = (str(tensor.dtype).removeprefix("torch."), plain.numpy())
    return block.identity.record, block.num_tokens, block.cost, arrays


def _unpack(record: dict[str, object], num_tokens: int, cost: int, arrays: dict[str, tuple[str, Any]]) -> KVBlock:
    """The block of ``_pack``, its tensors in the arrays' memory."""
    # Through DLPack: from_numpy warns of arrays that cannot be written to, which these must not be.
    tensors = {name: from_dlpack(array).view(getattr(torch, dtype)) for name, (dtype, array) in arrays.items()}
    return KVBlock(Identity.from_record(record), num_tokens, cost, **tensors)
