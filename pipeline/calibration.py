"""``foveate calibrate``: what is found or trained once per model, and kept where runs look for it.

Retrieval heads (a profile), a gate, roles for kv heads (a head map). All raise ``ModelError`` or
``BackendUnavailable``.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from pydantic import ValidationError

from configs.errors import ConfigError
from configs.schema import Model, Prompt
from workers.hf import Tokenizer
from workers.loaded import LoadedModel
from workers.loading import load_model
from workers.prompt import Frame
from workers.selection.calibrate import calibrate
from workers.selection.gate import Gate, gate_path
from workers.selection.gatetrain import train
from workers.selection.headmap import HeadMap, head_map_path
from workers.selection.headprobe import HeadTrial, measure_heads
from workers.selection.profile import Profile, profile_path
from workers.source import locate

Report = Callable[[str], None]
PROBE_TOKENS = 1024
"""Text that head roles are measured on: two passes over it for each kv head."""


def model_from(**settings: str) -> Model:
    """The model with these settings. Raises ``ConfigError`` that names the option, the value and what is allowed."""
    try:
        return Model.model_validate(settings)
    except ValidationError as error:
        lines = [f"--{detail['loc'][0]}: {detail['input']!r}: {detail['msg']}" for detail in error.errors()]
        raise ConfigError("\n".join(lines)) from error


def load_neutral(model: Model) -> LoadedModel:
    """The model with the default prompt: what is found belongs to the model and not to a job."""
    source = locate(model.source)
    frame = Frame.render(Tokenizer(source.directory), Prompt().system, Prompt().instruction)
    return load_model(model, source, frame)


def calibrate_model(
    model: Model, out: Path | None, *, held_out: bool, max_chars: int | None, report: Report
) -> tuple[Profile, Path]:
    """Find the retrieval heads of ``model`` and save the profile to ``out``, or to the cache, where ``model.profile:
    auto`` looks. ``held_out`` also measures recall on questions that had no part in choosing, in as much time again;
    ``max_chars`` shortens the exam; ``report`` hears how far it is."""
    loaded = load_neutral(model)
    profile = calibrate(loaded, max_chars=max_chars, held_out=held_out, report=report)
    path = out or profile_path(loaded.source.weights)
    profile.save(path)
    return profile, path


def train_gate(model: Model, out: Path | None, *, texts: Sequence[Path], report: Report) -> tuple[Gate, Path]:
    """Train the gate of ``model`` on text files, and save it to ``out`` or to the cache, where ``file: auto`` looks."""
    words = [read_text(path) for path in texts]
    loaded = load_neutral(model)
    gate = train(loaded, words, report)
    path = out or gate_path(loaded.source.weights)
    gate.save(path)
    return gate, path


def map_heads(
    model: Model, out: Path | None, *, texts: Sequence[Path], max_free: float, report: Report
) -> tuple[HeadMap, Path]:
    """Find what each kv head of ``model`` is for, on the first ``PROBE_TOKENS`` tokens of text files; at most
    ``max_free`` of them stream or are pruned. Saved to ``out`` or to the cache, where ``map: auto`` looks."""
    words = "\n\n".join(read_text(path) for path in texts)
    loaded = load_neutral(model)
    # the passage is read twice, behind the anchor
    room = (loaded.weights.shape.window - len(loaded.frame.anchor)) // 2
    ids = loaded.frame.tokenizer.encode(words)[: min(PROBE_TOKENS, room)]
    head_map = measure_heads(loaded, ids, trial=HeadTrial(max_free=max_free), report=report)
    path = out or head_map_path(loaded.source.weights)
    head_map.save(path)
    return head_map, path


def check_out(out: Path | None) -> None:
    """Raise ``ConfigError`` for a file that cannot be written, before minutes are spent on what goes there."""
    if out is None:
        return
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        if out.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        probe = out.with_name(f".{out.name}.probe")
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ConfigError(f"--out: {out}: cannot be written: {error.strerror}") from error


def read_text(path: Path) -> str:
    """A text file. Raises ``ConfigError`` that names it."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--text: {path}: cannot be read as UTF-8 text: {error}") from error
