"""Greedy decoding of a batch of prompts in one packed prefill and one packed step per token.

Invariants: sequences never see each other; the pairs of a prompt are read where the prefill left them; a
sequence that has stopped is carried along until the batch is done, so that a batch is the same computation
whatever its members write.

Shapes: N sequences, T prompt rows of all sequences together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from workers.loaded import LoadedModel
from workers.passes import SegmentPass
from workers.segments import Readable, Segment
from workers.tail import Tail, TailOwn


@dataclass(frozen=True)
class Prompt:
    """The tokens that a sequence is given, the position of the first, and how many it may write."""

    token_ids: tuple[int, ...]
    first_position: int
    max_new_tokens: int


def generate(
    loaded: LoadedModel,
    prompts: Sequence[Prompt],
    segments: Sequence[Readable],
    stop_ids: Set[int],
    reader: Callable[[Readable], Readable],
) -> list[list[int]]:
    """Token ids that each prompt continues with, without the stop token. ``segments``: what the sequences read before
    their own rows; the steps read them, and the prompts, through ``reader``."""
    logits_NV, prefill, places = _prefill(loaded, prompts, segments)
    context = [reader(segment) for segment in (*segments, prefill)]
    limits = [prompt.max_new_tokens for prompt in prompts]
    tail = Tail(len(prompts), max(limits), loaded.weights.shape.num_layers)
    written: list[list[int]] = [[] for _ in prompts]
    writing = [True] * len(prompts)
    every_row = range(len(prompts))
    while True:
        tokens = logits_NV.argmax(dim=-1).tolist()
        for n, token in enumerate(tokens):
            writing[n] = writing[n] and token not in stop_ids and len(written[n]) < limits[n]
            if writing[n]:
                written[n].append(token)
                writing[n] = len(written[n]) < limits[n]
        if not any(writing):
            return written
        positions = [place + 1 + tail.step for place in places]
        bounds = range(len(prompts) + 1)
        step = SegmentPass(loaded.backend, bounds, context, own=TailOwn(loaded.backend, tuple(bounds), tail))
        stepped = loaded.weights.run(tokens, positions, step, logits_of=every_row)
        assert stepped is not None
        logits_NV = stepped
        tail.step += 1


def forced_logits(
    loaded: LoadedModel,
    prompt: Prompt,
    segments: Sequence[Readable],
    continuation: Sequence[int],
    reader: Callable[[Readable], Readable],
) -> Tensor:
    """Logits [n, V] with which ``prompt`` predicts each of n given tokens: what fidelity to another method compares.
    The given tokens read what steps of decoding would, in one pass."""
    logits_1V, prefill, [place] = _prefill(loaded, [prompt], segments)
    ids = continuation[:-1]
    if not ids:
        return logits_1V
    reading = SegmentPass(loaded.backend, (0, len(ids)), [reader(segment) for segment in (*segments, prefill)])
    places = range(place + 1, place + 1 + len(ids))
    logits_NV = loaded.weights.run(ids, places, reading, logits_of=range(len(ids)))
    assert logits_NV is not None
    return torch.cat([logits_1V, logits_NV])


def _prefill(
    loaded: LoadedModel, prompts: Sequence[Prompt], segments: Sequence[Readable]
) -> tuple[Tensor, Segment, list[int]]:
    """Logits behind each prompt, the prompts' pairs, and the position of each prompt's last token."""
    bounds = (0, *accumulate(len(prompt.token_ids) for prompt in prompts))
    places = [prompt.first_position + i for prompt in prompts for i in range(len(prompt.token_ids))]
    ids = [token for prompt in prompts for token in prompt.token_ids]
    reading = SegmentPass(loaded.backend, bounds, segments)
    last_rows = [stop - 1 for stop in bounds[1:]]
    logits_NV = loaded.weights.run(ids, places, reading, logits_of=last_rows)
    assert logits_NV is not None
    return logits_NV, reading.segment(), [places[row] for row in last_rows]
