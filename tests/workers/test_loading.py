"""What ``auto`` becomes, and that asking by name for what is missing is an error that says so."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from configs.schema import Job, Model
from workers.errors import BackendUnavailable, ModelError
from workers.loading import fast_dtype, find_or_calibrate, load_engine, load_method, load_reading, resolve_runtime
from workers.selection import calibrate
from workers.selection.profile import profile_path

no_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens on a machine without CUDA")


def job(model: Path, **keep: object) -> Job:
    return Job.model_validate(
        {
            "corpus": {"path": "x.parquet"},
            "questions": [{"id": "q", "text": "Who?"}],
            "model": {"source": str(model), "device": "cpu"},
            "keep": keep,
            "output": {"path": "out"},
        }
    )


@no_cuda
def test_auto_takes_the_cpu_and_the_precision_it_is_fast_in() -> None:
    runtime = resolve_runtime(Model(source="m"))
    assert (runtime.device, runtime.dtype, runtime.attention) == ("cpu", fast_dtype("cpu"), "cpu")
    assert runtime.torch_dtype in (torch.float32, torch.bfloat16)


def test_a_gpu_is_fast_in_bfloat16_wherever_the_driver_runs() -> None:
    assert fast_dtype("cuda") == "bfloat16"


@no_cuda
def test_a_device_or_backend_that_is_not_there_is_an_error_that_names_it() -> None:
    with pytest.raises(ModelError, match=r"model\.device: cuda: no CUDA device here; allowed.*: auto, cpu"):
        resolve_runtime(Model(source="m", device="cuda"))
    for name in ("flash", "torch_flash"):
        with pytest.raises(BackendUnavailable, match="needs a CUDA device"):
            resolve_runtime(Model(source="m", attention=name))


def test_a_model_without_a_profile_is_calibrated_once(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The exam is shortened, the reading and choosing are real."""
    monkeypatch.setenv("FOVEATE_CACHE", str(tmp_path))
    whole = calibrate.Exam.of_split
    monkeypatch.setattr(calibrate.Exam, "of_split", lambda split, max_chars=None: whole(split, 2_000))
    asked = job(tiny_model)
    first = find_or_calibrate(asked, load_reading(asked))
    assert first is not None and profile_path(first.weights).is_file()
    monkeypatch.setattr(calibrate.Exam, "of_split", lambda *_: pytest.fail("calibrated twice"))
    second = find_or_calibrate(asked, load_reading(asked))
    assert second is not None and second.digest == first.digest
    assert load_engine(asked, second).store.counters.misses == 0


@pytest.mark.parametrize("scorer", [{"kind": "probe", "heads": "all"}, {"kind": "window"}], ids=["all heads", "window"])
def test_a_scorer_without_calibrated_heads_calibrates_nothing(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scorer: dict[str, object]
) -> None:
    monkeypatch.setenv("FOVEATE_CACHE", str(tmp_path))
    monkeypatch.setattr(calibrate.Exam, "of_split", lambda *_: pytest.fail("calibrated for nothing"))
    asked = job(tiny_model, scorer=scorer)
    reading = load_reading(asked)
    assert find_or_calibrate(asked, reading) is None
    method = load_method(asked, reading, None)
    assert method.scorer.record["kind"] == scorer["kind"]
    assert load_engine(asked, None).kv_shape == (3, 2)
