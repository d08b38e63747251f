"""The gate: it learns what can be learnt, says how well, is kept and found for one model, scores, and drops."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from math import log
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from configs import methods
from workers.attention.base import resolve
from workers.attention.plan import attend_picks
from workers.errors import ModelError
from workers.hf import LanguageModel, ModelShape, Tokenizer
from workers.loaded import LoadedModel
from workers.passes import SegmentPass, Sight
from workers.prompt import Frame
from workers.selection import gatetrain
from workers.selection.gate import Gate, GateHead, find_gate, gate_path, visible
from workers.selection.gatefit import THRESHOLDS, Samples, fit, measure
from workers.selection.gatetrain import FLOOR, LEAST_CHUNKS, LEAST_TOKENS, collect, train
from workers.selection.scorers.base import ChunkScores, LayerView
from workers.selection.scorers.gate import GateScorer, open_gate
from workers.source import ModelSource

WEIGHTS = "ab" * 32
WIDTH, HEADS, LAYERS = 16, 2, 2
SHAPE = ModelShape(num_layers=LAYERS, num_heads=4, num_kv_heads=HEADS, head_dim=8, window=512, windows=(None,) * LAYERS)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOVEATE_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def loaded(tiny_model: Path) -> LoadedModel:
    weights = LanguageModel(tiny_model, dtype=torch.float32, device=torch.device("cpu"))
    frame = Frame.render(Tokenizer(tiny_model), "Be brief.", "Read this.")
    return LoadedModel(weights, resolve("cpu", weights.device), frame, ModelSource(tiny_model, "weights", "tokenizer"))


def normal(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


def straight(x_NE: Tensor) -> Tensor:
    """A target that a linear head can know, one column per kv head."""
    return torch.stack((2 * x_NE[:, 0] - x_NE[:, 3], x_NE[:, 5]), dim=1) - 4.0


def bent(x_NE: Tensor) -> Tensor:
    """A target that no linear head can know."""
    return torch.stack((2 * x_NE[:, 0].abs(), x_NE[:, 5].abs() + 0.2 * x_NE[:, 1]), dim=1) - 4.0


def lessons(*, num_tokens: int = 4000, noise: float = 0.1) -> Samples:
    """Tokens whose relevance is a known function of their hidden state: straight in layer 0, bent in layer 1. Hidden
    states of different spread and mean, as real ones are."""
    spread_E = torch.linspace(0.2, 5.0, WIDTH)
    x = [normal(num_tokens, WIDTH, seed=layer) for layer in range(LAYERS)]
    noises = [noise * normal(num_tokens, HEADS, seed=9 + layer) for layer in range(LAYERS)]
    targets = (straight(x[0]) + noises[0], bent(x[1]) + noises[1])
    hidden = tuple(x_NE * spread_E + 3.0 for x_NE in x)
    return Samples(hidden, targets, np.arange(num_tokens) * 20 // num_tokens, num_tokens)


def random_gate(weights: str = WEIGHTS, seed: int = 0, inner: int = 3) -> Gate:
    """A gate that learnt nothing; its layers differ in inner width."""
    return Gate(
        weights,
        tuple(
            GateHead(
                mean_E=normal(WIDTH, seed=seed),
                std_E=normal(WIDTH, seed=seed + 1).abs() + 0.1,
                linear_EG=normal(WIDTH, HEADS, seed=seed + 2 + layer),
                bias_G=normal(HEADS, seed=seed + 4),
                inner_EW=normal(WIDTH, width, seed=seed + 5),
                inner_bias_W=normal(width, seed=seed + 6),
                outer_WG=normal(width, HEADS, seed=seed + 7),
            )
            for layer, width in enumerate((inner, 0))
        ),
        {"pearson": 0.5},
    )


# -- learning --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def taught() -> Gate:
    return fit(lessons(), WEIGHTS)


@pytest.mark.parametrize(("layer", "truth"), [(0, straight), (1, bent)])
def test_what_can_be_known_is_learnt(taught: Gate, layer: int, truth: object) -> None:
    """On tokens that training never saw, and as training says of the tokens that it held out."""
    assert callable(truth)
    x_NE = normal(500, WIDTH, seed=77)
    predicted = taught.predict(layer, x_NE * torch.linspace(0.2, 5.0, WIDTH) + 3.0)
    for head in range(HEADS):
        assert np.corrcoef(predicted[:, head], truth(x_NE)[:, head])[0, 1] > 0.9
    assert taught.measured["pearson_by_layer"][layer] > 0.9
    assert taught.measured["spearman_by_layer"][layer] > 0.85


def test_an_inner_layer_stays_where_it_is_needed(taught: Gate) -> None:
    assert len(taught.heads[1].outer_WG) > 0
    flat = replace(taught.heads[1], inner_EW=torch.zeros(WIDTH, 0), outer_WG=torch.zeros(0, HEADS))
    x_NE = normal(500, WIDTH, seed=77)
    predicted = flat.predict(x_NE * torch.linspace(0.2, 5.0, WIDTH) + 3.0)
    assert abs(np.corrcoef(predicted[:, 0], bent(x_NE)[:, 0])[0, 1]) < 0.5, "the target was not bent"


def test_an_inner_layer_goes_where_nothing_is_left_for_it() -> None:
    """Relevance that has nothing to do with the token: every epoch predicts worse than the mean."""
    samples = lessons(num_tokens=600)
    noise = tuple(normal(600, HEADS, seed=40 + layer) for layer in range(LAYERS))
    gate = fit(replace(samples, target_NG=noise), WEIGHTS)
    assert abs(gate.measured["pearson"]) < 0.3
    kept = sum(1 for head in gate.heads if len(head.outer_WG))
    assert kept == gate.measured["layers_with_inner"] < LAYERS


def test_learning_is_deterministic(taught: Gate) -> None:
    assert fit(lessons(), WEIGHTS).digest == taught.digest


def test_the_held_out_chunks_have_no_part_in_learning(taught: Gate) -> None:
    """Other targets there change what is measured and nothing else."""
    samples = lessons()
    held_out = samples.split()[2]
    targets = tuple(target.clone() for target in samples.target_NG)
    for target in targets:
        target[held_out] = target[held_out].flip(0)
    other = fit(replace(samples, target_NG=targets), WEIGHTS)
    assert other.digest == taught.digest
    assert abs(other.measured["pearson"]) < 0.2 < taught.measured["pearson"]


@given(st.lists(st.integers(1, 5), min_size=LEAST_CHUNKS, max_size=40))
def test_chunks_are_split_in_order_and_whole(lengths: list[int]) -> None:
    chunk_N = np.repeat(np.arange(len(lengths)), lengths)
    parts = Samples((), (), chunk_N, len(chunk_N)).split()
    assert parts[0].start == 0 and parts[2].stop == len(chunk_N)
    assert all(before.stop == after.start for before, after in pairwise(parts))
    chunks = [set(chunk_N[part]) for part in parts]
    assert all(chunks) and sum(map(len, chunks)) == len(lengths)
    assert len(chunks[2]) == max(1, len(lengths) // 5), "a fifth is held out"


def test_measures_of_a_known_case() -> None:
    truth = np.log(np.array([[0.5, 0.002], [0.05, 0.002], [0.005, 0.002], [0.0005, 0.002]], dtype=np.float32))
    guess = -((-truth) ** 3)  # the same order, another scale
    measured = measure([guess, truth], [truth, truth])
    assert measured["spearman_by_layer"] == [0.5, 0.5], "1 for the first head, 0 for the one that does not vary"
    pearson_by_layer = measured["pearson_by_layer"]
    assert isinstance(pearson_by_layer, list) and pearson_by_layer[1] == 0.5 > pearson_by_layer[0] > 0.4
    kept = measured["kept_fraction_of_target"]
    assert isinstance(kept, dict) and list(kept) == [f"{threshold:g}" for threshold in THRESHOLDS]
    assert kept["0.0001"] == 1.0 and kept["0.001"] == 7 / 8 and kept["0.003"] == 3 / 8 and kept["0.1"] == 1 / 8
    assert measured["kept_fraction"] != kept


def test_equal_values_share_their_rank() -> None:
    """Three that are alike: Spearman's 3 / sqrt(12) whatever their order."""
    truth = np.array([[0.0], [0.0], [0.0], [1.0]], dtype=np.float32)
    for order in ([0, 1, 2, 3], [2, 0, 1, 3]):
        guess = np.array(order, dtype=np.float32)[:, None]
        assert measure([guess], [truth])["spearman"] == pytest.approx(0.7746, abs=1e-4)


