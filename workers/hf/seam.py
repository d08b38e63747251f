"""Where a pass of ours meets the layers of transformers: what rows read, what they were, and which go on.

A ``Pass`` is handed to the model as an extra keyword argument, which transformers carries to every layer. There it
is met three times: before a layer (which rows go in), before its attention (what it is given), and as its attention,
which is transformers' own front door (``AttentionInterface``). Invariants: nothing of the model is replaced and
nothing is kept in it, so that threads may share it; a pass that asks for nothing but attention costs nothing else;
layers may lie on several devices, a pass sees all they have on one.

Shapes: T rows, H query heads, G key-value heads, D head dimension, E width of the model.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, device
from torch.nn import Module

from workers.errors import ModelError

BENDING = ("softcap", "s_aux")
"""Arguments by which a model asks for more than softmax attention. Ignoring them would be silently wrong."""


class Pass(ABC):
    """What the rows of one pass read, layer by layer; only ``attend`` must be said. One object serves one run."""

    wants_hidden: bool = False
    """Whether ``hidden`` is called."""

    @abstractmethod
    def attend(
        self, layer: int, q_THD: Tensor, k_TGD: Tensor, v_TGD: Tensor, scale: float, *, window: int | None
    ) -> Tensor:
        """Attention output of one layer for all rows, [T, H, D]; or raises ``Enough`` to end the pass. ``window``: a
        row may only read keys fewer than so many positions before it (and itself); None: any."""

    def hidden(self, layer: int, hidden_TE: Tensor) -> None:
        """Called before the layer's ``attend`` with what its attention is given, after the layer's norm."""
        raise NotImplementedError("a pass that wants hidden states says what it does with them")

    def surviving(self, layer: int) -> Tensor | None:
        """Which of the rows present go into this layer and all deeper ones: ascending indices, at least one; None: all.
        A pass that drops rows cannot ask for logits."""
        return None


class Enough(Exception):
    """Ends a pass inside the attention of a layer: nothing deeper is needed."""


@dataclass
class Run:
    """One pass on its way through the layers. ``home``: the device of all that a ``Pass`` sees, wherever a layer is.
    ``rows``: which of the rows that went in are left; None: all."""

    reading: Pass
    wants_logits: bool
    home: device
    rows: Tensor | None = None

    def keep(self, chosen: Tensor) -> None:
        """Only these of the rows present go on."""
        assert not self.wants_logits, "rows that were dropped have no logits"
        assert len(chosen) and bool((chosen.diff() > 0).all()), "survivors are ascending, at least one"
        self.rows = chosen if self.rows is None else self.rows[chosen]


def attention(
    module: Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    foveate: Run,
    sliding_window: int | None = None,
    **extra: Any,
) -> tuple[Tensor, None]:
    """transformers' attention signature ([1, heads, T, D] in, [1, T, H, D] out) onto ``Pass.attend``."""
    assert attention_mask is None and query.shape[0] == 1
    if bent := [name for name in BENDING if extra.get(name) is not None]:
        raise ModelError(f"its attention is bent by {', '.join(bent)}; allowed: plain softmax over earlier tokens")
    q_THD, k_TGD, v_TGD = (tensor[0].transpose(0, 1).to(foveate.home) for tensor in (query, key, value))
    layer: int = module.layer_idx  # type: ignore[assignment]
    out_THD = foveate.reading.attend(layer, q_THD, k_TGD, v_TGD, scaling, window=sliding_window)
    return out_THD[None].to(query.device), None


def hook_layers(model: Any) -> None:
    """Register what happens before each layer and each attention. Raises ``ModelError`` where they are not found."""
    for index, layer in enumerate(getattr(model.base_model, "layers", ())):
        attentions = [
            module for module in layer.modules() if hasattr(module, "layer_idx") and hasattr(module, "scaling")
        ]
        if len(attentions) != 1:
            raise ModelError(f"layer {index} has {len(attentions)} attention modules that Foveate knows; allowed: one")
        layer.register_forward_pre_hook(partial(_let_survive, index), with_kwargs=True)
        attentions[0].register_forward_pre_hook(partial(_show_hidden, index), with_kwargs=True)


def _show_hidden(layer: int, module: Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
    run: Run = named["foveate"]
    if run.reading.wants_hidden:
        hidden_1TE = named["hidden_states"] if "hidden_states" in named else given[0]
        run.reading.hidden(layer, hidden_1TE[0].to(run.home))


def _let_survive(
    layer: int, module: Module, given: tuple[Any, ...], named: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """The layer's input without the rows that end here. The model hands the positions of all rows to every layer, so
    they are selected again each time; hidden states only where rows are dropped."""
    run: Run = named["foveate"]
    chosen = run.reading.surviving(layer)
    if chosen is not None:
        run.keep(chosen.to(run.home))
        if given:
            given = (_select(given[0], chosen), *given[1:])
        else:
            named = named | {"hidden_states": _select(named["hidden_states"], chosen)}
    if run.rows is None:
        return None
    cos, sin = (_select(table, run.rows) for table in named["position_embeddings"])
    places = {"position_ids": _select(named["position_ids"], run.rows)}
    return given, named | {"position_embeddings": (cos, sin)} | places


def _select(rows_1T: Tensor, chosen: Tensor) -> Tensor:
    """Some rows, where they are."""
    return rows_1T.index_select(1, chosen.to(rows_1T.device))
