"""What the pages promise is there: commands, files, columns, failure classes, exit codes."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pyarrow as pa
import pytest
import typer

from pipeline import cli
from pipeline.outcome import Answer, Failure, Span
from pipeline.tables import ANSWER_SCHEMA, FAILURE_SCHEMA, SPAN_TYPE
from tests.docs.pages import PAGES, ROOT, blocks, links, spans, table_rows

README = ROOT / "README.md"
OUTPUT = ROOT / "docs" / "output.md"
COMMANDS = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]
PROGRAM = re.compile(r"(?:^|\s)(?:\.venv/bin/)?(?:foveate|python -m pipeline)\s+(?P<arguments>.*)")
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))


def command_lines() -> Iterator[tuple[str, list[str]]]:
    """Every command line of ours that a user may copy: from shell blocks, code spans and the example jobs. A
    span that is a command's name, alone or with flags, only mentions it."""
    sources = [(block.name, line) for block in blocks("sh") for line in block.text.splitlines()]
    sources += [(page.name, span) for page in PAGES for span in spans(page)]
    sources += [(path.name, line.lstrip("# ")) for path in CONFIGS for line in path.read_text().splitlines()]
    for name, line in sources:
        if (match := PROGRAM.search(line)) and match["arguments"].split()[0] in COMMANDS:
            words = shlex.split(re.split(r"\s{2,}", match["arguments"])[0], comments=True)
            if not all(word.startswith("--") for word in words[1:]) or words == ["doctor"]:
                yield name, words


LINES = list(command_lines())


@pytest.mark.parametrize(
    ("page", "arguments"), LINES, ids=lambda value: " ".join(value) if isinstance(value, list) else value
)
def test_the_command_line_is_accepted(page: str, arguments: list[str]) -> None:
    name, *rest = arguments
    COMMANDS[name].make_context(name, list(rest))
    for word in rest:
        if word.startswith("configs/"):
            assert (ROOT / word).is_file()


def test_command_lines_were_found() -> None:
    assert len(LINES) > 10


def test_programs_mentioned_exist() -> None:
    """Every ``foveate WORD`` names a command, and each option behind it one of that command's."""
    for page in PAGES:
        for span in spans(page):
            if (match := re.match(r"foveate (\S+)", span)) and not match[1].startswith("-"):
                assert match[1] in COMMANDS, span
                options = {option for parameter in COMMANDS[match[1]].params for option in parameter.opts}
                assert set(re.findall(r"--[\w-]+", span)) <= options, span


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))
    mentioned = {m for page in PAGES for span in spans(page) for m in re.findall(r"^make ([a-z]+)", span)}
    mentioned |= {m for block in blocks("sh") for m in re.findall(r"^make ([a-z]+)", block.text, re.M)}
    assert mentioned and mentioned <= targets


LINKS = [(page, link) for page in PAGES for link in links(page)]


@pytest.mark.parametrize(("page", "link"), LINKS, ids=lambda value: value if isinstance(value, str) else value.name)
def test_the_link_leads_somewhere(page: Path, link: str) -> None:
    if link.startswith("https://"):
        paper = r"https://(arxiv\.org/abs/\d{4}\.\d{5}|doi\.org/10\.\d{4,}/\S+)"
        assert re.fullmatch(paper, link), "papers only; nothing else is for ever"
    else:
        assert (page.parent / link).exists()


def test_the_readme_is_short() -> None:
    assert len(README.read_text().splitlines()) <= 150


def documented(heading: str) -> list[tuple[str, str]]:
    return [(row[0].strip("`"), row[1]) for row in table_rows(OUTPUT, heading)[1:]]


def typed(schema: pa.Schema | pa.StructType) -> list[tuple[str, str]]:
    names = {"list": "list of struct"}
    return [(field.name, names.get(str(field.type).split("<")[0], str(field.type))) for field in schema]


def test_answer_columns_are_those_of_the_output() -> None:
    rows = documented("## Answers: `data/*.parquet`")
    columns, inside = rows[: len(fields(Answer))], rows[len(fields(Answer)) + 1 :]
    assert columns == typed(ANSWER_SCHEMA) and [name for name, _ in columns] == [f.name for f in fields(Answer)]
    assert inside == typed(SPAN_TYPE) and [name for name, _ in inside] == [f.name for f in fields(Span)]


def test_failure_columns_are_those_of_the_output() -> None:
    columns = documented("## Dead letters: `failed/*.parquet`")[: len(fields(Failure))]
    assert columns == typed(FAILURE_SCHEMA) and [name for name, _ in columns] == [f.name for f in fields(Failure)]


def test_the_readme_names_every_answer_column_in_order() -> None:
    named = [word for row in table_rows(README, "## The output") for word in re.findall(r"`(\w+)`", row[0])]
    assert named == [field.name for field in fields(Answer)]


def failure_classes() -> set[str]:
    """Every class of failure that the pipeline itself names: words given to the calls that make failures."""
    found = set()
    for path in (ROOT / "pipeline").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("Fault", "BadRow", "fail", "GiveUp"):
                words = [a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
                found |= {word for word in words if re.fullmatch(r"([A-Z][a-z]+)+", word)}
    return found


def test_every_failure_class_is_documented() -> None:
    rows = table_rows(OUTPUT, "## Dead letters: `failed/*.parquet`")
    listed = [row[0].strip("`") for row in rows[len(fields(Failure)) + 2 :]]
    assert listed[-2:] == ["Quarantined", "any other"]
    assert set(listed) - {"any other", "DocumentError"} == failure_classes()


def test_exit_codes_are_those_of_the_program() -> None:
    codes = [row[0] for row in table_rows(OUTPUT, "## Exit codes")[1:]]
    assert codes == ["0", "1", "2", "3", "130"]
    assert set(re.findall(r"\b\d+\b", str(cli.__doc__))) == set(codes)


def test_every_command_has_a_line_in_the_readme() -> None:
    assert {arguments[0] for name, arguments in LINES if name.startswith("README")} == set(COMMANDS)