# -- keeping and finding ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("inner", [0, 3])
def test_a_saved_gate_comes_back(tmp_path: Path, inner: int) -> None:
    gate = random_gate(inner=inner)
    gate.save(tmp_path / "deep" / "g.safetensors")
    loaded = Gate.load(tmp_path / "deep" / "g.safetensors")
    assert (loaded.weights, loaded.digest, loaded.measured) == (gate.weights, gate.digest, gate.measured)
    hidden_CE = normal(7, WIDTH)
    for layer in range(LAYERS):
        assert torch.equal(loaded.predict(layer, hidden_CE), gate.predict(layer, hidden_CE))
    assert [file.name for file in (tmp_path / "deep").iterdir()] == ["g.safetensors"]


def test_auto_finds_the_cached_one_and_says_how_to_get_it() -> None:
    with pytest.raises(ModelError, match=r"read\.pruning\.file: auto: no gate .*foveate calibrate --gate --text"):
        find_gate("auto", WEIGHTS, "read.pruning.file")
    gate = random_gate()
    gate.save(gate_path(WEIGHTS))
    assert find_gate("auto", WEIGHTS).digest == gate.digest


def test_a_gate_of_other_weights_is_refused(tmp_path: Path) -> None:
    random_gate().save(tmp_path / "g.safetensors")
    with pytest.raises(ModelError, match=r"belongs to weights abab.*foveate calibrate --gate"):
        find_gate(str(tmp_path / "g.safetensors"), "cd" * 32)


