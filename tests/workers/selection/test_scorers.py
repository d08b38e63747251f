"""Laws of scorers: every one of them says what is relevant, wherever a chunk stands and whoever read it; in a model
whose layers all read everything and in one of which most read a window."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch

from configs import methods
from tests.tiny import save_tiny_gemma3
from tests.workers.engines import profile_of
from tests.workers.selection.scorers.readings import Reader, tokens
from workers.errors import ModelError
from workers.hf import ModelShape
from workers.selection.gate import Gate, GateHead
from workers.selection.profile import Profile
from workers.selection.scorers import scorer_of
from workers.selection.scorers.base import Scorer

CASES: dict[str, tuple[methods.Scorer, bool]] = {
    "probe": (methods.ProbeScorer(), True),
    "probe, all heads": (methods.ProbeScorer(heads="all"), True),
    "window, question known": (methods.WindowScorer(window_tokens=6, pool_tokens=1), True),
    "window, question unknown": (methods.WindowScorer(window_tokens=6), False),
    "accumulated": (methods.AccumulatedScorer(), False),
    "streaming": (methods.StreamingScorer(), False),
    "expected": (methods.ExpectedScorer(future_tokens=40), False),
    "reconstruct": (methods.ReconstructScorer(), False),
    "keydiff": (methods.KeyDiffScorer(), False),
    "gate": (methods.GateScorer(), False),
    "random": (methods.RandomScorer(), False),
    "index": (methods.IndexScorer(lexical=0), False),
}
POSITIONAL = ("window, question unknown", "streaming", "random")
"""Those that know where in its document a chunk stands, when they settle."""
CONTENT = ("probe", "probe, all heads", "index", "window, question known", "expected", "reconstruct", "keydiff")
"""Those to whom two equal keys with equal values are equal, wherever in the chunk they stand."""
MEANS = {"expected": (0, 2), "reconstruct": (0,), "keydiff": (0,), "gate": (0,)}
"""Those whose blocks are worth the mean of their tokens, and in which rows of what they report."""

every = pytest.mark.parametrize("case", CASES)


@pytest.fixture(scope="module", params=["llama", "gemma3"])
def reader(request: pytest.FixtureRequest, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Reader:
    windowed = request.param == "gemma3"
    directory = save_tiny_gemma3(tmp_path_factory.mktemp("tiny-gemma3"), window=2048) if windowed else tiny_model
    return Reader(directory, anchor=tokens(9, seed=1), question=tokens(11, seed=2))


@pytest.fixture(scope="module")
def gate_file(reader: Reader, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A gate that nobody trained."""
    generator = torch.Generator().manual_seed(0)
    shape, width = reader.model.shape, reader.model.width
    heads = tuple(
        GateHead(
            mean_E=torch.zeros(width),
            std_E=torch.ones(width),
            linear_EG=torch.randn(width, shape.num_kv_heads, generator=generator),
            bias_G=torch.zeros(shape.num_kv_heads),
            inner_EW=torch.zeros(width, 0),
            inner_bias_W=torch.zeros(0),
            outer_WG=torch.zeros(0, shape.num_kv_heads),
        )
        for _ in range(shape.num_layers)
    )
    path = tmp_path_factory.mktemp("gate") / "gate.safetensors"
    Gate("tiny", heads).save(path)
    return path


@pytest.fixture
def scorer(case: str, reader: Reader, gate_file: Path) -> Scorer:
    settings, known = CASES[case]
    if isinstance(settings, methods.GateScorer):
        settings = settings.model_copy(update={"file": str(gate_file)})
    shape = reader.model.shape
    return scorer_of(settings, question_known=known, shape=shape, profile=profile_of(shape), weights="tiny")


def test_every_kind_that_a_job_can_name_sits_these_laws() -> None:
    kinds = {model.model_fields["kind"].default for model in get_args(get_args(methods.Scorer)[0])}
    assert {settings.kind for settings, _ in CASES.values()} == kinds


@every
def test_a_record_is_plain_and_names_its_kind(case: str, scorer: Scorer) -> None:
    assert json.loads(json.dumps(scorer.record)) == scorer.record
    assert scorer.record["kind"] == CASES[case][0].kind


@every
def test_rows_and_layers_exist(scorer: Scorer, reader: Reader) -> None:
    assert list(scorer.layers) == sorted({*scorer.layers} & {*reader.model.shape.full_layers})
    for length in (1, 5, 40):
        rows = scorer.rows((0, length), length)
        assert 0 <= rows.start <= rows.stop <= length
        assert bool(len(rows)) == (scorer.observer != "nobody")


