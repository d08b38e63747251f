"""YAML text to plain values, and back: only what a job needs, read the way YAML 1.2 says.

Invariants: values are dict, list, str, int, float, bool or None, and keys are strings as they are written;
``yes``, ``010`` and ``2024-01-01`` are not a boolean, an octal number and a date, as they were in YAML 1.1;
``2_000_000`` is a number; a key given twice, a tag that makes another type, half a surrogate pair and a value
that contains itself are errors with line and column; ``parse(dump(value)) == value``.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from configs.errors import ConfigError

_TAG = "tag:yaml.org,2002:"
_NUMBER = r"[-+]?(\.[0-9][0-9_]*|[0-9][0-9_]*(\.[0-9_]*)?)([eE][-+]?[0-9]+)?"
# YAML 1.2's core schema and underscores in numbers; the first pattern that fits all of a plain scalar wins.
_PLAIN: list[tuple[str, re.Pattern[str]]] = [
    (_TAG + "null", re.compile(r"(~|null|Null|NULL|)\Z")),
    (_TAG + "bool", re.compile(r"(true|True|TRUE|false|False|FALSE)\Z")),
    (_TAG + "int", re.compile(r"([-+]?[0-9][0-9_]*|0o[0-7]+|0x[0-9a-fA-F]+)\Z")),
    (_TAG + "float", re.compile(rf"({_NUMBER}|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))\Z")),
]


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers = {None: _PLAIN}  # noqa: RUF012  (None: whatever the first character)
    yaml_constructors = {}  # noqa: RUF012  (PyYAML's own class-level table, filled below)


class _Dumper(yaml.SafeDumper):
    yaml_implicit_resolvers = {None: _PLAIN}  # noqa: RUF012


def _quoted(dumper: _Dumper, text: str) -> yaml.Node:
    """Text that is not all printable in double quotes: PyYAML writes U+0085 bare and reads it as a space."""
    return dumper.represent_scalar(_TAG + "str", text, style=None if text.isprintable() else '"')


_Dumper.add_representer(str, _quoted)


def _refuse(problem: str, node: yaml.Node) -> yaml.constructor.ConstructorError:
    return yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


def _mapping(loader: _Loader, node: yaml.Node) -> dict[str, Any]:
    if not isinstance(node, yaml.MappingNode):
        raise _refuse(f"expected a mapping for {node.tag}", node)
    first_line: dict[str, int] = {}
    values: dict[str, Any] = {}
    for key_node, value_node in node.value:
        if not isinstance(key_node, yaml.ScalarNode):
            raise _refuse("a key is a mapping or a list; allowed: a word", key_node)
        key = str(key_node.value)
        if key in first_line:
            raise _refuse(f"key {key!r} is given twice (first on line {first_line[key]})", key_node)
        first_line[key] = key_node.start_mark.line + 1
        values[key] = loader.construct_object(value_node, deep=True)
    return values


def _sequence(loader: _Loader, node: yaml.Node) -> list[Any]:
    if not isinstance(node, yaml.SequenceNode):
        raise _refuse(f"expected a list for {node.tag}", node)
    return [loader.construct_object(child, deep=True) for child in node.value]


def _scalar(node: yaml.Node) -> Any:
    """The value of a scalar; its tag was resolved or written out, so text may not fit it (``!!int a``)."""
    if not isinstance(node, yaml.ScalarNode):
        raise _refuse(f"expected a plain value for {node.tag}", node)
    text = str(node.value)
    kind = node.tag.removeprefix(_TAG)
    try:
        if kind == "int":
            return int(text.replace("_", "")) if text[:2] not in ("0o", "0x") else int(text, 0)
        if kind == "float":
            return float(re.sub(r"\.(?=inf|nan)", "", text.replace("_", "").lower()))
        if kind == "str":
            # JSON writes characters beyond U+FFFF as two escapes; a half on its own is not text
            return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le")
    except UnicodeDecodeError:
        raise _refuse("text holds half of a surrogate pair, which is no character", node) from None
    except ValueError as error:
        raise _refuse(f"not a number that can be read: {text[:40]!r} ({error})", node) from None
    return text.lower() == "true" if kind == "bool" else None


def _unknown(_loader: _Loader, node: yaml.Node) -> Any:
    raise _refuse(f"tag {node.tag} is not allowed; allowed: plain values, lists and mappings", node)


for _name in ("null", "bool", "int", "float", "str"):
    _Loader.add_constructor(_TAG + _name, lambda _loader, node: _scalar(node))
_Loader.add_constructor(_TAG + "map", _mapping)
_Loader.add_constructor(_TAG + "seq", _sequence)
_Loader.add_constructor(None, _unknown)


def parse(text: str, name: str) -> Any:
    """The one document in ``text``; None where there is none. Raises ``ConfigError`` with ``name``, line and
    column, both counted from 1."""
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line, column = (mark.line, mark.column) if mark else (0, 0)
        context = f" ({error.context})" if error.context else ""
        hint = "; indent with spaces, not tabs" if "'\\t'" in str(error.problem) else ""
        message = f"{name}: line {line + 1}, column {column + 1}: {error.problem}{context}{hint}"
        raise ConfigError(message) from error
    except RecursionError as error:
        raise ConfigError(f"{name}: lists or mappings are nested too deeply to be read") from error
    except yaml.reader.ReaderError as error:
        before = text[: error.position]
        line, column = before.count("\n"), len(before) - before.rfind("\n") - 1
        message = f"character U+{ord(text[error.position]):04X} is not allowed in YAML; write it as an escape"
        raise ConfigError(f"{name}: line {line + 1}, column {column + 1}: {message}") from error


def parse_value(text: str, name: str) -> Any:
    """A value from a command line. Text that opens with ``[ { " '`` is YAML in flow style; any other is one
    plain scalar, taken whole, so that ``Who signed it: A or B?`` needs no quotes of YAML's own."""
    text = text.strip()
    if text[:1] in {"[", "{", '"', "'"}:
        return parse(text, name)
    tag = next((tag for tag, pattern in _PLAIN if pattern.match(text)), _TAG + "str")
    try:
        return _scalar(yaml.ScalarNode(tag, text))
    except yaml.MarkedYAMLError as error:
        raise ConfigError(f"{name}: {error.problem}") from error


def dump(value: Any) -> str:
    """YAML that ``parse`` reads back as the same value, keys in their own order."""
    return str(yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True))
