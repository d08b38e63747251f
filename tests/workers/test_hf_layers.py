"""What a pass meets in the layers: windows, each layer's own rotation, hidden states, rows that end half-way."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import transformers
from torch import Tensor
from transformers import AutoModelForCausalLM

from tests.tiny import save_tiny_gemma3
from workers.attention.cpu import CpuBackend
from workers.hf import LanguageModel, ModelShape, Pass, model_shape

SLIDING = (16, 16, None, 16)


def tokens(count: int) -> list[int]:
    return [int(token) for token in torch.randint(256, (count,), generator=torch.Generator().manual_seed(0))]


class Causal(Pass):
    """One sequence that reads itself causally, through a real backend; notes what it is shown."""

    def __init__(self, *, wants_hidden: bool = False) -> None:
        self.wants_hidden = wants_hidden
        self.seen: list[tuple[str, int]] = []
        self.hidden_states: list[Tensor] = []
        self.keys: list[Tensor] = []

    def hidden(self, layer: int, hidden_TE: Tensor) -> None:
        self.seen.append(("hidden", layer))
        self.hidden_states.append(hidden_TE)

    def attend(
        self, layer: int, q_THD: Tensor, k_TGD: Tensor, v_TGD: Tensor, scale: float, *, window: int | None
    ) -> Tensor:
        self.seen.append(("attend", layer))
        self.keys.append(k_TGD)
        rows = [0, len(q_THD)]
        return CpuBackend().attend(q_THD, k_TGD, v_TGD, rows, rows, causal=True, scale=scale, window=window).out_THD


class Shrinking(Causal):
    """Lets only the named rows of those present into each named layer."""

    def __init__(self, survivors: dict[int, list[int]]) -> None:
        super().__init__(wants_hidden=True)
        self._survivors = survivors

    def surviving(self, layer: int) -> Tensor | None:
        return torch.tensor(self._survivors[layer]) if layer in self._survivors else None


def load(directory: Path) -> LanguageModel:
    return LanguageModel(directory, dtype=torch.float32, device=torch.device("cpu"))


@torch.inference_mode()
def keys_from(model: LanguageModel, layer: int, hidden_TE: Tensor, places: Sequence[int]) -> Tensor:
    """The keys that a layer makes of hidden states, at these positions: the model's own weights, our rotation."""
    attention = model._model.model.layers[layer].self_attn
    keys_TGD = attention.k_proj(hidden_TE).unflatten(-1, (model.shape.num_kv_heads, model.shape.head_dim))
    normed = attention.k_norm(keys_TGD) if hasattr(attention, "k_norm") else keys_TGD
    return model.rotate(normed, torch.tensor(places), layer)


@pytest.fixture(scope="module")
def tiny_gemma3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_gemma3(tmp_path_factory.mktemp("tiny-gemma3"))


@pytest.fixture(params=["llama", "gemma3"])
def directory(request: pytest.FixtureRequest, tiny_model: Path, tiny_gemma3: Path) -> Path:
    return {"llama": tiny_model, "gemma3": tiny_gemma3}[request.param]


def test_a_shape_says_what_each_layer_reads(tiny_gemma3: Path, tiny_model: Path) -> None:
    assert model_shape(tiny_gemma3) == load(tiny_gemma3).shape == ModelShape(4, 4, 1, 16, 64, SLIDING)
    assert model_shape(tiny_model).windows == (None, None, None)
    assert load(tiny_gemma3).width == 32


def test_a_pass_equals_the_models_own_attention(directory: Path) -> None:
    """Forty tokens, two and a half windows, against transformers' eager attention; and windows are not ignored."""
    ids = tokens(40)
    own = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.inference_mode():
        expected = own(torch.tensor([ids])).logits[0]
    got = load(directory).run(ids, range(40), Causal(), logits_of=range(40))
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)

    class Blind(Causal):
        def attend(self, *given: object, window: int | None) -> Tensor:
            return super().attend(*given, window=None)  # type: ignore[arg-type]

    full = load(directory).run(ids, range(40), Blind(), logits_of=range(40))
    assert full is not None
    assert torch.allclose(full, expected, atol=1e-4) == (own.config.model_type == "llama")