@every
@pytest.mark.parametrize("block_tokens", [1, 16])
def test_scores_have_one_shape_for_chunks_of_any_length(scorer: Scorer, reader: Reader, block_tokens: int) -> None:
    rows = set()
    for length in (48, 37, 1):
        for view in reader.views(scorer, tokens(length), block_tokens):
            tensors = (view.queries_RHD, view.keys_CGD, view.values_CGD)
            before = [tensor.clone() for tensor in tensors]
            log_RhB = scorer.score(view)
            assert all(torch.equal(old, new) for old, new in zip(before, tensors, strict=True))
            assert log_RhB.dtype == torch.float32 and log_RhB.shape[2] == -(-length // block_tokens)
            assert not log_RhB.isnan().any() and not log_RhB.isposinf().any()
            rows.add(log_RhB.shape[0])
    assert len(rows) == bool(scorer.layers)


@every
@pytest.mark.parametrize("block_tokens", [1, 16])
@pytest.mark.parametrize("lengths", [(48, 48, 21), (64,), (1,), (48, 1)])
def test_shares_sum_to_one(scorer: Scorer, reader: Reader, block_tokens: int, lengths: tuple[int, ...]) -> None:
    chunks = reader.document(scorer, [tokens(length, seed=length) for length in lengths], block_tokens)
    shares = scorer.settle(chunks)
    assert [share.shape[2] for share in shares] == [len(chunk.starts_B) for chunk in chunks]
    _check(np.concatenate(shares, axis=2), reader.model.shape)


@every
def test_a_chunk_without_any_mass_breaks_nothing(scorer: Scorer, reader: Reader) -> None:
    loud, silent = reader.document(scorer, [tokens(48), tokens(40)], 16)
    silent = replace(silent, log_RHB=np.full_like(silent.log_RHB, -np.inf))
    _check(np.concatenate(scorer.settle([loud, silent]), axis=2), reader.model.shape)


@every
def test_equal_chunks_score_equally(case: str, scorer: Scorer, reader: Reader) -> None:
    """Whoever reads them, in whichever order, wherever they stand; only settling may know positions."""
    first, other = tokens(48), tokens(40, seed=5)
    document = [reader.scores(scorer, *at, 16) for at in ((first, 0), (other, 48), (first, 88))]
    reversed_ = [reader.scores(scorer, *at, 16) for at in ((first, 88), (other, 48), (first, 0))][::-1]
    for mine, yours in zip(document, reversed_, strict=True):
        np.testing.assert_array_equal(mine.log_RHB, yours.log_RHB)
    np.testing.assert_array_equal(document[0].log_RHB, document[2].log_RHB)
    shares = scorer.settle(document)
    if case not in POSITIONAL and case.partition(",")[0] not in (
        "probe",
        "index",
    ):  # there blocks hear their neighbours in other chunks
        np.testing.assert_allclose(shares[0], shares[2], rtol=1e-12)
    elif case in POSITIONAL:
        assert not np.allclose(shares[0], shares[2])


@every
def test_a_block_holds_what_its_tokens_hold(case: str, scorer: Scorer, reader: Reader) -> None:
    """A shorter last block holds its tokens' mass, or where a block is worth their mean, as much as a whole one."""
    for fine, coarse in zip(*(reader.views(scorer, tokens(37), size) for size in (1, 16)), strict=True):
        mass_RhC, found_RhB = scorer.score(fine).exp(), scorer.score(coarse).exp()
        for row in range(len(mass_RhC)):
            whole = 16 / 5 if row in MEANS.get(case, ()) else 1.0
            starts = ((0, 1.0), (16, 1.0), (32, whole))
            blocks = [mass_RhC[row, :, start : start + 16].sum(dim=1) * scale for start, scale in starts]
            torch.testing.assert_close(found_RhB[row], torch.stack(blocks, dim=1), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("case", CONTENT)
def test_equal_pairs_score_equally(scorer: Scorer, reader: Reader) -> None:
    for view in reader.views(scorer, tokens(40), 1):
        keys, values = view.keys_CGD.clone(), view.values_CGD.clone()
        keys[31], values[31] = keys[4], values[4]
        log_RhC = scorer.score(replace(view, keys_CGD=keys, values_CGD=values))
        torch.testing.assert_close(log_RhC[..., 31], log_RhC[..., 4], rtol=1e-5, atol=1e-5)
        assert not torch.allclose(log_RhC[..., 31], log_RhC[..., 5])


@every
def test_layers_with_a_window_keep_what_the_others_want(scorer: Scorer, reader: Reader) -> None:
    shape = reader.model.shape
    windowed = [layer for layer in range(shape.num_layers) if layer not in shape.full_layers]
    for share_LGB in scorer.settle(reader.document(scorer, [tokens(48), tokens(21, seed=3)], 16)):
        if len(share_LGB) > 1:
            wanted_B = share_LGB[list(shape.full_layers)].mean(axis=(0, 1))
            np.testing.assert_allclose(share_LGB[windowed], np.tile(wanted_B, (len(windowed), shape.num_kv_heads, 1)))


def test_a_profile_of_heads_that_cannot_look_over_a_chunk_is_refused() -> None:
    shape = ModelShape(4, 4, 1, 16, 64, windows=(16, 16, None, 16))
    chosen = {"question_known": True, "shape": shape, "weights": "tiny"}
    scorer_of(methods.ProbeScorer(), profile=Profile("tiny", ((2, 0), (2, 3))), **chosen)
    with pytest.raises(ModelError, match=r"model\.profile: head 3 of layer 1 cannot look.*allowed: .* layers \[2\]"):
        scorer_of(methods.ProbeScorer(), profile=Profile("tiny", ((2, 0), (1, 3))), **chosen)


def test_a_profile_from_before_there_was_an_index_is_refused_for_one() -> None:
    shape = ModelShape(4, 4, 1, 16, 64, windows=(None,) * 4)
    with pytest.raises(ModelError, match=r"model\.profile: .*no heads for keep\.scorer\.kind: index.*calibrate"):
        scorer_of(
            methods.IndexScorer(), profile=Profile("tiny", ((2, 0),)), question_known=False, shape=shape, weights="tiny"
        )


def _check(share_LGB: np.ndarray, shape: ModelShape) -> None:
    """Non-negative shares of one document, for all layers and kv heads or for all of them at once."""
    layers, heads, _ = share_LGB.shape
    assert layers in (1, shape.num_layers) and heads in (1, shape.num_kv_heads)
    assert share_LGB.dtype == np.float64 and (share_LGB >= 0.0).all()
    np.testing.assert_allclose(share_LGB.sum(axis=2).mean(), 1.0, rtol=1e-9)