def test_a_missing_gate_is_named() -> None:
    with pytest.raises(ModelError, match=r"keep\.scorer\.file: /nowhere\.safetensors: not a gate"):
        find_gate("/nowhere.safetensors", WEIGHTS)


def test_a_broken_gate_is_named(tmp_path: Path) -> None:
    """Cut short, of another program, changed in one number: never another gate."""
    path = tmp_path / "g.safetensors"
    random_gate().save(path)
    whole = path.read_bytes()
    changed = whole[:-1] + bytes([whole[-1] ^ 1])
    for content in (b"", b"{}", whole[:-8], whole.replace(b"foveate_gate", b"foveate_gaze"), changed):
        path.write_bytes(content)
        with pytest.raises(ModelError, match=r"keep\.scorer\.file: .*g\.safetensors: not "):
            find_gate(str(path), WEIGHTS)


def test_whatever_decides_predictions_changes_the_digest() -> None:
    gate = random_gate()
    digests = {gate.digest, random_gate(weights="x").digest, random_gate(inner=0).digest}
    for name, tensor in gate.heads[0].tensors.items():
        head = replace(gate.heads[0], **{name: tensor + 1e-3})
        digests.add(replace(gate, heads=(head, gate.heads[1])).digest)
    assert len(digests) == 3 + len(gate.heads[0].tensors)
    assert replace(gate, measured={}).digest == gate.digest


# -- scoring ---------------------------------------------------------------------------------------------------


def scores(loaded: LoadedModel, scorer: GateScorer, hidden_LCE: Tensor, start: int = 0) -> ChunkScores:
    """What the scorer says of a chunk with these hidden states in its layers."""
    count = hidden_LCE.shape[1]
    seen = [
        scorer.score(
            LayerView(
                layer=layer,
                queries_RHD=torch.zeros(0, 4, 8),
                keys_CGD=torch.zeros(count, HEADS, 8),
                values_CGD=torch.zeros(count, HEADS, 8),
                places_C=torch.arange(count),
                row_places_R=torch.arange(0),
                scale=1.0,
                block_tokens=4,
                model=loaded.weights,
                hidden_CE=hidden_LCE[layer],
            )
        )
        for layer in scorer.layers
    ]
    return ChunkScores(torch.cat(seen, dim=1).numpy(), (start, start + count), 4)


def test_shares_are_on_one_scale_for_the_document(loaded: LoadedModel) -> None:
    scorer = GateScorer(SHAPE, random_gate())
    chunks = [scores(loaded, scorer, normal(LAYERS, 12, WIDTH)), scores(loaded, scorer, normal(LAYERS, 6, WIDTH), 12)]
    shares = scorer.settle(chunks)
    assert [share.shape for share in shares] == [(LAYERS, HEADS, 3), (LAYERS, HEADS, 2)]
    assert min(share.min() for share in shares) >= 0
    np.testing.assert_allclose(np.concatenate(shares, axis=2).sum(axis=2).mean(), 1.0)


