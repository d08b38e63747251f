"""What may stand at each key path of a file, read off the models of its root: for messages and overrides.

A path is a tuple of keys and list indices, shown as ``store.tiers[0].max_bytes``. A slot is one place of a
file: its type and constraints. Nothing here names a field of the schema, so that a new method of the
literature needs no line in this file.
"""

from __future__ import annotations

import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ByteSize
from pydantic.fields import FieldInfo

Path = tuple[str | int, ...]
ModelType = type[BaseModel]

_WORDS: dict[Any, str] = {
    str: "string",
    int: "integer",
    float: "number",
    bool: "true, false",
    type(None): "null",
    ByteSize: "bytes as an integer, or a string such as 512MiB or 10GiB",
}


@dataclass(frozen=True)
class Slot:
    """One place of a file. ``field`` is None for the root, which is no field of anything."""

    annotation: Any
    field: FieldInfo | None = None

    def options(self) -> tuple[Any, ...]:
        """The types that may stand here: the members of a union, or the one type."""
        return tuple(_members(self.annotation))

    @property
    def is_plain_union(self) -> bool:
        """Whether several types may stand here and none is a model; null beside one type is not a choice."""
        return not self.models() and len([o for o in self.options() if o is not type(None)]) > 1

    def models(self) -> tuple[ModelType, ...]:
        """Those of the options that are models."""
        return tuple(o for o in self.options() if isinstance(o, type) and issubclass(o, BaseModel))

    def model_for(self, value: object) -> ModelType | None:
        """The model that ``value`` is meant to be: the only one, or the one its ``kind`` names."""
        models = self.models()
        if len(models) == 1:
            return models[0]
        kind = value.get("kind") if isinstance(value, dict) else None
        return next((model for model in models if kind in kinds((model,))), None)

    def child(self, part: str | int, value: object) -> Slot | None:
        """The slot at key or index ``part`` of ``value``, which stands here; None where there is none."""
        if isinstance(part, int):
            return next(iter(self.items()), None)
        model = self.model_for(value)
        field = model.model_fields.get(part) if model else None
        return Slot(field.annotation, field) if field else None

    def items(self) -> tuple[Slot, ...]:
        """The slot of a list's items, where a list may stand here."""
        lists = [get_args(option)[0] for option in self.options() if get_origin(option) is tuple]
        return tuple(Slot(item, FieldInfo.from_annotation(item)) for item in lists)

    def choices(self) -> tuple[str, ...]:
        """The words that may stand here, where it is a choice among words."""
        options = [option for option in self.options() if get_origin(option) is Literal]
        return tuple(str(word) for option in options for word in get_args(option))

    def allowed(self) -> str:
        """What may stand here, in words."""
        if self.field is not None and self.field.description:
            return self.field.description
        models = self.models()
        if len(models) > 1:
            return f"mapping with kind: {' or '.join(kinds(models))}"
        limits = _limits(self.field.metadata) if self.field else ""
        return ", ".join(_word(option) + limits for option in self.options())


def _members(annotation: Any) -> Iterator[Any]:
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from _members(get_args(annotation)[0])
    elif origin in (Union, types.UnionType):
        for member in get_args(annotation):
            yield from _members(member)
    else:
        yield annotation


def _word(option: Any) -> str:
    if get_origin(option) is Literal:
        return ", ".join(str(word) for word in get_args(option))
    if get_origin(option) is tuple:
        return f"list of ({Slot(option).items()[0].allowed()})"
    if option in _WORDS:
        return _WORDS[option]
    return f"mapping with the keys {', '.join(option.model_fields)}"


def _limits(metadata: list[Any]) -> str:
    """Constraints as text: `` >= 1``, ``, not empty``."""
    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    bounds = [f"{sign} {getattr(m, name):g}" for m in metadata for name, sign in signs.items() if hasattr(m, name)]
    text = f" {' and '.join(bounds)}" if bounds else ""
    return text + (", not empty" if any(getattr(m, "min_length", 0) for m in metadata) else "")


def kinds(models: tuple[ModelType, ...]) -> tuple[str, ...]:
    """The ``kind`` of each model."""
    fields = [model.model_fields["kind"] for model in models if "kind" in model.model_fields]
    return tuple(str(word) for field in fields for word in get_args(field.annotation))


def show_path(path: Path) -> str:
    """``("store", "tiers", 0, "path")`` as ``store.tiers[0].path``."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return text.removeprefix(".")


def all_keys(slot: Slot, path: Path = ()) -> Iterator[Path]:
    """Every key path below ``slot``, through all kinds; the items of lists have index 0."""
    for model in slot.models():
        for name, field in model.model_fields.items():
            yield (*path, name)
            yield from all_keys(Slot(field.annotation, field), (*path, name))
    for item in slot.items():
        yield from all_keys(item, (*path, 0))
