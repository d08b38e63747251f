"""Greedy decoding of a batch of prompts: a prefill in packs of whole prompts, then one packed step per token.

Invariants: sequences never see each other; the pairs of a prompt are read where the prefill left them; a
sequence that has stopped has no row in the steps that follow, so that a batch costs what its members write.

Shapes: N sequences, W of them still writing, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from workers.loaded import LoadedModel
from workers.packs import packs
from workers.passes import SegmentPass
from workers.segments import Readable, Segment, concatenate
from workers.tail import Tail, TailOwn

_PACK_ROWS = 4096
"""Rows of prompts that go through the model together: enough for its products to be as fast as they get. With many more
what a layer makes of them leaves a CPU's caches (15,000 rows took a fifth longer), and memory grows with them."""


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
    logits_WV, prefill, places = _prefill(loaded, prompts, segments)
    context = [reader(segment) for segment in (*segments, prefill)]
    limits = [prompt.max_new_tokens for prompt in prompts]
    tail = Tail(len(prompts), max(limits), loaded.weights.shape.num_layers)
    written: list[list[int]] = [[] for _ in prompts]
    writing = list(range(len(prompts)))
    while True:
        said = dict(zip(writing, logits_WV.argmax(dim=-1).tolist(), strict=True))
        for n, token in said.items():
            if token not in stop_ids:
                written[n].append(token)
        writing = [n for n, token in said.items() if token not in stop_ids and len(written[n]) < limits[n]]
        if not writing:
            return written
        tail.begin(writing)
        own = TailOwn(loaded.backend, tail)
        step = SegmentPass(loaded.backend, tail.row_bounds, context, own=own)
        positions = [places[n] + tail.length for n in writing]
        stepped = loaded.weights.run([said[n] for n in writing], positions, step, logits_of=range(len(writing)))
        assert stepped is not None
        logits_WV = stepped


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
    lengths = [len(prompt.token_ids) for prompt in prompts]
    read = [_read(loaded, prompts, run, segments) for run in pairwise(packs(lengths, _PACK_ROWS))]
    logits, pairs = zip(*read, strict=True)
    whole = pairs[0] if len(pairs) == 1 else concatenate(pairs, (0, *accumulate(lengths)))
    last = [prompt.first_position + length - 1 for prompt, length in zip(prompts, lengths, strict=True)]
    return torch.cat(logits), whole, last


def _read(
    loaded: LoadedModel, prompts: Sequence[Prompt], run: tuple[int, int], segments: Sequence[Readable]
) -> tuple[Tensor, Segment]:
    """Logits behind each prompt of a run, and the run's pairs. The segments are those of all prompts: whoever is not
    in the run has no rows."""
    ours = [prompt if n in range(*run) else None for n, prompt in enumerate(prompts)]
    bounds = (0, *accumulate(len(prompt.token_ids) if prompt else 0 for prompt in ours))
    ids = [token for prompt in ours if prompt for token in prompt.token_ids]
    places = [prompt.first_position + i for prompt in ours if prompt for i in range(len(prompt.token_ids))]
    reading = SegmentPass(loaded.backend, bounds, segments)
    last_rows = [stop - 1 for stop in bounds[run[0] + 1 : run[1] + 1]]
    logits_NV = loaded.weights.run(ids, places, reading, logits_of=last_rows)
    assert logits_NV is not None
    return logits_NV, reading.segment()
