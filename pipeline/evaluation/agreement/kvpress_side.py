"""What kvpress keeps and answers: the other side of the agreement, run by the python of kvpress's own environment.

    python kvpress_side.py MODEL_DIRECTORY EXCHANGE_DIRECTORY

Reads ``items.json`` of the exchange directory and writes ``versions.json`` and one ``ITEM.npz`` for each item that has
none yet (see ``exchange``, which writes the one and reads the others). Stands alone: of this project it imports
nothing, and kvpress and transformers only by name when it runs, since the project depends on neither here.
Invariants: presses run through kvpress's own pipeline, with weights in float32; kept positions are those that its own
``compress`` left, or masked, and not ours made from its scores (except where a press says otherwise); a file that has
its name is complete.

Shapes: L layers, G kv heads, N context tokens, K kept ones.
"""

from __future__ import annotations

import importlib
import json
import platform
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class PressSpec:
    """How a press is made, given kvpress and the share of the context that goes. ``half``: added to the tokens that
    are to stay before they become a share, where kvpress rounds down. ``moves``: it can be wrapped so that what stays
    moves together, as ours always does. ``eager``: it needs whole attention matrices. ``evenly``: a second name, under
    which the best of its scores are told, as many in every head: a press that has no such budget of its own."""

    make: Callable[[Any, float], Any]
    half: float = 0.5
    moves: bool = False
    eager: bool = False
    evenly: str | None = None


PRESSES: dict[str, PressSpec] = {
    "dense": PressSpec(lambda k, share: None),
    "window": PressSpec(lambda k, share: k.SnapKVPress(share, window_size=64, kernel_size=5), moves=True),
    "accumulated": PressSpec(lambda k, share: k.ObservedAttentionPress(share), moves=True, eager=True),
    "streaming": PressSpec(lambda k, share: k.StreamingLLMPress(share, n_sink=4), moves=True),
    "expected": PressSpec(
        lambda k, share: k.ExpectedAttentionPress(share, n_future_positions=512, n_sink=4, epsilon=0.02), moves=True
    ),
    "keydiff": PressSpec(lambda k, share: k.KeyDiffPress(share), moves=True),
    "random": PressSpec(lambda k, share: k.RandomPress(share)),
    "reconstruct, adaptive": PressSpec(
        lambda k, share: k.KVzipPress(share, layerwise=True), half=0.0, evenly="reconstruct"
    ),
    "reconstruct, global": PressSpec(lambda k, share: k.KVzipPress(share), half=0.0),
    "window, adaptive": PressSpec(lambda k, share: k.AdaKVPress(k.SnapKVPress(share), alpha_safeguard=0.2)),
    "expected, adaptive": PressSpec(
        lambda k, share: k.AdaKVPress(k.ExpectedAttentionPress(share, epsilon=0.02), alpha_safeguard=0.2)
    ),
    "window, pyramid": PressSpec(lambda k, share: k.PyramidKVPress(share, beta=4), half=0.0),
}


class Watch:
    """Notes, layer by layer, how a press scores and which positions it leaves in the cache."""

    def __init__(self, press: Any) -> None:
        self.scores: list[Tensor] = []
        self.kept: list[Tensor] = []
        self._press = press
        scorer = getattr(press, "press", press)  # AdaKVPress asks the press inside it
        self._score, self._compress = getattr(scorer, "score", None), getattr(press, "compress", None)
        self._replayed: Tensor | None = None
        if self._score is not None:
            scorer.score = self._scored
            press.compress = self._compressed

    def _scored(self, *arguments: Any) -> Tensor:
        if self._replayed is not None:
            return self._replayed
        assert self._score is not None
        scores: Tensor = self._score(*arguments)
        self.scores.append(scores[0].clone())
        return scores

    def _compressed(
        self, module: Any, hidden: Tensor, keys: Tensor, values: Tensor, attentions: Any, kwargs: Any
    ) -> Any:
        """What ``compress`` leaves. Asked again, with the same scores and positions for values, it tells which."""
        assert self._compress is not None
        found = self._compress(module, hidden, keys, values, attentions, kwargs)
        masked = getattr(module, "masked_key_indices", None)
        if masked is not None:
            self.kept.append(unmasked(masked, keys.shape[1:3]))
            return found
        self._replayed = self.scores[-1][None]
        places = torch.arange(keys.shape[2], dtype=torch.float32)[:, None].expand_as(values)
        _, left = self._compress(module, hidden, keys, places, attentions, kwargs)
        self._replayed = None
        self.kept.append(torch.zeros(keys.shape[1:3], dtype=torch.bool).scatter_(1, left[0, :, :, 0].long(), True))
        return found

    def mask(self, model: Any, num_tokens: int) -> Tensor:
        """Kept positions [L, G, N]."""
        layers, heads = model.model.layers, model.config.num_key_value_heads
        if self._press is None:
            return torch.ones(len(layers), heads, num_tokens, dtype=torch.bool)
        if not self.kept:  # KVzipPress masks when all layers have been scored
            self.kept = [unmasked(layer.self_attn.masked_key_indices, (heads, num_tokens)) for layer in layers]
        return torch.stack(self.kept)

    def best(self, keep: int) -> Tensor:
        """The ``keep`` best scores of every head, as positions [L, G, N]."""
        scores = torch.stack(self.scores)
        return torch.zeros_like(scores, dtype=torch.bool).scatter_(2, scores.topk(keep, dim=-1).indices, True)


