"""``a.b=value`` from a command line, laid over the values of a file.

Invariants: the file's values are never changed in place (aliases of YAML share them); an override sets one
key and leaves its neighbours as they were; what the file leaves out is first filled with the schema's default,
so that ``store.tiers[0].max_bytes=2GiB`` changes the default tier; ``Origin`` remembers every path made.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

from configs.errors import ConfigError
from configs.shape import Path, Slot, show_path
from configs.text import parse_value

_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*|\.[0-9]+|\[[0-9]+\])*")
_PART = re.compile(r"[A-Za-z_]\w*|[0-9]+")


@dataclass(frozen=True)
class Override:
    """One ``--set``: its text, where it points, and its value."""

    text: str
    path: Path
    value: object

    @property
    def label(self) -> str:
        """How messages name it."""
        return f"--set {self.text}"


@dataclass
class Origin:
    """Who wrote which path: ``file``, or the last override that set the path or something around it."""

    file: str
    paths: list[tuple[Path, str]] = field(default_factory=list)

    def of(self, path: Path) -> str:
        """The file's name, or ``--set ...``."""
        labels = [label for made, label in self.paths if path[: len(made)] == made]
        return labels[-1] if labels else self.file


def parse_override(text: str) -> Override:
    """Read ``a.b=value``, ``a[0].b=value`` or ``a.0.b=value``. Raises ``ConfigError`` that names the text."""
    key, equals, value = text.partition("=")
    key = key.strip()
    if not equals or not _PATH.fullmatch(key):
        raise ConfigError(f"--set {text}: not an override; allowed: KEY.PATH=VALUE, such as questions[0].text=Who?")
    parts = _PART.findall(key)
    path = tuple(int(part) if part[0].isdigit() else part for part in parts)
    return Override(text, path, parse_value(value, f"--set {text}"))


def apply(override: Override, values: object, root: Slot, origin: Origin) -> Any:
    """``values`` with the override in them. Raises ``ConfigError`` where its path cannot be followed."""
    made: list[Path] = []
    changed = _set(values, override, 0, root, made)
    origin.paths += [(path, override.label) for path in made]
    return changed


def _set(here: Any, override: Override, depth: int, slot: Slot | None, made: list[Path]) -> Any:
    """A copy of ``here``, which stands at ``path[:depth]``, with what lies below it set."""
    path = override.path
    if depth == len(path):
        made.append(path)
        return override.value
    part = path[depth]
    below = slot.child(part, here) if slot else None
    if isinstance(part, str) and isinstance(here, dict):
        old = here[part] if part in here else _fresh(override, depth + 1, below, made)
        return {**here, part: _set(old, override, depth + 1, below, made)}
    if isinstance(part, int) and isinstance(here, list) and part <= len(here):
        old = here[part] if part < len(here) else _fresh(override, depth + 1, below, made)
        return [*here[:part], _set(old, override, depth + 1, below, made), *here[part + 1 :]]
    name = show_path(path[:depth]) or "the job"
    if isinstance(here, list):
        raise ConfigError(f"{override.label}: {name} is a list of {len(here)}; allowed: an index, {len(here)} to add")
    what = "a mapping" if isinstance(here, dict) else repr(here)
    raise ConfigError(f"{override.label}: {name} is {what}, there is no {show_path((part,))} in it")


def _fresh(override: Override, depth: int, slot: Slot | None, made: list[Path]) -> Any:
    """What stands at a path that the file leaves out: the schema's default, else an empty container."""
    if slot is not None and slot.field is not None and not slot.field.is_required():
        return _plain(slot.field.get_default(call_default_factory=True))
    made.append(override.path[:depth])
    return [] if depth < len(override.path) and isinstance(override.path[depth], int) else {}


def _plain(default: object) -> Any:
    """A default as a file would say it: a model is a mapping of its kind and of what is not default in it."""
    if isinstance(default, BaseModel):
        fields = type(default).model_fields
        changed = {name: value for name, value in default if name == "kind" or value != fields[name].default}
        return {name: _plain(value) for name, value in changed.items()}
    return [_plain(item) for item in default] if isinstance(default, tuple) else default