def test_alike_tokens_are_worth_alike_wherever_they_stand(loaded: LoadedModel) -> None:
    """In a short last block and in another chunk too."""
    scorer = GateScorer(SHAPE, random_gate())
    hidden_LCE = normal(LAYERS, 1, WIDTH).expand(-1, 10, -1)
    shares = scorer.settle([scores(loaded, scorer, hidden_LCE), scores(loaded, scorer, hidden_LCE[:, :4], 10)])
    share_LGB = np.concatenate(shares, axis=2)
    np.testing.assert_allclose(share_LGB, share_LGB[..., :1].repeat(4, axis=2), rtol=1e-5)


def test_a_block_is_worth_what_its_tokens_are_predicted_to_be(loaded: LoadedModel) -> None:
    gate = random_gate()
    hidden_LCE = normal(LAYERS, 8, WIDTH)
    [share_LGB] = GateScorer(SHAPE, gate).settle([scores(loaded, GateScorer(SHAPE, gate), hidden_LCE)])
    mass_LGB = torch.stack(
        [gate.predict(layer, hidden_LCE[layer]).exp().reshape(2, 4, HEADS).sum(dim=1).T for layer in range(LAYERS)]
    )
    np.testing.assert_allclose(share_LGB, mass_LGB / mass_LGB.sum(dim=2).mean(), rtol=1e-4)


def test_the_scorer_is_opened_for_its_model_only() -> None:
    gate = random_gate()
    gate.save(gate_path(WEIGHTS))
    scorer = open_gate(methods.GateScorer(), SHAPE, WEIGHTS)
    assert scorer.record == {"kind": "gate", "gate": gate.digest} and scorer.layers == (0, 1)
    with pytest.raises(ModelError, match=r"keep\.scorer\.file: auto: a gate for 2 layers of 2 kv heads"):
        open_gate(methods.GateScorer(), replace(SHAPE, num_layers=3), WEIGHTS)


# -- dropping while reading ------------------------------------------------------------------------------------

BOUNDS = (0, 5, 10, 13)


def readable(predicted_log_CG: Tensor, delay_tokens: int) -> list[list[list[int]]]:
    picks = visible(predicted_log_CG, BOUNDS, threshold=0.01, delay_tokens=delay_tokens)
    assert picks.row_bounds == BOUNDS
    return [[list(rows) for rows in head] for head in picks.rows]


def test_with_nothing_dropped_all_is_read() -> None:
    assert readable(torch.zeros(13, 2), 1) == [[[], list(range(5)), list(range(10))]] * 2


def test_with_everything_dropped_the_delay_window_is_read() -> None:
    gone = torch.full((13, 2), FLOOR)
    assert readable(gone, 3) == [[[], [2, 3, 4], [7, 8, 9]]] * 2
    assert readable(gone, 100) == readable(torch.zeros(13, 2), 1)


@given(
    st.lists(st.booleans(), min_size=13, max_size=13),
    st.integers(1, 14),
    st.sampled_from([0.001, 0.01, 0.5]),
)
def test_a_token_is_read_while_it_is_new_or_stays(stays: list[bool], delay: int, threshold: float) -> None:
    """Head 1 is the other way round: heads drop for themselves."""
    one, other = log(threshold), log(threshold) - 0.1
    predicted = torch.tensor([[one, other] if stay else [other, one] for stay in stays])
    picks = visible(predicted + 1e-6, BOUNDS, threshold, delay)
    for head, rows in enumerate(picks.rows):
        for start, read in zip(BOUNDS, rows, strict=False):
            expected = [t for t in range(start) if start - t <= delay or stays[t] == (head == 0)]
            assert list(read) == expected and read.dtype == np.int64


def test_dropping_nothing_is_dense_attention_and_a_dropped_token_is_not_seen() -> None:
    backend = resolve("cpu", torch.device("cpu"))
    q_THD, k_TGD, v_TGD = normal(13, 4, 8), normal(13, 2, 8, seed=1), normal(13, 2, 8, seed=2)
    dense = backend.attend(q_THD, k_TGD, v_TGD, (0, 13), (0, 13), causal=True, scale=0.3)
    nothing = visible(torch.zeros(13, 2), BOUNDS, 0.01, 1)
    torch.testing.assert_close(attend_picks(backend, q_THD, k_TGD, v_TGD, nothing, 0.3), dense)

    predicted = torch.zeros(13, 2)
    predicted[1] = FLOOR
    v_TGD[1] = 1e6
    out_THD = attend_picks(backend, q_THD, k_TGD, v_TGD, visible(predicted, BOUNDS, 0.01, 2), 0.3).out_THD
    assert out_THD[5:].abs().max() < 10 < out_THD[1:5].abs().amax(dim=-1).min()


