"""YAML as jobs read it: YAML 1.2's types, and errors that give line and column."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.errors import ConfigError
from configs.load import load_job
from configs.text import dump, parse, parse_value

VALUES = {
    "2_000_000": 2000000, "-7": -7, "010": 10, "0x1F": 31, "0o17": 15, "1e3": 1000.0, ".5": 0.5, "5.": 5.0,
    "1_0.5": 10.5, "-.inf": float("-inf"), "true": True, "False": False, "null": None, "~": None, "": None,
    "yes": "yes", "off": "off", "2024-01-01": "2024-01-01", "12:30:45": "12:30:45", "<<": "<<", "1.2.3": "1.2.3",
    "1e": "1e", "_1": "_1", "2GiB": "2GiB", "null ref": "null ref",
}  # fmt: skip

BROKEN = [
    ("a: 1\nb: 2\na: 3\n", "line 3, column 1: key 'a' is given twice (first on line 1)"),
    ("a: {b: 1, b: 2}\n", "line 1, column 11: key 'b' is given twice (first on line 1)"),
    ("a:\n\tb: 1\n", "line 2, column 1: found character '\\t' that cannot start any token (while scanning"),
    ("a: [1, 2\nb: 3\n", "line 2, column 2: expected ',' or ']'"),
    ("a: b: c\n", "line 1, column 5: mapping values are not allowed here"),
    ("a: 1\n---\nb: 2\n", "line 2, column 1: but found another document"),
    ("a: !!python/name:os.system\n", "line 1, column 4: tag tag:yaml.org,2002:python/name:os.system is not allowed"),
    ("a: !!timestamp 2024-01-01\n", "line 1, column 4: tag tag:yaml.org,2002:timestamp is not allowed"),
    ("a: !!int five\n", "line 1, column 4: not a number that can be read: 'five'"),
    ("a: !!int [1]\n", "line 1, column 4: expected a plain value for tag:yaml.org,2002:int"),
    ("a: 1\n? [b]\n: 2\n", "line 2, column 3: a key is a mapping or a list; allowed: a word"),
    ("a: &x\n  b: *x\n", "found unconstructable recursive node"),
    ("a: *nothing\n", "line 1, column 4: found undefined alias 'nothing'"),
    ('a: "\\ud800"\n', "line 1, column 4: text holds half of a surrogate pair"),
    ("a: 1\nb: \x07\n", "line 2, column 4: character U+0007 is not allowed in YAML; write it as an escape"),
]

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(min_size=1), inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.parametrize(("text", "value"), VALUES.items())
def test_plain_scalars_have_the_types_of_yaml_1_2(text: str, value: object) -> None:
    for read in (parse(f"a: {text}\n", "f")["a"], parse_value(text, "f")):
        assert read == value and type(read) is type(value)


@pytest.mark.parametrize(("text", "message"), BROKEN)
def test_an_error_gives_file_line_and_column(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text, "job.yaml")
    assert str(caught.value).startswith("job.yaml: line ") and message in str(caught.value)


@settings(max_examples=50, deadline=None)
@given(plain)
def test_what_is_dumped_is_read_back(value: object) -> None:
    read = parse(dump(value), "f")
    assert read == value and repr(read) == repr(value)


@given(st.text(alphabet=st.characters(exclude_categories=("Cs", "Cc")), min_size=1))
def test_a_command_line_value_is_taken_whole_or_refused(text: str) -> None:
    try:
        value = parse_value(text, "f")
    except ConfigError:
        assert text.strip()[0] in "[{\"'"
    else:
        assert value == text.strip() or not isinstance(value, str) or text.strip()[0] in "\"'"


def test_brackets_without_end_are_refused_and_do_not_crash() -> None:
    with pytest.raises(ConfigError, match=r"^f: lists or mappings are nested too deeply"):
        parse("[" * 5000, "f")


def test_a_json_file_is_read_as_json_means_it() -> None:
    assert parse('{"a": "\\ud83d\\ude00", "b": [1, 2.5, true, null]}', "f") == {"a": "😀", "b": [1, 2.5, True, None]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "job.yaml: the file is empty; allowed: mapping with the keys corpus, questions,"),
        (b"# nothing\n", "job.yaml: the file is empty"),
        (b"- a\n- b\n", 'job.yaml: the file holds ["a", "b"]; allowed: mapping with the keys corpus,'),
        (b"corpus", "job.yaml: the file holds 'corpus'; allowed: mapping"),
        (b"a: 1\nb: \xff\n", "job.yaml: line 2: byte 0xff is not UTF-8"),
        (None, "job.yaml: cannot be read: No such file or directory"),
    ],
)
def test_a_file_that_is_no_mapping_says_so(tmp_path: Path, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / "job.yaml").write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_job(tmp_path / "job.yaml", ["read.chunk_tokens=64"])
    assert str(caught.value).startswith(f"{tmp_path}/{message}")
