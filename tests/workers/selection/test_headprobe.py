"""Trying heads: a role changes what it should and nothing else, and a head that does nothing is found prunable."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.tiny import save_tiny_model
from workers.attention.base import resolve
from workers.errors import ModelError
from workers.hf import LanguageModel, Tokenizer
from workers.loaded import LoadedModel
from workers.prompt import Frame
from workers.selection.headmap import HeadMap, Role
from workers.selection.headprobe import CopyText, HeadProbe, HeadTrial, RolePass, measure_heads
from workers.source import ModelSource

CPU = torch.device("cpu")
TRIAL = HeadTrial(sink_tokens=2, window_tokens=6, max_loss_rise=0.0)
TEXT = tuple(int(token) for token in np.random.default_rng(0).integers(256, size=80))
T, H, G, D = 20, 4, 2, 8


def loaded_from(directory: Path) -> LoadedModel:
    model = LanguageModel(directory, dtype=torch.float32, device=CPU)
    frame = Frame.render(Tokenizer(directory), "Be brief.", "Read this.")
    return LoadedModel(model, resolve("cpu", CPU), frame, ModelSource(directory, "weights", "tokenizer"))


@pytest.fixture(scope="module")
def loaded(tiny_model: Path) -> LoadedModel:
    return loaded_from(tiny_model)


def attend(roles: tuple[Role, Role], window: int | None = None) -> torch.Tensor:
    torch.manual_seed(0)
    q_THD, k_TGD, v_TGD = torch.randn(T, H, D), torch.randn(T, G, D), torch.randn(T, G, D)
    reading = RolePass(resolve("cpu", CPU), (roles,), sinks=3, window=5)
    return reading.attend(0, q_THD, k_TGD, v_TGD, 0.3, window=window)


@pytest.mark.parametrize("window", [None, 7])
@pytest.mark.parametrize("role", ["pruned", "streaming"])
def test_a_role_changes_its_own_query_heads_and_no_other(role: Role, window: int | None) -> None:
    intact, changed = attend(("retrieval", "retrieval"), window), attend(("retrieval", role), window)
    assert torch.equal(changed[:, :2], intact[:, :2])
    if role == "pruned":
        assert not changed[:, 2:].any()
    else:
        # Sinks and window together are all there is for the first rows.
        torch.testing.assert_close(changed[:8, 2:], intact[:8, 2:])
        assert not torch.isclose(changed[9:, 2:], intact[9:, 2:]).all(dim=-1).any()


@pytest.mark.parametrize("window", [None, 7, 3])
def test_streaming_heads_read_sinks_and_window(window: int | None) -> None:
    torch.manual_seed(0)
    q_THD, k_TGD, v_TGD = torch.randn(T, H, D), torch.randn(T, G, D), torch.randn(T, G, D)
    out_THD = attend(("streaming", "streaming"), window)
    for row in range(T):
        keys = [k for k in range(row + 1) if (k < 3 or row - k < 5) and (window is None or row - k < window)]
        for head in range(H):
            weights = torch.softmax(k_TGD[keys, head // 2].double() @ q_THD[row, head].double() * 0.3, dim=0)
            expected = weights @ v_TGD[keys, head // 2].double()
            torch.testing.assert_close(out_THD[row, head].double(), expected, rtol=1e-4, atol=1e-5)


def test_a_window_as_long_as_the_text_costs_nothing_and_a_short_one_something(loaded: LoadedModel) -> None:
    text = CopyText.of(loaded.frame.anchor, TEXT, 20, TRIAL)
    streaming = HeadMap.from_scores("", np.zeros((3, 2)), 0.0)
    everything = HeadProbe(loaded, text, HeadTrial(sink_tokens=2, window_tokens=1000))
    base = everything.losses(everything.intact)
    assert everything.losses(streaming).change(base) < 1e-5
    assert HeadProbe(loaded, text, TRIAL).losses(streaming).change(base) > 1e-4


def test_what_is_scored_is_the_text_between_and_the_copy() -> None:
    text = CopyText.of((7, 8, 9), TEXT, 20, TRIAL)
    assert text.token_ids == (7, 8, 9, *TEXT, *TEXT[:20])
    assert [text.token_ids[place] for place in text.between] == list(TEXT[20:])
    assert [text.token_ids[place] for place in text.copy] == list(TEXT[1:20])


@pytest.mark.parametrize("idle", [(0, 1), (2, 0)])
def test_a_head_whose_output_goes_nowhere_is_found_prunable(tmp_path: Path, idle: tuple[int, int]) -> None:
    directory = save_tiny_model(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(directory)
    with torch.no_grad():
        model.model.layers[idle[0]].self_attn.o_proj.weight[:, idle[1] * 16 : idle[1] * 16 + 16] = 0
    model.save_pretrained(directory)
    head_map = measure_heads(loaded_from(directory), TEXT, passage_tokens=20, trial=TRIAL)
    change_LG = np.array(head_map.measured["change_pruned_LG"])
    assert np.argwhere(change_LG == 0).tolist() == [list(idle)]
    assert head_map.roles_LG[idle[0]][idle[1]] == "pruned"


def test_every_head_has_a_role_and_the_map_says_what_it_costs(loaded: LoadedModel, tmp_path: Path) -> None:
    lines: list[str] = []
    trial = HeadTrial(sink_tokens=2, window_tokens=6, max_free=0.7, max_loss_rise=0.002)
    head_map = measure_heads(loaded, TEXT, passage_tokens=20, trial=trial, report=lines.append)
    assert head_map.weights == "weights" and head_map.shape == (3, 2)
    assert head_map.fraction_of("retrieval") == pytest.approx(1 - 4 / 6), "at most 0.7 of six heads are free"
    assert head_map.measured["map"]["retrieval"] == pytest.approx(2 / 6, abs=1e-4)
    curve = head_map.measured["pruning"]
    assert [point["pruned"] for point in curve] == [0.0, 0.05, 0.1, 0.2, 0.4]
    assert curve[0]["top1_agreement"] == 1.0
    assert curve[-1]["perplexity_copy"] != curve[0]["perplexity_copy"]
    assert len(lines) >= 6
    head_map.save(tmp_path / "m.json")
    assert json.loads((tmp_path / "m.json").read_text())["measured"] == head_map.measured


def test_pruning_stays_within_the_loss_that_is_allowed(loaded: LoadedModel) -> None:
    """All heads are free to prune at any cost, none at a gain that no pruning brings."""
    any_cost = HeadTrial(sink_tokens=2, window_tokens=6, max_free=1.0, max_loss_rise=100.0)
    assert measure_heads(loaded, TEXT, passage_tokens=20, trial=any_cost).fraction_of("pruned") == 1.0
    a_gain = HeadTrial(sink_tokens=2, window_tokens=6, max_free=1.0, max_loss_rise=-100.0)
    free = measure_heads(loaded, TEXT, passage_tokens=20, trial=a_gain)
    assert free.fraction_of("pruned") == 0.0 and free.fraction_of("streaming") == 1.0


@pytest.mark.parametrize(("length", "passage"), [(20, 20), (80, 3)])
def test_a_text_too_short_to_copy_over_a_distance_is_refused(loaded: LoadedModel, length: int, passage: int) -> None:
    with pytest.raises(ModelError, match=r"measuring heads: .*allowed: a passage of at least 4 tokens.* at least 8 "):
        measure_heads(loaded, TEXT[:length], passage_tokens=passage, trial=TRIAL)


def test_a_text_beyond_the_window_is_refused(loaded: LoadedModel) -> None:
    with pytest.raises(ModelError, match=r"measuring heads: .*window holds 2048"):
        measure_heads(loaded, TEXT * 26, passage_tokens=20, trial=TRIAL)
