"""What the rows of a forward pass read: themselves, in one of a few ways, and segments of pairs before them.

Every pass of the engine (a chunk after its anchor, probes after a chunk, a repetition, a batch of prompts, one step
of decoding) is the same thing: T packed rows in sequences, each reading its *own* rows and, in full, earlier
*segments*, the partial results merged exactly. How rows read their own is a part of its own (``Own``): causally,
block-sparsely, without what a gate dropped, or as a step of decoding. Layers with a window read the positions in it,
whatever ``Own`` says (``windowed``). Invariants: positions live in the rotated keys, so layers without a window read
segments in any order; with one, segments are in the order of their positions, the rows directly behind them; a segment
is never written to while a pass reads it.

Shapes: T rows, H query heads, G key-value heads, D head dimension, S keys, E width of the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol

from torch import Tensor

from workers.attention.base import Backend, Partial, merge
from workers.hf import Enough, Pass
from workers.segments import Readable, Segment
from workers.windowed import OwnRows, WindowReader


@dataclass(frozen=True)
class Sight:
    """One layer of a pass as it goes by. ``lse_TH``: log-sum-exp over everything that each row read, None where nobody
    asked for it; ``hidden_TE``: what the layer's attention was given, None likewise. ``alive_S``: which tokens of the
    chunk the keys belong to, where some were dropped on the way; None: all."""

    layer: int
    q_THD: Tensor
    k_TGD: Tensor
    v_TGD: Tensor
    scale: float
    lse_TH: Tensor | None = None
    hidden_TE: Tensor | None = None
    alive_S: Tensor | None = None


class Watcher(Protocol):
    """Looks at layers as they go by; used by scorers."""

    @property
    def wants_lse(self) -> bool:
        """Whether it needs ``Sight.lse_TH``: then the last layer's attention is computed too."""
        ...

    @property
    def wants_hidden(self) -> bool:
        """Whether it needs ``Sight.hidden_TE``."""
        ...

    def see(self, sight: Sight) -> None:
        """Called once per layer, in order."""
        ...


class Own(Protocol):
    """How the rows of a pass read each other."""

    @property
    def wants_hidden(self) -> bool:
        """Whether it needs ``Sight.hidden_TE``."""
        ...

    def attend(self, sight: Sight) -> Partial:
        """Attention of each row over rows of its own sequence up to itself."""
        ...

    def rows(self, sight: Sight) -> OwnRows:
        """What layers with a window read instead: all pairs of its sequences, those of the pass's rows the last of
        them. Called instead of ``attend``."""
        ...


@dataclass(frozen=True)
class CausalOwn:
    """Each row reads every row of its sequence up to itself."""

    backend: Backend
    row_bounds: tuple[int, ...]
    wants_hidden: ClassVar[bool] = False

    def attend(self, sight: Sight) -> Partial:
        """As ``Own.attend``."""
        bounds = self.row_bounds
        return self.backend.attend(
            sight.q_THD, sight.k_TGD, sight.v_TGD, bounds, bounds, causal=True, scale=sight.scale
        )

    def rows(self, sight: Sight) -> OwnRows:
        """As ``Own.rows``: the rows of the pass."""
        return OwnRows(sight.k_TGD, sight.v_TGD, self.row_bounds)


class SegmentPass(Pass):
    """A ``Pass`` over segments. After the run, ``segment()`` is what its own rows left."""

    def __init__(
        self,
        backend: Backend,
        row_bounds: Sequence[int],
        segments: Sequence[Readable] = (),
        *,
        own: Own | None = None,
        last_layer: int | None = None,
        watchers: Sequence[Watcher] = (),
    ) -> None:
        """``row_bounds``: T rows in sequences, as bounds. ``own``: None for causal. ``last_layer``: end the pass there,
        once its pairs are known."""
        self._backend = backend
        self._row_bounds = tuple(row_bounds)
        self._segments = tuple(segment for segment in segments if len(segment))
        self._own = own or CausalOwn(backend, self._row_bounds)
        self._near = WindowReader(backend, self._row_bounds, self._segments)
        self._last_layer = last_layer
        self._watchers = tuple(watchers)
        self._needs_lse = any(watcher.wants_lse for watcher in watchers)
        self.wants_hidden = self._own.wants_hidden or any(watcher.wants_hidden for watcher in watchers)
        self._hidden_TE: Tensor | None = None
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []

    def hidden(self, layer: int, hidden_TE: Tensor) -> None:
        """Remembered until the layer's attention runs, next."""
        self._hidden_TE = hidden_TE

    def attend(
        self, layer: int, q_THD: Tensor, k_TGD: Tensor, v_TGD: Tensor, scale: float, *, window: int | None = None
    ) -> Tensor:
        """Attention of all rows over segments and self, merged exactly. [T, H, D]."""
        self._keys.append(k_TGD)
        self._values.append(v_TGD)
        sight = Sight(layer, q_THD, k_TGD, v_TGD, scale, hidden_TE=self._hidden_TE)
        is_last = layer == self._last_layer
        if is_last and not self._needs_lse:
            self._show(sight)
            raise Enough
        if window is None:
            partial = self._own.attend(sight)
            for segment in self._segments:
                partial = merge(partial, segment.attend(self._backend, layer, q_THD, self._row_bounds, scale))
        else:
            partial = self._near.attend(layer, q_THD, self._own.rows(sight), window, scale)
        self._show(replace(sight, lse_TH=partial.lse_TH))
        if is_last:
            raise Enough
        return partial.out_THD

    def segment(self) -> Segment:
        """The pairs of this pass's own rows, split by its sequences, for later passes to read."""
        return Segment(self._keys, self._values, self._row_bounds)

    def shared_segment(self) -> Segment:
        """The same pairs, for every sequence of a later pass to read in full."""
        return Segment(self._keys, self._values)

    def _show(self, sight: Sight) -> None:
        for watcher in self._watchers:
            watcher.see(sight)
