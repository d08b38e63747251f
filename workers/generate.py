"""Greedy decoding of a batch of prompts in one packed prefill and one packed step per token.

Invariants: sequences never see each other; the pairs of a prompt are read where the prefill left them; a
sequence that has stopped is carried along until the batch is done, so that a batch is the same computation
whatever its members write.

Shapes: N sequences, T prompt rows of all sequences together.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass
from itertools import accumulate

from workers.attention.base import Backend
from workers.hf import LanguageModel
from workers.passes import Segment, SegmentPass, Tail


@dataclass(frozen=True)
class Prompt:
    """The tokens that a sequence is given, the position of the first, and how many it may write."""

    token_ids: tuple[int, ...]
    first_position: int
    max_new_tokens: int


def generate(
    model: LanguageModel,
    backend: Backend,
    prompts: Sequence[Prompt],
    segments: Sequence[Segment],
    stop_ids: Set[int],
) -> list[list[int]]:
    """Token ids that each prompt continues with, without the stop token. ``segments``: what the sequences read before
    their own rows."""
    bounds = (0, *accumulate(len(prompt.token_ids) for prompt in prompts))
    places = [prompt.first_position + i for prompt in prompts for i in range(len(prompt.token_ids))]
    prefill = SegmentPass(backend, bounds, segments)
    ids = [token for prompt in prompts for token in prompt.token_ids]
    logits_NV = model.run(ids, places, prefill, logits_of=[stop - 1 for stop in bounds[1:]])
    context = (*segments, prefill.segment())
    limits = [prompt.max_new_tokens for prompt in prompts]
    tail = Tail(len(prompts), max(limits), model.shape.num_layers)
    written: list[list[int]] = [[] for _ in prompts]
    writing = [True] * len(prompts)
    every_row = range(len(prompts))
    while True:
        assert logits_NV is not None
        tokens = logits_NV.argmax(dim=-1).tolist()
        for n, token in enumerate(tokens):
            writing[n] = writing[n] and token not in stop_ids and len(written[n]) < limits[n]
            if writing[n]:
                written[n].append(token)
                writing[n] = len(written[n]) < limits[n]
        if not any(writing):
            return written
        positions = [places[stop - 1] + 1 + tail.step for stop in bounds[1:]]
        step = SegmentPass(backend, range(len(prompts) + 1), context, tail=tail)
        logits_NV = model.run(tokens, positions, step, logits_of=every_row)
        tail.step += 1
