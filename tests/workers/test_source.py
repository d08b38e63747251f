"""Where models come from: packages, files, directories; and what says that two are the same."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from workers import source
from workers.errors import ModelError
from workers.source import locate


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOVEATE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def test_a_directory_is_fingerprinted_by_content_not_by_place(tiny_model: Path, tmp_path: Path) -> None:
    here = locate(str(tiny_model))
    there = locate(str(shutil.copytree(tiny_model, tmp_path / "copy")))
    assert (here.weights, here.tokenizer) == (there.weights, there.tokenizer)
    with (tmp_path / "copy" / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)
        file.seek(-1, 2)
        file.write(bytes([last[0] ^ 1]))
    assert locate(str(tmp_path / "copy")).weights != here.weights
    assert locate(str(tmp_path / "copy")).tokenizer == here.tokenizer


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("package:no_such_package/x.gguf", "no installed package 'no_such_package'"),
        ("package:", "expected package:NAME/FILE"),
        ("package:a.b/x.gguf", "no installed package 'a.b'"),
        ("package:../x.gguf", "no installed package '..'"),
        ("package:transformers/missing.gguf", "no such file"),
        ("nowhere/at/all.gguf", "no such file"),
        (
            "nobody/no-such-model",
            "unknown model.*allowed: a directory, a .gguf file, package:NAME/FILE.gguf, or a hub id",
        ),
        ("/no/such/directory", "unknown model"),
    ],
)
def test_a_model_that_is_not_there_is_named_with_what_is_allowed(name: str, message: str) -> None:
    with pytest.raises(ModelError, match=f"model.source: .*{message}"):
        locate(name)


def test_a_directory_without_weights_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"needs config.json and \*.safetensors"):
        locate(str(tmp_path))


def test_a_file_that_is_not_gguf_is_refused_and_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "broken.gguf").write_bytes(b"GGUF but not really")
    with pytest.raises(ModelError, match=r"broken\.gguf"):
        locate(str(tmp_path / "broken.gguf"))
    assert list((tmp_path / "cache" / "models").iterdir()) == []


def _install_in_parts(site: Path, parts: dict[str, bytes]) -> str:
    """A package whose model lies in pieces in packages beside it; what ``model.source`` calls it."""
    for package in ("cut_model", *(f"cut_model_{name}" for name in parts)):
        (site / package / "data").mkdir(parents=True)
        (site / package / "__init__.py").touch()
    for name, content in parts.items():
        (site / f"cut_model_{name}" / "data" / f"cut.gguf.{name}").write_bytes(content)
    return "package:cut_model/data/cut.gguf"


def test_a_file_in_parts_is_joined_in_the_order_of_their_numbers(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The eleventh part comes after the second. Nothing of the joined file is left beside the model."""
    whole = []

    def convert(gguf: Path, directory: Path) -> None:
        whole.append((gguf.name, gguf.read_bytes()))
        shutil.copytree(tiny_model, directory, dirs_exist_ok=True)

    monkeypatch.setattr(source, "convert_gguf", convert)
    monkeypatch.syspath_prepend(tmp_path / "site")
    pieces = {f"part{number}": bytes([number]) * 3 for number in range(11)}
    name = _install_in_parts(tmp_path / "site", pieces)
    first, second = locate(name), locate(name)
    assert whole == [("cut.gguf", b"".join(pieces.values()))]
    assert first == second and first.directory.name.startswith("cut-")
    assert not list(first.directory.glob("*.gguf"))


def test_a_part_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path / "site")
    name = _install_in_parts(tmp_path / "site", {"part00": b"a", "part02": b"c"})
    with pytest.raises(ModelError, match=r"package:cut_model/.*only its parts \[0, 2\] are installed"):
        locate(name)


def test_a_conversion_runs_once_and_under_its_name_is_complete(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The seam is the converter: finding, naming and publishing are real."""
    calls = []

    def convert(gguf: Path, directory: Path) -> None:
        calls.append(gguf)
        shutil.copytree(tiny_model, directory, dirs_exist_ok=True)

    monkeypatch.setattr(source, "convert_gguf", convert)
    (tmp_path / "model.gguf").write_bytes(b"weights")
    first, second = locate(str(tmp_path / "model.gguf")), locate(str(tmp_path / "model.gguf"))
    assert first == second and len(calls) == 1
    assert first.directory.parent == tmp_path / "cache" / "models"
    assert [path.name for path in first.directory.parent.iterdir()] == [first.directory.name]
