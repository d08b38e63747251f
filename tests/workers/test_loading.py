"""What ``auto`` becomes, and that asking by name for what is missing is an error that says so."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from configs.schema import Job, Model
from workers.errors import BackendUnavailable, ModelError
from workers.loading import ensure_profile, fast_dtype, load_engine, load_reading, resolve_runtime
from workers.selection import calibrate
from workers.selection.profile import profile_path

no_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens on a machine without CUDA")


def job(model: Path) -> Job:
    return Job.model_validate(
        {
            "corpus": {"path": "x.parquet"},
            "questions": [{"id": "q", "text": "Who?"}],
            "model": {"source": str(model), "device": "cpu"},
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
    first = ensure_profile(asked, load_reading(asked))
    assert profile_path(first.weights).is_file()
    monkeypatch.setattr(calibrate.Exam, "of_split", lambda *_: pytest.fail("calibrated twice"))
    assert ensure_profile(asked, load_reading(asked)).digest == first.digest
    assert load_engine(asked).store.counters.misses == 0
