"""Each method against its paper's formula, written again in float64, key by key where that is clearest.

Made-up queries and keys, with logits far enough apart that every formula has something to say; only the angles of
rotation are the tiny model's. References work on query heads [R, D] and the keys that they read [C, D].
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.workers.selection.scorers.readings import Reader
from workers.hf import LanguageModel
from workers.selection.budgets.base import BlockTable
from workers.selection.budgets.uniform import UniformBudget
from workers.selection.scorers.accumulated import AccumulatedScorer
from workers.selection.scorers.base import ChunkScores, LayerView, Scorer
from workers.selection.scorers.expected import ExpectedScorer
from workers.selection.scorers.keydiff import KeyDiffScorer
from workers.selection.scorers.random import RandomScorer
from workers.selection.scorers.reconstruct import ReconstructScorer
from workers.selection.scorers.streaming import StreamingScorer
from workers.selection.scorers.window import WindowScorer

Array = NDArray[np.float64]
HEADS, KV_HEADS, DEPTH, SCALE = 4, 2, 8, 0.7
LAYERS = 3
ANCHOR = 5
"""Keys before the chunk, which all rows read too."""


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> LanguageModel:
    return Reader(tiny_model, (), ()).model


@dataclass(frozen=True)
class Made:
    """A view in float32, and what it is made of, by query head: queries [H, R, D], all keys [H, A + C, D], values."""

    view: LayerView
    queries: Array
    keys: Array
    values: Array

    def probabilities(self, head: int, window: int | None = None) -> Array:
        """Softmax [R, A + C] of each row over what it reads: the anchor and the chunk up to itself."""
        places = np.arange(self.keys.shape[1])
        logits = SCALE * self.queries[head] @ self.keys[head].T
        distance = self.view.row_places_R.numpy()[:, None] - places
        logits[(distance < 0) | (distance >= (window or 10**6))] = -np.inf
        shares: Array = np.exp(logits - np.logaddexp.reduce(logits, axis=1, keepdims=True))
        return shares


def made(
    model: LanguageModel, num_rows: int, num_keys: int, *, behind: bool, anchor: int = ANCHOR, window: int | None = None
) -> Made:
    """Rows that are the chunk's last ones, or stand ``behind`` it."""
    generator = torch.Generator().manual_seed(num_rows)
    queries = torch.randn(num_rows, HEADS, DEPTH, generator=generator)
    keys = torch.randn(anchor + num_keys, KV_HEADS, DEPTH, generator=generator)
    values = torch.randn(anchor + num_keys, KV_HEADS, DEPTH, generator=generator)
    first_row = anchor + num_keys - (0 if behind else num_rows)
    view = LayerView(
        layer=1,
        queries_RHD=queries,
        keys_CGD=keys[anchor:],
        values_CGD=values[anchor:],
        places_C=torch.arange(anchor, anchor + num_keys),
        row_places_R=torch.arange(first_row, first_row + num_rows),
        scale=SCALE,
        block_tokens=1,
        model=model,
    )
    by_head = [
        tensor.repeat_interleave(HEADS // KV_HEADS, 1).transpose(0, 1).double().numpy() for tensor in (keys, values)
    ]
    case = Made(view, queries.transpose(0, 1).double().numpy(), *by_head)
    logits = SCALE * case.queries @ case.keys.transpose(0, 2, 1)
    distance = view.row_places_R.numpy()[:, None] - np.arange(anchor + num_keys)
    logits[:, (distance < 0) | (distance >= (window or 10**6))] = -np.inf
    lse = torch.tensor(np.logaddexp.reduce(logits, axis=2).T, dtype=torch.float32)
    return replace(case, view=replace(view, lse_RH=lse))


def by_group(masses: list[Array]) -> Array:
    """The mean [G, C] of query heads' [C]."""
    mean_GC: Array = np.stack(masses).reshape(KV_HEADS, HEADS // KV_HEADS, -1).mean(axis=1)
    return mean_GC


def settled(scorer: Scorer, views: list[LayerView]) -> Array:
    """Shares [G, C] of a document that is made of these chunks, each seen alike in all layers; of its first layer."""
    chunks, start = [], 0
    for view in views:
        log_RHB = torch.cat([scorer.score(view)] * LAYERS, dim=1).numpy()
        stop = start + len(view.places_C)
        chunks.append(ChunkScores(log_RHB, (start, stop), view.block_tokens))
        start = stop
    shares = np.concatenate(scorer.settle(chunks), axis=2)
    np.testing.assert_array_equal(shares, shares[:1].repeat(len(shares), 0))
    result: Array = shares[0]
    return result


def same(found: Array, mass: Array) -> None:
    np.testing.assert_allclose(found, mass / mass.sum(axis=1).mean(), rtol=2e-4, atol=1e-7)


def pooled(mass: Array, width: int) -> Array:
    """Mean over ``width`` tokens around each, with nothing beyond the edges."""
    before = (width - 1) // 2
    padded = np.concatenate([np.zeros(before), mass, np.zeros(width)])
    return np.array([padded[i : i + width].mean() for i in range(len(mass))])


# -- SnapKV -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pool_tokens", [1, 4, 5])
def test_window_of_a_known_question_is_snapkv(model: LanguageModel, pool_tokens: int) -> None:
    case = made(model, 6, 30, behind=True)
    scorer = WindowScorer(model.shape, True, 6, pool_tokens)
    masses = []
    for head in range(HEADS):
        share = case.probabilities(head)[:, ANCHOR:]
        share /= share.sum(axis=1, keepdims=True)  # over the chunk: what stands before it is not for choice
        mass = pooled(share.mean(axis=0), pool_tokens)
        masses.append(mass / mass.sum())
    same(settled(scorer, [case.view]), by_group(masses))


def test_window_of_an_unknown_question_is_snapkv_and_stays_on_top(model: LanguageModel) -> None:
    rows = 6
    case = made(model, rows, 30, behind=False, anchor=0)
    found = settled(WindowScorer(model.shape, False, rows, 5), [case.view])
    masses = []
    for head in range(HEADS):
        mass = pooled(case.probabilities(head).mean(axis=0)[:-rows], 5)
        masses.append(np.append(mass, np.zeros(rows)))
    expected = by_group(masses)
    expected[:, -rows:] = expected.max()
    same(found, expected)


def test_only_the_documents_own_window_is_kept_whatever_it_says(model: LanguageModel) -> None:
    view = made(model, 6, 30, behind=False).view
    found = settled(WindowScorer(model.shape, False, 6, 5), [view, view])
    np.testing.assert_allclose(found[:, -6:], found.max())
    assert (found[:, 24:30] < found.max()).all(), "the first chunk's window is average"


def test_a_chunk_no_longer_than_the_window_still_ranks_its_tokens(model: LanguageModel) -> None:
    scorer = WindowScorer(model.shape, False, window_tokens=64)
    assert scorer.rows((0, 40), 40) == range(20, 40)
    assert scorer.rows((0, 1), 1) == range(0, 1)
    assert WindowScorer(model.shape, True, window_tokens=64).rows((3, 9), 40) == range(0, 40)


def test_window_weighs_chunks_by_what_their_keys_have_to_say(model: LanguageModel) -> None:
    """All logits of a chunk rise by 2, so that a row's attention to it rises by exp(2): so does the chunk's share."""
    view = made(model, 6, 30, behind=True).view
    view.queries_RHD[..., 0] = 1.0
    louder = view.keys_CGD.clone()
    louder[..., 0] += 2.0 / SCALE
    share = settled(WindowScorer(model.shape, True, 6, 1), [view, replace(view, keys_CGD=louder)])
    np.testing.assert_allclose(share[:, 30:], share[:, :30] * np.exp(2.0), rtol=1e-4)


# -- H2O, KVzip ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [None, 12])
@pytest.mark.parametrize("length", [20, 300])
def test_accumulated_is_h2o_per_observing_row(model: LanguageModel, length: int, window: int | None) -> None:
    shape = replace(model.shape, windows=(window,) * LAYERS)
    case = made(model, length, length, behind=False, window=window)
    view = replace(case.view, model=_Windowed(model, window))  # type: ignore[arg-type]
    log_GC = AccumulatedScorer(shape).score(view)[0].double().numpy()
    readable = np.minimum(np.arange(ANCHOR, ANCHOR + length) + 1, window or 10**6).mean()
    masses = []
    for head in range(HEADS):
        share = case.probabilities(head, window)[:, ANCHOR:]
        received = np.zeros(length)
        for key in range(length):
            observers = range(key, length if window is None else min(length, key + window))
            received[key] = sum(share[row, key] for row in observers) / len(observers)
        masses.append(received * readable)
    np.testing.assert_allclose(np.exp(log_GC), by_group(masses), rtol=2e-4)


def test_seniority_earns_nothing_and_short_chunks_outbid_nobody(model: LanguageModel) -> None:
    """All keys alike: every token of a long and of a short chunk gets about what uniform attention gives."""
    long_, short = (made(model, length, length, behind=False) for length in (256, 32))
    means = []
    for case in (long_, short):
        flat = replace(
            case.view,
            queries_RHD=torch.zeros_like(case.view.queries_RHD),
            lse_RH=(case.view.row_places_R + 1).float().log()[:, None].expand(-1, HEADS),
        )
        means.append(AccumulatedScorer(model.shape).score(flat).exp().mean())
    assert 0.5 < means[0] / means[1] < 2.0, "by plain sums or means of probabilities it would be 8 or 1 / 8"


def test_reconstruct_is_kvzip(model: LanguageModel) -> None:
    case = made(model, 150, 30, behind=True)
    best = np.stack([case.probabilities(head)[:, ANCHOR : ANCHOR + 30].max(axis=0) for head in range(HEADS)])
    expected = best.reshape(KV_HEADS, HEADS // KV_HEADS, -1).max(axis=1)
    found = ReconstructScorer(model.shape).score(case.view)[0].double().exp().numpy()
    np.testing.assert_allclose(found, expected, rtol=2e-4)
    same(settled(ReconstructScorer(model.shape), [case.view]), expected)


# -- KeyDiff, Expected Attention ----------------------------------------------------------------------------


def test_keydiff_is_negative_cosine_to_the_mean_direction(model: LanguageModel) -> None:
    case = made(model, 1, 30, behind=True)
    distances = []
    for head in range(HEADS):
        directions = [key / np.linalg.norm(key) for key in case.keys[head][ANCHOR:]]
        anchor = np.mean(directions, axis=0)
        distances.append(np.array([1.0 - key @ anchor / np.linalg.norm(anchor) for key in directions]))
    same(settled(KeyDiffScorer(model.shape), [case.view]), by_group(distances))


@pytest.mark.parametrize(("epsilon", "use_covariance"), [(0.0, True), (0.02, True), (0.02, False)])
@pytest.mark.parametrize("anchor", [0, ANCHOR])
def test_expected_attention_over_a_document_of_two_chunks(
    model: LanguageModel, epsilon: float, use_covariance: bool, anchor: int
) -> None:
    """One softmax over both chunks' keys, each under its own chunk's queries; positions below 4 are no evidence."""
    future = 25
    cases = [made(model, length, length, behind=False, anchor=anchor) for length in (30, 17)]
    weighed = []
    for head in range(HEADS):
        logits, sizes = [], []
        for case in cases:
            places = case.view.row_places_R.numpy()
            usual = places >= 4
            still = np.stack([_turn(-place) @ q for place, q in zip(places, case.queries[head], strict=True)])[usual]
            turn = np.mean([_turn(place) for place in range(places[-1] + 1, places[-1] + 1 + future)], axis=0)
            mean, covariance = turn @ still.mean(axis=0), turn @ np.cov(still.T, bias=True) @ turn.T
            for key, value in zip(case.keys[head][anchor:], case.values[head][anchor:], strict=True):
                logits.append(SCALE * mean @ key + use_covariance * SCALE**2 * key @ covariance @ key / 2.0)
                sizes.append(np.linalg.norm(value))
        share = np.exp(np.array(logits) - np.logaddexp.reduce(logits))
        weighed.append((share + epsilon) * np.array(sizes))
    scorer = ExpectedScorer(model.shape, future, use_covariance, epsilon)
    same(settled(scorer, [case.view for case in cases]), by_group(weighed))


def _turn(place: int) -> Array:
    """RoPE's rotation matrix [D, D] at a position: plane i is (i, i + D / 2), with angle place / 10000^(2i / D)."""
    matrix = np.zeros((DEPTH, DEPTH))
    for i in range(DEPTH // 2):
        j, angle = i + DEPTH // 2, place / 10000.0 ** (2 * i / DEPTH)
        matrix[i, i] = matrix[j, j] = np.cos(angle)
        matrix[i, j], matrix[j, i] = -np.sin(angle), np.sin(angle)
    return matrix


# -- StreamingLLM, random -----------------------------------------------------------------------------------


def _document(*lengths: int, block_tokens: int) -> list[ChunkScores]:
    stops = np.cumsum(lengths).tolist()
    return [
        ChunkScores(np.zeros((1, 1, -(-length // block_tokens)), np.float32), (stop - length, stop), block_tokens)
        for length, stop in zip(lengths, stops, strict=True)
    ]


@pytest.mark.parametrize("tokens", [1, 4, 10, 50])
def test_streaming_keeps_sinks_and_the_most_recent(tokens: int) -> None:
    chunks = _document(20, 20, 10, block_tokens=1)
    table = BlockTable.of_chunks([chunk.extent for chunk in chunks], StreamingScorer(4).settle(chunks), 1)
    kept = UniformBudget(widen_tokens=0).choose(table, tokens).of(0, 0)
    best_first = [0, 1, 2, 3, *range(49, 3, -1)]
    assert [token for start, stop in kept for token in range(start, stop)] == sorted(best_first[:tokens])


def test_streaming_without_sinks_keeps_the_end() -> None:
    [share] = StreamingScorer(0).settle(_document(50, block_tokens=16))
    assert share[0, 0].argsort().tolist() == [0, 1, 2, 3]


def test_random_blocks_are_drawn_by_seed_and_place() -> None:
    chunks = _document(64, 64, 64, block_tokens=1)
    first = np.concatenate(RandomScorer(0).settle(chunks), axis=2)
    assert not np.array_equal(first[..., :64], first[..., 64:128])
    np.testing.assert_array_equal(first, np.concatenate(RandomScorer(0).settle(chunks), axis=2))
    assert not np.array_equal(first, np.concatenate(RandomScorer(-1).settle(chunks), axis=2))
    alone = RandomScorer(0).settle(chunks[1:2])[0]
    np.testing.assert_array_equal(
        first[..., 64:128].argsort(), alone.argsort(), "whoever draws, whatever else is there"
    )
    thirds = [int((first[0, 0].argsort()[-64:] // 64 == third).sum()) for third in range(3)]
    assert min(thirds) > 8, "no place is preferred"


class _Windowed:
    """A model whose layers all read a window; nothing else of it is asked for here."""

    def __init__(self, model: LanguageModel, window: int | None) -> None:
        self.shape = replace(model.shape, windows=(window,) * model.shape.num_layers)
