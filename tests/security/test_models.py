"""A model is numbers: what its directory holds is never run, and nobody is asked whether it may be."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import NoReturn

import pytest
import torch

from tests.security.bombs import BOMBS, Bomb
from workers.errors import ModelError
from workers.hf import LanguageModel, Tokenizer, model_shape
from workers.source import locate


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


@pytest.fixture
def bomb(tmp_path: Path) -> Bomb:
    return Bomb(tmp_path / "went-off")


def load(directory: Path) -> None:
    source = locate(str(directory))
    model_shape(source.directory), Tokenizer(source.directory)
    LanguageModel(source.directory, dtype=torch.float32, device=torch.device("cpu"))


@pytest.mark.parametrize("dress", BOMBS)
@pytest.mark.parametrize("beside", [False, True], ids=["alone", "beside a stray file"])
def test_a_checkpoint_that_is_a_pickle_is_refused(model: Path, bomb: Bomb, dress: str, beside: bool) -> None:
    """Alone, or where it would be loaded under the fingerprint of another file."""
    (weights,) = model.glob("*.safetensors")
    weights.rename(model / "stray.safetensors") if beside else weights.unlink()
    (model / "pytorch_model.bin").write_bytes(BOMBS[dress](bomb))
    with pytest.raises(ModelError, match="safetensors"):
        load(model)
    assert not bomb.went_off


@pytest.mark.parametrize("dress", BOMBS)
def test_weights_that_are_a_pickle_are_an_error(model: Path, bomb: Bomb, dress: str) -> None:
    (weights,) = model.glob("*.safetensors")
    weights.write_bytes(BOMBS[dress](bomb))
    with pytest.raises(ModelError, match="cannot be loaded"):
        load(model)
    assert not bomb.went_off


@pytest.mark.parametrize("kind", ["llama", "unheard-of"])
def test_code_beside_a_model_is_never_run_and_nobody_is_asked(
    model: Path, bomb: Bomb, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask(question: str = "") -> NoReturn:
        pytest.fail(f"asked: {question}")

    monkeypatch.setattr("builtins.input", ask)
    (model / "evil.py").write_text(
        f"import os\nos.mkdir({str(bomb.mark)!r})\n"
        "from transformers import LlamaConfig as Config, LlamaForCausalLM as Model, PreTrainedTokenizerFast as Words\n"
    )
    change(
        model / "config.json",
        model_type=kind,
        auto_map={"AutoModelForCausalLM": "evil.Model", "AutoConfig": "evil.Config"},
    )
    change(model / "tokenizer_config.json", tokenizer_class="Words", auto_map={"AutoTokenizer": [None, "evil.Words"]})
    for read in (model_shape, Tokenizer, load):
        try:
            read(model)
        except ModelError as error:
            assert "custom code" in str(error)
        assert not bomb.went_off


def change(path: Path, **entries: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))