# -- collecting ------------------------------------------------------------------------------------------------

TEXT = "".join(f"{n}: the cat number {n * n} signed it. " for n in range(40))


class Dense:
    """A watcher that computes the target from scratch: softmax in float64, nothing shared with the scorer."""

    wants_lse = True
    wants_hidden = True

    def __init__(self, chunk: slice, repeated: int) -> None:
        self.chunk, self.repeated = chunk, repeated
        self.targets: list[Tensor] = []
        self.hiddens: list[Tensor] = []

    def see(self, sight: Sight) -> None:
        q_HTD = sight.q_THD.double().transpose(0, 1)
        k_HTD = sight.k_TGD.double().repeat_interleave(2, dim=1).transpose(0, 1)
        ahead_TT = torch.ones(q_HTD.shape[1], q_HTD.shape[1], dtype=torch.bool).triu(1)
        share_HTT = (q_HTD @ k_HTD.mT * sight.scale).masked_fill(ahead_TT, float("-inf")).softmax(dim=-1)
        best_HC = share_HTT[:, -self.repeated :, self.chunk].amax(dim=1)
        self.targets.append(best_HC.reshape(HEADS, 2, -1).amax(dim=1).T)
        assert sight.hidden_TE is not None
        self.hiddens.append(sight.hidden_TE[self.chunk])


def test_the_target_is_the_most_attention_that_a_repetition_pays(loaded: LoadedModel) -> None:
    samples = collect(loaded, [TEXT], chunk_tokens=64)
    anchor, ids = loaded.frame.anchor, loaded.frame.tokenizer.encode(TEXT)[:64]
    request = loaded.frame.repetition
    sequence = [*anchor, *ids, *request, *ids]
    dense = Dense(slice(len(anchor), len(anchor) + 64), len(request) + 64)
    last = loaded.weights.shape.num_layers - 1
    loaded.weights.run(
        sequence,
        range(len(sequence)),
        SegmentPass(loaded.backend, (0, len(sequence)), last_layer=last, watchers=[dense]),
    )
    assert samples.text_tokens == len(samples.chunk_N) == len(TEXT), "one token per byte, all of them sampled"
    assert len(samples.target_NG) == len(samples.hidden_NE) == len(dense.targets) == loaded.weights.shape.num_layers
    for target_NG, truth in zip(samples.target_NG, dense.targets, strict=True):
        torch.testing.assert_close(target_NG[:64].double(), truth.log(), rtol=1e-4, atol=1e-4)
    for hidden_NE, truth in zip(samples.hidden_NE, dense.hiddens, strict=True):
        assert torch.equal(hidden_NE[:64], truth.bfloat16())


def test_long_text_is_thinned_and_sampled_the_same_way_each_time(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gatetrain, "TEXT_TOKENS", 5 * 64)
    monkeypatch.setattr(gatetrain, "SAMPLE_TOKENS", 100)
    lines: list[str] = []
    first, second = collect(loaded, [TEXT], lines.append, 64), collect(loaded, [TEXT], chunk_tokens=64)
    assert np.bincount(first.chunk_N).tolist() == [20] * 5 and first.text_tokens <= 5 * 64 < len(TEXT)
    assert all(map(torch.equal, first.hidden_NE, second.hidden_NE))
    assert all(map(torch.equal, first.target_NG, second.target_NG)) and len(lines) == 5


def test_too_little_text_is_refused(loaded: LoadedModel) -> None:
    with pytest.raises(ModelError, match=r"text to train a gate on: 100 tokens are 3 chunks .* needs 4 chunks"):
        collect(loaded, ["x" * 100], chunk_tokens=LEAST_TOKENS)


def test_a_model_is_trained_on_text(loaded: LoadedModel) -> None:
    lines: list[str] = []
    gate = train(loaded, [TEXT[:400], TEXT[400:700]], lines.append, 64)
    shape = loaded.weights.shape
    assert gate.weights == "weights" and gate.shape == (shape.num_layers, shape.num_kv_heads)
    assert len(gate.measured["pearson_by_layer"]) == shape.num_layers and -1 <= gate.measured["spearman"] <= 1
    assert gate.measured["kept_fraction"]["0.0001"] >= gate.measured["kept_fraction"]["0.1"]
    assert lines[-1] == f"trained layer {shape.num_layers} of {shape.num_layers}"
