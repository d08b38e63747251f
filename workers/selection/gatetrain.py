"""Training a model's gate on text: reading it, having the model repeat it, and learning what the repetition looked at.

A chunk, a request to repeat it and its own text as the answer are read in one causal pass. That pass gives both sides
of the lesson: the chunk's hidden states before every attention, and the most attention that the repetition paid to
each of its tokens. Invariants: the same text gives the same samples; what is held in memory is bounded by
``SAMPLE_TOKENS``, what is read by ``TEXT_TOKENS``, however long the text.

Shapes: T rows of a pass, R repeating rows, N tokens to learn from, E width of the model, H query heads, G kv heads,
D head dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import log

import numpy as np
import torch
from torch import Tensor

from workers.errors import ModelError
from workers.hf import LanguageModel
from workers.loaded import LoadedModel
from workers.passes import SegmentPass, Sight
from workers.selection.gate import Gate
from workers.selection.gatefit import Report, Samples, fit
from workers.selection.scorers.base import LayerView
from workers.selection.scorers.reconstruct import ReconstructScorer

CHUNK_TOKENS = 1024
TEXT_TOKENS = 80 * CHUNK_TOKENS
"""Longer text is thinned evenly, by chunks: one core repeats this much with the demo model in about ten minutes."""
SAMPLE_TOKENS = 24_576
"""Tokens to learn from, as many of each chunk: 0.8 GB for the demo model's 30 layers of width 576."""
LEAST_TOKENS, LEAST_CHUNKS = 32, 4
FLOOR = log(1e-6)
"""What lies below this is noise, and would weigh most in a mean of squares."""


class Repetition:
    """A ``passes.Watcher`` of one pass that ends with the chunk's text again. Afterwards ``hiddens`` and ``targets``
    hold, per layer, [N, E] (bfloat16) and [N, G] (float32) of the N picked rows, on the CPU."""

    wants_lse = True
    wants_hidden = True

    def __init__(self, model: LanguageModel, picked_N: Tensor, again: range) -> None:
        """``picked_N`` and ``again``: rows of the pass that are the tokens to learn from, and those that look: a
        request to repeat the chunk, and the repetition."""
        self._model = model
        self._teacher = ReconstructScorer(model.shape)
        self._picked_N = picked_N.to(model.device)
        self._again_R = torch.tensor(again, device=model.device)
        self.hiddens: list[Tensor] = []
        self.targets: list[Tensor] = []

    def see(self, sight: Sight) -> None:
        """The lesson of one layer; the target is the ``reconstruct`` scorer's, of blocks of one token."""
        assert sight.lse_TH is not None and sight.hidden_TE is not None
        view = LayerView(
            layer=sight.layer,
            queries_RHD=sight.q_THD[self._again_R],
            keys_CGD=sight.k_TGD[self._picked_N],
            values_CGD=sight.v_TGD[self._picked_N],
            places_C=self._picked_N,
            row_places_R=self._again_R,
            scale=sight.scale,
            block_tokens=1,
            model=self._model,
            lse_RH=sight.lse_TH[self._again_R],
        )
        [target_GN] = self._teacher.score(view)
        self.targets.append(target_GN.T.clamp(min=FLOOR, max=0.0).cpu())
        self.hiddens.append(sight.hidden_TE[self._picked_N].to("cpu", torch.bfloat16))


def collect(
    loaded: LoadedModel, texts: Sequence[str], report: Report = lambda line: None, chunk_tokens: int = CHUNK_TOKENS
) -> Samples:
    """Read the texts in chunks of at most ``chunk_tokens``, each with its repetition. ``report`` is called with a line
    of progress per chunk. Raises ``ModelError`` for too little text and for a window that is too small."""
    frame, shape = loaded.frame, loaded.weights.shape
    request = frame.repetition
    room = (shape.window - len(frame.anchor) - len(request)) // 2
    if room < LEAST_TOKENS:
        raise ModelError(f"training a gate needs room for {LEAST_TOKENS} tokens and their repetition; there is {room}")
    chunks = _chunks([frame.tokenizer.encode(text) for text in texts], min(chunk_tokens, room))
    quota = -(-SAMPLE_TOKENS // len(chunks))
    rng = np.random.default_rng(0)
    lessons: list[Repetition] = []
    for ids in chunks:
        picked_N = torch.from_numpy(np.sort(rng.permutation(len(ids))[:quota]))
        lessons.append(
            _repeat(
                loaded,
                [*frame.anchor, *ids, *request, *ids],
                picked_N + len(frame.anchor),
                len(request) + len(ids),
            )
        )
        report(f"repeated chunk {len(lessons)} of {len(chunks)}")
    return Samples(
        tuple(torch.cat(layer) for layer in zip(*(lesson.hiddens for lesson in lessons), strict=True)),
        tuple(torch.cat(layer) for layer in zip(*(lesson.targets for lesson in lessons), strict=True)),
        np.repeat(np.arange(len(lessons)), [len(lesson.targets[0]) for lesson in lessons]),
        sum(len(ids) for ids in chunks),
    )


def _repeat(loaded: LoadedModel, token_ids: Sequence[int], picked_N: Tensor, looking: int) -> Repetition:
    """One pass over a sequence whose last ``looking`` rows ask for a repetition and are one."""
    rows = len(token_ids)
    lesson = Repetition(loaded.weights, picked_N, range(rows - looking, rows))
    last_layer = loaded.weights.shape.num_layers - 1
    reading = SegmentPass(loaded.backend, (0, rows), last_layer=last_layer, watchers=[lesson])
    loaded.weights.run(token_ids, range(rows), reading)
    return lesson


def train(
    loaded: LoadedModel, texts: Sequence[str], report: Report = lambda line: None, chunk_tokens: int = CHUNK_TOKENS
) -> Gate:
    """The gate of a model, trained on these texts; ``measured`` holds how it does on the last fifth of them. Raises
    ``ModelError`` as ``collect``."""
    return fit(collect(loaded, texts, report, chunk_tokens), loaded.source.weights, report)


def _chunks(documents: Sequence[Sequence[int]], size: int) -> list[Sequence[int]]:
    """The documents cut into chunks of ``size`` (a document's last may be shorter), thinned to ``TEXT_TOKENS``."""
    cut = [ids[start : start + size] for ids in documents for start in range(0, len(ids), size)]
    chunks = [ids for ids in cut if len(ids) >= LEAST_TOKENS]
    if len(chunks) < LEAST_CHUNKS:
        raise ModelError(
            f"text to train a gate on: {sum(map(len, documents)):,} tokens are {len(chunks)} chunks of {LEAST_TOKENS} "
            f"to {size:,}; needs {LEAST_CHUNKS} chunks or more, better {TEXT_TOKENS:,} tokens"
        )
    most = min(len(chunks), TEXT_TOKENS // size)
    return [chunks[int(index)] for index in np.linspace(0, len(chunks) - 1, most).round()]
