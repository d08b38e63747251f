"""pydantic's errors as lines a user can act on: ``FILE: key.path: VALUE is ...; allowed: ...``.

Invariants: every error becomes one line, no line comes twice, and the order is the schema's; the value
shown is the user's own; a line that an override caused names the override and not the file.
"""

from __future__ import annotations

import difflib
import json
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from configs.closed import Conflict, Impossible
from configs.overrides import Origin
from configs.shape import Path, Slot, all_keys, kinds, show_path

_LIKE = 0.7  # how alike two keys are to be taken for one; at difflib's own 0.6 "windw" is like "kind"
_TYPE_NAMES = {
    bool: "a boolean",
    int: "an integer",
    float: "a number",
    str: "a string",
    list: "a list",
    dict: "a mapping",
    type(None): "no value",
}
_WRONG = {
    "greater_than": "is too small",
    "greater_than_equal": "is too small",
    "less_than": "is too large",
    "less_than_equal": "is too large",
    "finite_number": "is not finite",
    "string_too_short": "is empty",
    "string_too_long": "is too long",
}


def explain(error: ValidationError, values: object, origin: Origin, root: Slot) -> list[str]:
    """One line for each problem in ``values``, the plain values that ``root`` was to be made of."""
    lines: list[str] = []
    details = error.errors(include_url=False)
    broken = [detail["loc"] for detail in details]
    for detail in details:
        if detail["type"] == "too_short" and any(_inside(loc, detail["loc"]) for loc in broken):
            continue  # a list whose only items are wrong is not also called empty
        reason = detail.get("ctx", {}).get("error")
        if isinstance(reason, Impossible):
            lines += [_conflict_line(conflict, origin) for conflict in reason.conflicts]
        else:
            lines.append(_line(detail, values, origin, root))
    return list(dict.fromkeys(lines))


def _inside(location: tuple[int | str, ...], around: tuple[int | str, ...]) -> bool:
    return len(location) > len(around) and location[: len(around)] == around


def _conflict_line(conflict: Conflict, origin: Origin) -> str:
    labels = [origin.of(_path_of(key)) for key in conflict.keys]
    overrides = dict.fromkeys(label for label in labels if label != origin.file)
    return f"{', '.join(overrides) or origin.file}: {conflict.message}"


def _path_of(key: str) -> Path:
    parts = key.replace("[", ".").replace("]", "").split(".")
    return tuple(int(part) if part.isdigit() else part for part in parts)


def _line(detail: ErrorDetails, values: object, origin: Origin, root: Slot) -> str:
    path, slot = _locate(detail["loc"], values, root)
    kind = detail["type"]
    if kind == "extra_forbidden":
        return f"{_blame(path, origin)}: {show_path(path)}: {_unknown_key(path, slot, values, root)}"
    if kind.startswith("union_tag"):
        path, missing = (*path, "kind"), kind == "union_tag_not_found"
        choices = kinds(slot.models())
        allowed = ", ".join(choices)
    else:
        missing, allowed, choices = kind == "missing", slot.allowed(), slot.choices()
    value = _at(values, path)
    problem = "missing" if missing else f"{show(value)}{_what_is_wrong(kind, slot, value)}"
    hint = "" if missing else _did_you_mean(value, choices)
    return f"{_blame(path, origin)}: {show_path(path)}: {problem}; allowed: {allowed}{hint}"


def _locate(location: tuple[int | str, ...], values: object, root: Slot) -> tuple[Path, Slot]:
    """The path and slot that pydantic's location means. It names the chosen kind of a union, and of a plain
    union the member that failed: neither is a key. For an unknown key the slot is its parent's."""
    path: Path = ()
    slot, kind_is_next = root, False
    for part in location:
        if kind_is_next:
            kind_is_next = False
            continue
        if slot.is_plain_union:
            break
        below = slot.child(part, _at(values, path))
        path = (*path, part)
        if below is None:
            break
        slot = below
        kind_is_next = len(slot.models()) > 1
    return path, slot


def _at(values: Any, path: Path) -> Any:
    """What stands at ``path``, None where nothing does."""
    for part in path:
        if isinstance(values, list) and isinstance(part, int):
            values = values[part]
        else:
            values = values.get(part) if isinstance(values, dict) else None
    return values


def _blame(path: Path, origin: Origin) -> str:
    """Who wrote ``path``; an override of the ``kind`` beside it shares the blame."""
    own, beside = origin.of(path), origin.of((*path[:-1], "kind"))
    return own if beside in (own, origin.file) else f"{own}, {beside}"


def _unknown_key(path: Path, slot: Slot, values: object, root: Slot) -> str:
    """Say where the key was meant to stand: under a like name, beside another kind, or in another section."""
    parent, name = _at(values, path[:-1]), str(path[-1])
    model = slot.model_for(parent)
    keys = tuple(model.model_fields) if model else ()
    allowed = f"allowed: {', '.join(keys)}"
    close = difflib.get_close_matches(name, keys, 1, _LIKE)
    if close:
        return f"unknown key; did you mean {close[0]}? {allowed}"
    siblings = kinds(tuple(other for other in slot.models() if name in other.model_fields))
    if siblings:
        return f"unknown key for kind: {parent['kind']}, known for kind: {' or '.join(siblings)}; {allowed}"
    elsewhere = [show_path(key) for key in all_keys(root) if key[-1] == name and name != "kind"]
    hint = f"did you mean {' or '.join(elsewhere)}? " if elsewhere else ""
    return f"unknown key; {hint}{allowed}"


def _what_is_wrong(kind: str, slot: Slot, value: object) -> str:
    """What the value is instead; nothing for a choice among words, and for a plain union, whose members all
    failed for reasons of their own: there the list of what is allowed says it."""
    if slot.is_plain_union:
        return ""
    if kind in _WRONG:
        return f" {_WRONG[kind]}"
    if kind == "byte_size" and type(value) in (int, str):
        return " is negative" if isinstance(value, int) else " is not a size"
    typed = kind.endswith("_type") or kind == "byte_size"
    return f" is {_TYPE_NAMES[type(value)]}" if typed and value is not None else ""


def _did_you_mean(value: object, choices: tuple[str, ...]) -> str:
    close = difflib.get_close_matches(str(value).lower(), choices, 1)
    return f"; did you mean {close[0]}?" if close else ""


def show(value: object) -> str:
    """A value as a user would write it, on one line and not too long."""
    text = repr(value) if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:60]} ... ({len(text)} characters)"
