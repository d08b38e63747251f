"""docs/configuration.md says exactly what the schema says: each key, its default, its words."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest
from pydantic import ByteSize, TypeAdapter

from configs.load import load_evaluation, load_job
from configs.schema import Job
from configs.shape import Slot, kinds
from configs.text import dump, parse, parse_value
from tests.docs.pages import ROOT, Block, blocks, table_rows

PAGE = ROOT / "docs" / "configuration.md"
ROW = re.compile(r"^\| `(?P<key>[\w.\[\]]+)`(?: \((?P<kind>\w+)\))? \| (?P<default>[^|]+) \| (?P<meaning>.+) \|$", re.M)


@dataclass(frozen=True)
class Key:
    """One key of a job. ``kind``: of the union it belongs to, or empty."""

    path: str
    kind: str
    slot: Slot


def schema_keys(slot: Slot, path: str = "", kind: str = "") -> Iterator[Key]:
    """The leaves of the schema: keys whose value is no mapping, and the lists above them."""
    for model in slot.models():
        own = kinds((model,))[0] if len(slot.models()) > 1 else kind
        for name, field in model.model_fields.items():
            below, here = Slot(field.annotation, field), f"{path}.{name}".lstrip(".")
            if not below.models():
                yield Key(here, own, below)
            yield from schema_keys(below, here, own)
            for option in below.options():
                if get_origin(option) is tuple:
                    yield from schema_keys(Slot(get_args(option)[0]), f"{here}[]", own)


KEYS = {(key.path, key.kind): key for key in schema_keys(Slot(Job))}
WHOLE: dict[str, Any] = {
    "corpus": {"path": "x"},
    "questions": [{"id": "q", "text": "?"}],
    "model": {"source": "x"},
    "output": {"path": "x"},
}
RECIPES = table_rows(PAGE, "## Six parts of selective attention")[1:]
DOCUMENTED = {(row["key"], row["kind"] or ""): row for row in ROW.finditer(PAGE.read_text(encoding="utf-8"))}


def test_every_key_is_documented_and_no_other() -> None:
    assert list(DOCUMENTED) == list(KEYS)


@pytest.mark.parametrize("name", KEYS, ids=lambda name: " ".join(name).strip())
def test_the_default_is_the_schemas(name: tuple[str, str]) -> None:
    field, shown = KEYS[name].slot.field, DOCUMENTED[name]["default"]
    assert field is not None
    if field.is_required():
        assert shown == "required"
    else:
        assert as_default(field.annotation, shown.strip("`")) == field.default


def as_default(annotation: Any, text: str) -> object:
    """A documented default as the schema would read it."""
    value = parse_value(text, "default")
    if annotation is ByteSize:
        return TypeAdapter(ByteSize).validate_python(value)
    return TypeAdapter(annotation).validate_python(tuple(value) if isinstance(value, list) else value)


@pytest.mark.parametrize("name", KEYS, ids=lambda name: " ".join(name).strip())
def test_every_word_that_is_allowed_is_explained(name: tuple[str, str]) -> None:
    row = DOCUMENTED[name]
    for word in KEYS[name].slot.choices():
        assert f"`{word}`" in row["meaning"] or f"`{word}`" in row["default"]


def test_the_walk_sees_every_section_of_a_job() -> None:
    assert {re.split(r"[.\[]", path)[0] for path, _ in KEYS} == set(Job.model_fields)


@pytest.mark.parametrize("block", blocks("yaml"), ids=lambda block: block.name)
def test_yaml_in_the_pages_is_a_file_of_ours(block: Block, tmp_path: Path) -> None:
    """A job, or behind ``# evaluation`` an evaluation; behind ``# fragment`` what is laid over a whole job."""
    values = parse(block.text, block.name)
    if block.text.startswith("# evaluation"):
        (tmp_path / "evaluation.yaml").write_text(block.text, encoding="utf-8")
        load_evaluation(tmp_path / "evaluation.yaml")
        return
    load(WHOLE | values if block.text.startswith("# fragment") else values, tmp_path)


def load(values: dict[str, Any], folder: Path) -> Job:
    file = folder / "job.yaml"
    file.write_text(dump(values), encoding="utf-8")
    return load_job(file)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda row: row[0])
def test_every_recipe_is_a_job_of_its_own(recipe: list[str], tmp_path: Path) -> None:
    """Each is read as it stands, and is the default only where it says so."""
    values: dict[str, Any] = {}
    for span in re.findall(r"`([^`]+)`", recipe[1]):
        values |= parse(span, recipe[0])
    assert (load(WHOLE | values, tmp_path) == load(WHOLE, tmp_path)) == ("the default" in recipe[0])


def test_the_readme_shows_a_job() -> None:
    assert any(block.name.startswith("README") for block in blocks("yaml"))
