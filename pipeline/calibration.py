"""``foveate calibrate``: find a model's retrieval heads and keep the profile where runs look for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pydantic import ValidationError

from configs.errors import ConfigError
from configs.schema import Model, Prompt
from workers.hf import Tokenizer
from workers.loading import load_model
from workers.prompt import Frame
from workers.selection.calibrate import calibrate
from workers.selection.profile import Profile, profile_path
from workers.source import locate


def model_from(**settings: str) -> Model:
    """The model with these settings. Raises ``ConfigError`` that names the option, the value and what is allowed."""
    try:
        return Model.model_validate(settings)
    except ValidationError as error:
        lines = [f"--{detail['loc'][0]}: {detail['input']!r}: {detail['msg']}" for detail in error.errors()]
        raise ConfigError("\n".join(lines)) from error


def calibrate_model(
    model: Model, out: Path | None, *, held_out: bool, max_chars: int | None, report: Callable[[str], None]
) -> tuple[Profile, Path]:
    """Calibrate ``model`` and save its profile to ``out``, or to the cache, where ``model.profile: auto`` looks.

    ``held_out`` also measures recall on questions that had no part in choosing, in as much time again;
    ``max_chars`` shortens the exam; ``report`` hears how far it is. Raises ``ModelError`` or
    ``BackendUnavailable``.
    """
    source = locate(model.source)
    frame = Frame.render(Tokenizer(source.directory), Prompt().system, Prompt().instruction)
    loaded = load_model(model, source, frame)
    profile = calibrate(loaded, max_chars=max_chars, held_out=held_out, report=report)
    path = out or profile_path(source.weights)
    profile.save(path)
    return profile, path
