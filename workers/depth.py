"""Dropping tokens by depth: chunk and probes go through the layers together, and fewer and fewer of the chunk's rows.

LazyLLM (Fu et al. 2024, "LazyLLM: Dynamic Token Pruning for Efficient Long Context LLM Inference") keeps, from
certain layers on, only the tokens that the prompt's end attends to. Here the question's tokens are that end: their
attention in the layer before a cut, averaged over heads and words, highest over questions, decides which fraction of
the chunk goes on. Invariants: a dropped token has no pairs in deeper layers and is read by nobody there; probes are
never dropped and never see each other.

Shapes: T rows that are left (S of the chunk, then P of the probes), C tokens of the chunk, H heads, G kv heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from workers.attention.base import Backend, merge
from workers.hf import Enough, Pass
from workers.passes import Sight, Watcher
from workers.segments import Readable


@dataclass(frozen=True)
class DepthSchedule:
    """Before ``layers[i]`` the best ``keep[i]`` of the chunk's tokens go on; see ``configs.methods.DepthPruning``."""

    layers: tuple[int, ...]
    keep: tuple[float, ...]


class DepthPass(Pass):
    """A pass over a chunk's C rows and the probes' rows behind them, of which fewer go on; see the module."""

    def __init__(
        self,
        backend: Backend,
        schedule: DepthSchedule,
        num_tokens: int,
        probe_bounds: Sequence[int],
        segments: Sequence[Readable],
        *,
        scored: Sequence[range],
        last_layer: int,
        watchers: Sequence[Watcher],
    ) -> None:
        """``probe_bounds``: the probes' rows as bounds from 0; ``scored``: per probe, the rows among all probes' whose
        attention decides. Watchers see the probes' queries over the chunk's keys."""
        self._backend = backend
        self._keep = dict(zip(schedule.layers, schedule.keep, strict=True))
        self._num_tokens = num_tokens
        self._probe_bounds = tuple(probe_bounds)
        self._segments = tuple(segments)
        self._scored = tuple(scored)
        self._last_layer = last_layer
        self._watchers = tuple(watchers)
        self._alive_S = torch.arange(num_tokens)
        self._attention_S: Tensor | None = None
        self.rows_seen: list[int] = []
        """Rows of the chunk that each layer computed: what pruning saved."""

    def surviving(self, layer: int) -> Tensor | None:
        """As ``Pass.surviving``: which of the present rows go into this layer."""
        if layer not in self._keep:
            return None
        assert self._attention_S is not None, "a schedule begins at layer 1 or deeper"
        count = min(len(self._alive_S), max(1, round(self._keep[layer] * self._num_tokens)))
        best_S = torch.argsort(self._attention_S, descending=True, stable=True)[:count].sort().values
        probes = torch.arange(self._probe_bounds[-1]) + len(self._alive_S)
        self._alive_S = self._alive_S[best_S.cpu()]
        return torch.cat([best_S.cpu(), probes])

    def attend(
        self, layer: int, q_THD: Tensor, k_TGD: Tensor, v_TGD: Tensor, scale: float, *, window: int | None = None
    ) -> Tensor:
        """Attention of the chunk's rows causally, and of each probe over the chunk and itself. [T, H, D]."""
        assert window is None, "configurations with windowed layers are refused"
        num_alive, num_probes = len(self._alive_S), self._probe_bounds[-1]
        self.rows_seen.append(num_alive)
        (q_SHD, q_PHD), (k_SGD, k_PGD), (v_SGD, v_PGD) = (
            torch.split(tensor, [num_alive, num_probes]) for tensor in (q_THD, k_TGD, v_TGD)
        )
        sight = Sight(layer, q_PHD, k_SGD, v_SGD, scale, alive_S=self._alive_S)
        for watcher in self._watchers:
            watcher.see(sight)
        if layer == self._last_layer:
            raise Enough
        attend, alone, bounds = self._backend.attend, (0, num_alive), self._probe_bounds
        chunk = attend(q_SHD, k_SGD, v_SGD, alone, alone, causal=True, scale=scale)
        probes = attend(q_PHD, k_PGD, v_PGD, bounds, bounds, causal=True, scale=scale)
        over_chunk = attend(q_PHD, k_SGD, v_SGD, (0, num_probes), alone, causal=False, scale=scale)
        probes = merge(probes, over_chunk)
        for segment in self._segments:
            chunk = merge(chunk, segment.attend(self._backend, layer, q_SHD, alone, scale))
            probes = merge(probes, segment.attend(self._backend, layer, q_PHD, bounds, scale))
        if layer + 1 in self._keep:
            self._attention_S = self._attention_over(k_SGD, q_PHD, probes.lse_TH, scale)
        return torch.cat([chunk.out_THD, probes.out_THD])

    def _attention_over(self, k_SGD: Tensor, q_PHD: Tensor, lse_PH: Tensor, scale: float) -> Tensor:
        """The attention each token of the chunk gets from the question that needs it most, [S]."""
        group = q_PHD.shape[1] // k_SGD.shape[1]
        keys_HSD = k_SGD.repeat_interleave(group, dim=1).transpose(0, 1).float()
        best_S = torch.zeros(len(k_SGD), device=k_SGD.device)
        for rows in self._scored:
            window = slice(rows.start, rows.stop)
            logits_HRS = q_PHD[window].transpose(0, 1).float() @ keys_HSD.mT * scale
            share_HRS = torch.exp(logits_HRS - lse_PH[window].T[:, :, None])
            best_S = torch.maximum(best_S, share_HRS.mean(dim=(0, 1)))
        return best_S