def test_every_layer_moves_keys_by_its_own_angles(directory: Path) -> None:
    """Keys read at positions 0-19, un-rotated and moved 30 places on, are the keys that are read there. In the first
    layer; deeper ones have looked around, and a window moves with them, so their hidden states agree as well."""
    model, ids = load(directory), tokens(20)
    here, there = torch.arange(20), torch.arange(20) + 30
    read, moved = Causal(), Causal()
    model.run(ids, here.tolist(), read)
    model.run(ids, there.tolist(), moved)
    assert len(read.keys) == model.shape.num_layers
    for layer, (keys, expected) in enumerate(zip(read.keys, moved.keys, strict=True)):
        still = model.unrotate(keys, here, layer)
        torch.testing.assert_close(model.rotate(still, here, layer), keys, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(model.rotate(still, there, layer), expected, atol=1e-4, rtol=1e-4)


def test_layers_of_two_kinds_have_two_tables(tiny_gemma3: Path) -> None:
    model, keys, places = load(tiny_gemma3), torch.randn(8, 1, 16), torch.arange(8) + 40
    local, again, everywhere = (model.rotate(keys, places, layer) for layer in (0, 3, 2))
    assert torch.equal(local, again) and not torch.allclose(local, everywhere, atol=1e-2)


def test_hidden_states_are_what_the_attention_of_a_layer_is_given(directory: Path) -> None:
    """Shown before its keys are: the keys are theirs. And not shown to a pass that does not ask."""
    model, ids = load(directory), tokens(12)
    asking, other = Causal(wants_hidden=True), Causal()
    model.run(ids, range(12), asking)
    model.run(ids, range(12), other)
    layers = range(model.shape.num_layers)
    assert asking.seen == [(what, layer) for layer in layers for what in ("hidden", "attend")]
    assert other.seen == [("attend", layer) for layer in layers]
    for layer, (hidden_TE, keys_TGD) in enumerate(zip(asking.hidden_states, asking.keys, strict=True)):
        assert hidden_TE.shape == (12, model.width)
        expected = keys_from(model, layer, hidden_TE, range(12))
        torch.testing.assert_close(keys_TGD, expected, atol=1e-5, rtol=1e-5)


def test_dropping_the_last_rows_changes_nothing_for_the_others(directory: Path) -> None:
    """Nobody reads them: what is left equals a run without them, in every layer, at its own positions."""
    model, ids, places = load(directory), tokens(30), list(range(5, 35))
    whole, short, shrinking = Causal(wants_hidden=True), Causal(wants_hidden=True), Shrinking({1: [*range(24)]})
    model.run(ids, places, whole)
    model.run(ids[:24], places[:24], short)
    assert model.run(ids, places, shrinking) is not None
    assert [len(keys) for keys in shrinking.keys] == [30, *[24] * (model.shape.num_layers - 1)]
    assert torch.equal(shrinking.keys[0], whole.keys[0])
    for got, expected in (
        *zip(shrinking.keys[1:], short.keys[1:], strict=True),
        *zip(shrinking.hidden_states[1:], short.hidden_states[1:], strict=True),
    ):
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


def test_rows_that_are_left_keep_their_positions(directory: Path) -> None:
    """Rows fall twice, from the middle; the second time indices count the rows present. Whatever they then attend to,
    the keys of a layer are its hidden states', rotated to where the rows stand in the document."""
    model = load(directory)
    shrinking = Shrinking({1: [0, 2, 3, 7, 11], 2: [1, 2, 4]})
    model.run(tokens(12), range(40, 52), shrinking)
    left = {0: [*range(12)], 1: [0, 2, 3, 7, 11], 2: [2, 3, 11], 3: [2, 3, 11]}
    for layer, (hidden_TE, keys_TGD) in enumerate(zip(shrinking.hidden_states, shrinking.keys, strict=True)):
        expected = keys_from(model, layer, hidden_TE, [40 + row for row in left[layer]])
        torch.testing.assert_close(keys_TGD, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("survivors", [[3, 1], [2, 2], []], ids=["falling", "twice", "none"])
def test_survivors_are_ascending_and_somebody(tiny_model: Path, survivors: list[int]) -> None:
    with pytest.raises(AssertionError, match="ascending, at least one"):
        load(tiny_model).run(tokens(8), range(8), Shrinking({1: survivors}))


def test_a_pass_that_drops_rows_gives_no_logits(tiny_model: Path) -> None:
    with pytest.raises(AssertionError, match="dropped have no logits"):
        load(tiny_model).run(tokens(8), range(8), Shrinking({1: [0, 1]}), logits_of=[1])


def test_weights_are_never_changed_by_a_pass(directory: Path) -> None:
    model = load(directory)
    before = {name: value.clone() for name, value in model._model.state_dict().items()}
    for reading in (Causal(), Causal(wants_hidden=True), Shrinking({1: [0, 5]})):
        model.run(tokens(8), range(8), reading)
    assert all(torch.equal(before[name], value) for name, value in model._model.state_dict().items())


@pytest.mark.parametrize(
    ("family", "special", "windows"),
    [
        ("Mistral", {"sliding_window": 16}, (16, 16, 16)),
        ("Qwen2", {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1}, (None, 16, 16)),
        ("Qwen3", {"head_dim": 16}, (None, None, None)),
        ("Phi3", {}, (None, None, None)),
        ("Olmo3", {"sliding_window": 16}, (16, 16, 16)),
        ("Gemma2", {"head_dim": 16, "attn_logit_softcapping": None, "sliding_window": 16}, (16, None, 16)),
    ],
)
def test_other_families_are_read_as_they_read_themselves(
    tmp_path: Path, family: str, special: dict[str, object], windows: tuple[int | None, ...]
) -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "max_position_embeddings": 128}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    words = {"vocab_size": 300, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = getattr(transformers, f"{family}Config")(**(sizes | heads | words | special))
    torch.manual_seed(0)
    getattr(transformers, f"{family}ForCausalLM")(config).save_pretrained(tmp_path)
    own = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.inference_mode():
        expected = own(torch.tensor([tokens(40)])).logits[0]
    model = load(tmp_path)
    assert model.shape.windows == windows
    got = model.run(tokens(40), range(40), Causal(), logits_of=range(40))
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)