def unmasked(masked: tuple[Tensor, Tensor, Tensor], shape: Any) -> Tensor:
    """Positions [G, N] that a press did not mask."""
    kept = torch.ones(*shape, dtype=torch.bool)
    _, heads, positions = masked
    kept[heads, positions] = False
    return kept


class Kvpress:
    """A model, and kvpress's pipeline around it."""

    def __init__(self, directory: Path) -> None:
        self._kvpress = importlib.import_module("kvpress")
        transformers = importlib.import_module("transformers")
        self._model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
        tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
        self._pipeline = transformers.pipeline(
            "kv-press-text-generation", model=self._model, tokenizer=tokenizer, device="cpu"
        )

    def try_press(self, item: dict[str, Any], name: str) -> dict[str, NDArray[Any]]:
        """What a press makes of an item, under the names of ``exchange``."""
        spec = PRESSES[name]
        num_tokens = len(item["context_ids"])
        share = 1 - (item["keep"] + spec.half) / num_tokens
        self._model.set_attn_implementation("eager" if spec.eager else "sdpa")
        press = spec.make(self._kvpress, share)
        watch = Watch(press)
        found: dict[str, NDArray[Any]] = {}
        try:
            found[f"{name}/answer"] = np.array(self._answer(item, press, watch))
        except RuntimeError as error:  # kvpress's own; what it had kept until then still counts
            found[f"{name}/error"] = np.array(str(error))
        found |= _seen(name, watch.mask(self._model, num_tokens), watch)
        if spec.evenly is not None:
            found |= _seen(spec.evenly, watch.best(item["keep"]), watch)
        if spec.moves:
            moving = self._kvpress.KeyRerotationPress(spec.make(self._kvpress, share))
            found[f"{name}/moved"] = np.array(self._answer(item, moving))
        return found

    @torch.inference_mode()
    def _answer(self, item: dict[str, Any], press: Any, watch: Watch | None = None) -> str:
        """The greedy answer, from kvpress's own pipeline, given token ids in place of text."""
        for layer in self._model.model.layers:  # a mask of the press before must not reach this one
            layer.self_attn.masked_key_indices = None
        zip_scores = getattr(press, "compress_post", None)
        if watch is not None and zip_scores is not None:

            def compress_post(model: Any) -> None:
                zip_scores(model)  # it also raises the sinks' scores to the top
                watch.scores.extend(press.score_val[:, 0].clone())

            press.compress_post = compress_post
        ids = {
            "context_ids": torch.tensor([item["context_ids"]]),
            "questions_ids": [torch.tensor([item["question_ids"]])],
        }
        [answer] = self._pipeline._forward(ids, max_new_tokens=item["max_new_tokens"], press=press)
        return str(answer)


def _seen(name: str, kept: Tensor, watch: Watch) -> dict[str, NDArray[Any]]:
    """Kept positions, eight to a byte, and scores where there are any."""
    found: dict[str, NDArray[Any]] = {f"{name}/kept": np.packbits(kept.numpy(), axis=-1)}
    return found | ({f"{name}/scores": torch.stack(watch.scores).float().numpy()} if watch.scores else {})


def main(directory: Path, exchange: Path) -> None:
    """Try every press on every item that has no file yet."""
    side = Kvpress(directory)
    names = ("kvpress", "torch", "transformers", "numpy")
    versions = {"python": platform.python_version()} | {name: version(name) for name in names}
    (exchange / "versions.json").write_text(json.dumps(versions))
    for item in json.loads((exchange / "items.json").read_text()):
        path = exchange / f"{item['id']}.npz"
        if path.is_file():
            continue
        found: dict[str, NDArray[Any]] = {}
        for name in PRESSES:
            found |= side.try_press(item, name)
        unfinished = path.with_suffix(".unfinished.npz")
        np.savez_compressed(unfinished, **found)  # type: ignore[arg-type]  # no array is called allow_pickle
        unfinished.replace(path)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
