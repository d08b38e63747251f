"""From a job's configuration to an engine, and to what the driver needs to know of the model.

Invariants: ``auto`` is resolved here and nowhere else, once, and what it became is recorded; weights are
loaded once per process however many threads use them.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

import torch

from cache_store.store import TieredStore
from configs.schema import Job, Model, Prompt
from workers.attention.base import resolve
from workers.attention.cpu import let_onednn_multiply
from workers.engine import Engine
from workers.errors import ModelError
from workers.hf import LanguageModel, ModelShape, Tokenizer, model_shape
from workers.loaded import LoadedModel
from workers.method import Method, Stages, method_of, needs_profile
from workers.prompt import Frame
from workers.selection.calibrate import calibrate
from workers.selection.profile import Profile, find_profile, profile_path
from workers.source import ModelSource, locate

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Runtime:
    """What ``auto`` became on this machine: device, dtype and attention backend by name."""

    device: str
    dtype: str
    attention: str

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype as torch names it."""
        return getattr(torch, self.dtype)  # type: ignore[no-any-return]


def resolve_runtime(model: Model) -> Runtime:
    """Resolve device, dtype and attention. Raises ``ModelError`` for what was asked for by name and is missing."""
    device = model.device if model.device != "auto" else ("cuda" if torch.cuda.is_available() else "cpu")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ModelError(f"model.device: {device}: no CUDA device here; allowed on this machine: auto, cpu")
    if device.startswith("cuda:") and int(device.removeprefix("cuda:")) >= torch.cuda.device_count():
        raise ModelError(f"model.device: {device}: this machine has {torch.cuda.device_count()} CUDA devices")
    dtype = model.dtype if model.dtype != "auto" else fast_dtype(device)
    backend = resolve(model.attention, torch.device(device))
    if backend.name != "cpu" and dtype == "float32":
        raise ModelError(
            f"model.dtype: float32 is not supported by attention {backend.name}; allowed: bfloat16, float16"
        )
    return Runtime(device, dtype, backend.name)


def fast_dtype(device: str) -> str:
    """bfloat16 where the device multiplies it natively (CUDA; AVX512-BF16 and AMX processors, where it is two to
    four times as fast as float32), else float32: without native support bfloat16 is many times slower."""
    capable = torch.cpu.get_capabilities()
    native = device.startswith("cuda") or capable.get("avx512_bf16") or capable.get("amx_bf16")
    return "bfloat16" if native else "float32"


def with_dtype(job: Job) -> Job:
    """The job with ``model.dtype: auto`` settled here, for all workers: a driver without a GPU and its workers with
    one agree, and so do a local pool and a Ray pool on one machine."""
    if job.model.dtype != "auto":
        return job
    on_gpus = job.pool.kind == "ray" and job.pool.num_gpus > 0 and job.model.device != "cpu"
    dtype = fast_dtype("cuda") if on_gpus else resolve_runtime(job.model).dtype
    return job.model_copy(update={"model": job.model.model_copy(update={"dtype": dtype})})


@dataclass(frozen=True)
class Reading:
    """What the driver needs of the model: where it is, its sizes, and the prompt in pieces."""

    source: ModelSource
    shape: ModelShape
    frame: Frame


def load_reading(job: Job) -> Reading:
    """Locate the model (converting or downloading it where needed) and cut the prompt; no weights are loaded."""
    source = locate(job.model.source)
    tokenizer = Tokenizer(source.directory)
    frame = Frame.render(tokenizer, job.prompt.system, job.prompt.instruction)
    return Reading(source, model_shape(source.directory), frame)


def load_model(settings: Model, source: ModelSource, frame: Frame, *, is_spread: bool = False) -> LoadedModel:
    """The weights on the device that ``settings`` mean, or with ``is_spread`` on all visible GPUs, with the kernel for
    it. Raises ``ModelError`` or ``BackendUnavailable`` with what to do."""
    runtime = resolve_runtime(settings)
    device = torch.device(runtime.device)
    if device.type == "cpu":
        let_onednn_multiply(runtime.torch_dtype)
    if is_spread and device.type == "cpu":
        raise ModelError(f"model.device: {device}: a model on several GPUs is for a CUDA device; allowed: auto, cuda")
    weights = LanguageModel(source.directory, dtype=runtime.torch_dtype, device=device, is_spread=is_spread)
    return LoadedModel(weights, resolve(settings.attention, device), frame, source)


def find_or_calibrate(job: Job, reading: Reading) -> Profile | None:
    """The model's retrieval heads, where the job's scorer needs them; a model that has no profile is calibrated now,
    and the profile is cached."""
    return load_profile(job, reading) if needs_profile(job.keep) else None


def load_profile(job: Job, reading: Reading) -> Profile:
    """The model's retrieval heads, from a file, the cache or a calibration now."""
    profile = find_profile(job.model.profile, reading.source.weights)
    if profile is None:
        _log.info("no retrieval heads are known for %s: calibrating now, once, for some minutes", job.model.source)
        loaded = load_model(job.model, reading.source, reading.frame)
        # A profile belongs to the model: the job that happens to come first must not colour it with its own prompt.
        neutral = Frame.render(reading.frame.tokenizer, Prompt().system, Prompt().instruction)
        profile = calibrate(replace(loaded, frame=neutral), report=_log.info)
        profile.save(profile_path(reading.source.weights))
    return profile


def load_method(job: Job, reading: Reading, profile: Profile | None) -> Method:
    """How this job reads, keeps and answers; ``profile`` as ``find_or_calibrate`` gave it. Raises ``ModelError``."""
    stages = Stages(job.read, job.keep, job.answer)
    return method_of(stages, reading.shape, reading.source.weights, profile)


def load_engine(job: Job, profile: Profile | None) -> Engine:
    """An engine for this job, with the profile that the driver found; with ``pool.num_gpus`` above 1 its layers are
    spread over that many. Raises as ``load_model``."""
    reading = load_reading(job)
    is_spread = job.pool.kind == "ray" and job.pool.num_gpus > 1
    loaded = load_model(job.model, reading.source, reading.frame, is_spread=is_spread)
    store = TieredStore.from_config(job.store)
    return Engine(loaded, load_method(job, reading, profile), store, tenant=job.store.tenant)
