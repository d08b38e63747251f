"""A YAML file and dotted overrides to a ``Job``, ``Evaluation`` or ``Values``, and a ``Job`` back to plain records.

Invariants: what loads is complete and possible, or ``ConfigError`` says every reason at once; types are
taken as written (``"5"`` and ``true`` are not integers); relative paths in a file stay as they are and mean
what they mean to any command: relative to the current directory, not to the file. Records hold what JSON can.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from pydantic import ValidationError

from configs.closed import Closed
from configs.errors import ConfigError
from configs.evaluation import Evaluation
from configs.explain import explain, show
from configs.kubernetes import Values
from configs.overrides import Origin, apply, parse_override
from configs.schema import Job
from configs.shape import Slot, show_path
from configs.text import dump, parse

__all__ = [
    "ConfigError",
    "differences",
    "identity_record",
    "job_record",
    "job_yaml",
    "load_evaluation",
    "load_job",
    "load_values",
]

Root = TypeVar("Root", bound=Closed)

# What may change between a run and its resume: who works, where results lie, when to give up.
_NOT_IDENTITY: dict[str, Any] = {
    "pool": True,
    "store": True,
    "output": {"path", "max_failed_fraction"},
}


def load_job(
    path: Path | str | None, overrides: Sequence[str] = (), defaults: Mapping[str, Mapping[str, Any]] | None = None
) -> Job:
    """The job in the YAML file ``path`` with ``overrides`` laid over it, the last one last:
    ``read.chunk_tokens=1024``, ``questions[0].text=Who?``, ``pool={kind: local}``. ``defaults``: values by section and
    key, for what the file does not say; with ``path`` None there is no file. Raises ``ConfigError`` with one line per
    problem."""
    return _load(Job, None if path is None else Path(path), overrides, defaults or {})


def load_evaluation(path: Path | str, overrides: Sequence[str] = ()) -> Evaluation:
    """The evaluation in the YAML file ``path``, with overrides and errors as ``load_job`` has them."""
    return _load(Evaluation, Path(path), overrides)


def load_values(path: Path | str) -> Values:
    """What the YAML file ``path`` says of a Kubernetes cluster, with errors as ``load_job`` has them."""
    return _load(Values, Path(path), ())


def _load(
    model: type[Root],
    path: Path | None,
    overrides: Sequence[str],
    defaults: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
) -> Root:
    """What the file says, as ``model``, the root of its kind of file."""
    root, origin = Slot(model), Origin(str(path or "the command line"))
    values: Any = _over(defaults, {} if path is None else _read(path, root))
    problems: list[str] = []
    for text in overrides:
        try:
            values = apply(parse_override(text), values, root, origin)
        except ConfigError as error:
            problems.append(str(error))
    try:
        loaded = model.model_validate(_with_tuples(values), strict=True)
    except ValidationError as error:
        raise ConfigError("\n".join(problems + explain(error, values, origin, root))) from error
    if problems:
        raise ConfigError("\n".join(problems))
    return loaded


def _read(path: Path, root: Slot) -> dict[str, Any]:
    """The mapping in a file; overrides need one to stand on, so these errors come alone."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ConfigError(f"{path}: line {line}: byte 0x{error.object[error.start]:02x} is not UTF-8") from error
    values = parse(text, str(path))
    if values is None:
        raise ConfigError(f"{path}: the file is empty; allowed: {root.allowed()}")
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: the file holds {show(values)}; allowed: {root.allowed()}")
    return values


def _over(defaults: Mapping[str, Mapping[str, Any]], values: dict[str, Any]) -> dict[str, Any]:
    """``values`` with ``defaults`` for the keys of each section that they leave out."""
    filled = dict(values)
    for section, own in defaults.items():
        said = values.get(section, {})
        if isinstance(said, dict):  # anything else is a problem of the file, which validation names
            filled[section] = {**own, **said}
    return filled


def _with_tuples(value: Any) -> Any:
    """Lists as tuples: a frozen model has no lists, and strict validation takes types as they are."""
    if isinstance(value, dict):
        return {key: _with_tuples(item) for key, item in value.items()}
    return tuple(_with_tuples(item) for item in value) if isinstance(value, list) else value


def job_record(job: Job) -> dict[str, Any]:
    """The whole job with every default written out, as JSON would hold it."""
    return job.model_dump(mode="json")


def job_yaml(job: Job) -> str:
    """The whole job as YAML that ``load_job`` reads back as the same job."""
    return dump(job_record(job))


def identity_record(job: Job) -> dict[str, Any]:
    """The part of the record that decides the answers and how they are cut into parts. Two jobs with equal
    identity may share an output directory: the second resumes the first, on other workers if it likes."""
    return job.model_dump(mode="json", exclude=_NOT_IDENTITY)


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Why two records are not the same: ``read.chunk_tokens: 1024 -> 2048``, one line per key."""
    before, after = dict(_leaves(old, ())), dict(_leaves(new, ()))
    keys = dict.fromkeys([*before, *after])
    return [
        f"{show_path(key)}: {show(before[key]) if key in before else 'absent'} -> "
        f"{show(after[key]) if key in after else 'absent'}"
        for key in keys
        if key not in before or key not in after or _comparable(before[key]) != _comparable(after[key])
    ]


def _leaves(value: Any, path: tuple[str | int, ...]) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    """Each value that holds no other, with its path; an empty list or mapping is a leaf."""
    if not isinstance(value, dict | list) or not value:
        yield path, value
        return
    for part, item in value.items() if isinstance(value, dict) else enumerate(value):
        yield from _leaves(item, (*path, part))


def _comparable(value: object) -> tuple[bool, object]:
    """A value that Python's ``True == 1`` cannot confuse; 1 and 1.0 are the same setting."""
    return isinstance(value, bool), value
