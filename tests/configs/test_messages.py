"""What a mistake in a job prints: file or override, key path, value, what is allowed, all at once."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from configs.load import ConfigError, load_job

SMALLEST: dict[str, object] = {
    "corpus": {"path": "corpus/*.parquet"},
    "questions": [{"id": "who", "text": "Who signed it?"}],
    "model": {"source": "some/model"},
    "output": {"path": "out"},
}

# (key path, value written there, the line after "FILE: ")
MISTAKES = [
    # typos
    ("chunk_tokens", 5, "chunk_tokens: unknown key; did you mean read.chunk_tokens? allowed: corpus, questions, "),
    ("read.chunk_tokns", 64, "read.chunk_tokns: unknown key; did you mean chunk_tokens? allowed: chunk_tokens"),
    ("read.patern", {}, "read.patern: unknown key; did you mean pattern?"),
    ("keep.scorer", {"kind": "probe", "windw": 3}, "keep.scorer.windw: unknown key; allowed: kind"),
    ("keep.scorer", {"kind": "prob"}, "keep.scorer.kind: 'prob'; allowed: probe, index, window, accumulated, "),
    ("answer.over", "rereed", "answer.over: 'rereed'; allowed: reread, kept, narrow, two_round; did"),
    ("model.dtype", "Float-32", "model.dtype: 'Float-32'; allowed: auto, float32, bfloat16, float16; did you mean"),
    ("model.device", "xpu", "model.device: 'xpu'; allowed: auto, cpu, cuda, cuda:N"),
    ("pool", {"kind": "rai"}, "pool.kind: 'rai'; allowed: local, ray; did you mean ray?"),
    ("pool", {"workers": 2}, "pool.kind: missing; allowed: local, ray"),
    ("pool", {"kind": "local", "num_cpus": 1}, "pool.num_cpus: unknown key for kind: local, known for kind: ray"),
    ("store.tiers", [{"kind": "memory"}, {"kind": "file"}], "store.tiers[1].kind: 'file'; allowed: memory, files, "),
    # wrong types
    ("read.chunk_tokens", True, "read.chunk_tokens: true is a boolean; allowed: integer >= 32"),
    ("read.chunk_tokens", "2048", "read.chunk_tokens: '2048' is a string; allowed: integer >= 32"),
    ("read.chunk_tokens", 2048.0, "read.chunk_tokens: 2048.0 is a number; allowed: integer >= 32"),
    ("read.chunk_tokens", None, "read.chunk_tokens: null; allowed: integer >= 32"),
    ("read.skim", 1, "read.skim: 1; allowed: auto, true, false"),
    ("store.keep", "yes", "store.keep: 'yes' is a string; allowed: true, false"),
    ("model.source", 135, "model.source: 135 is an integer; allowed: string, not empty"),
    ("corpus.path", ["a", 5], 'corpus.path: ["a", 5]; allowed: string, list of (string)'),
    ("corpus", "a.parquet", "corpus: 'a.parquet' is a string; allowed: mapping with the keys path, id, text,"),
    ("questions", {"id": "who"}, 'questions: {"id": "who"} is a mapping; allowed: list of (mapping with the keys id'),
    ("store.tiers", [7], "store.tiers[0]: 7 is an integer; allowed: mapping with kind: memory"),
    ("store.tiers", [{"kind": "memory", "max_bytes": True}], "store.tiers[0].max_bytes: true is a boolean; allowed"),
    ("store.tiers", [{"kind": "memory", "max_bytes": "2 Gib/s"}], "store.tiers[0].max_bytes: '2 Gib/s' is not a size;"),
    ("store.tiers", [{"kind": "memory", "max_bytes": "2 Gix"}], "store.tiers[0].max_bytes: '2 Gix' is not a size"),
    ("store.tiers", [{"kind": "memory", "max_bytes": -4}], "store.tiers[0].max_bytes: -4 is negative; allowed: bytes"),
    ("pool", {"kind": "ray", "num_gpus": "1"}, "pool.num_gpus: '1' is a string; allowed: 0 to 1, or a whole number"),
    ("pool", {"kind": "ray", "num_gpus": 1.5}, "pool.num_gpus: 1.5; allowed: 0 to 1, or a whole number"),
    ("pool", {"kind": "ray", "idle_seconds": 0}, "pool.idle_seconds: 0 is too small; allowed: number > 0"),
    ("pool", {"kind": "ray", "num_cpus": float("inf")}, "pool.num_cpus: Infinity is not finite; allowed: number > 0"),
    # out of range, or not there
    ("read.chunk_tokens", 16, "read.chunk_tokens: 16 is too small; allowed: integer >= 32"),
    ("output.max_failed_fraction", 1.5, "output.max_failed_fraction: 1.5 is too large; allowed: number >= 0 and <= 1"),
    ("output.path", "", "output.path: '' is empty; allowed: string, not empty"),
    ("output", {"part_tokens": 5}, "output.path: missing; allowed: string, not empty"),
    ("questions", [{"id": "a b", "text": "?"}], "questions[0].id: 'a b'; allowed: 1 to 128 letters, digits"),
    ("questions", [{"id": "a", "text": "?", "max_new_tokens": 0}], "questions[0].max_new_tokens: 0 is too small;"),
]  # fmt: skip

# (override, the line it prints without "--set OVERRIDE: ")
CONFLICTS = [
    (["questions=[]"], "questions: none given; add questions, or name a column of them in corpus.question"),
    (["questions[1]={id: who, text: a}"], "questions[1].id: 'who' is already the id of questions[0]; allowed: unique"),
    (["read.skim=true", "answer.over=kept"], "read.skim: true keeps no pairs above the last layer that"),
    (["read.chunk_tokens=100"], "read.chunk_tokens: 100 is not a multiple of keep.block_tokens: 32; allowed: multip"),
    (
        ["keep.budget.tokens=16"],
        "keep.budget.tokens: 16 is less than one block (keep.block_tokens: 32); allowed: 32 or",
    ),
    (["answer.over=kept", "pool.kind=ray", "pool.workers=2"], "store.tiers: answer.over: kept on 2 ray workers needs"),
]


def write(directory: Path, values: object) -> Path:
    file = directory / "job.yaml"
    file.write_text(yaml.safe_dump(values, sort_keys=False))
    return file


def with_value(path: str, value: object) -> dict[str, object]:
    *sections, key = path.split(".")
    job: dict[str, object] = dict(SMALLEST)
    here = job
    for section in sections:
        below = job.get(section, {})
        assert isinstance(below, dict)
        here[section] = here = dict(below)
    here[key] = value
    return job


def message(file: Path, overrides: list[str]) -> str:
    with pytest.raises(ConfigError) as caught:
        load_job(file, overrides)
    return str(caught.value)


@pytest.mark.parametrize(("path", "value", "line"), MISTAKES, ids=[f"{m[0]}={m[1]}" for m in MISTAKES])
def test_a_mistake_is_one_line_with_file_key_value_and_what_is_allowed(
    tmp_path: Path, path: str, value: object, line: str
) -> None:
    file = write(tmp_path, with_value(path, value))
    lines = message(file, []).splitlines()
    assert len(lines) == 1
    assert lines[0].startswith(f"{file}: {line}")


@pytest.mark.parametrize(("overrides", "line"), CONFLICTS, ids=[c[0][0] for c in CONFLICTS])
def test_an_impossible_combination_names_its_keys_and_who_set_them(
    tmp_path: Path, overrides: list[str], line: str
) -> None:
    printed = message(write(tmp_path, SMALLEST), overrides)
    who, _, rest = printed.partition(line)
    assert who.endswith(": ") and "\n" not in rest
    assert set(who.removesuffix(": ").split(", --set ")) <= {f"--set {o}" for o in overrides} | set(overrides)


def test_every_problem_is_told_at_once_conflicts_too(tmp_path: Path) -> None:
    file = write(tmp_path, with_value("read", {"chunk_tokens": True, "skim": "no", "contxt": "isolated"}))
    printed = message(file, ["modle.source=x", "keep..x=1", "answer.over=rereed"])
    starts = ["--set keep..x=1: not an override", f"{file}: read.chunk_tokens: true", f"{file}: read.skim: 'no'",
              f"{file}: read.contxt: unknown key; did you mean context?", "--set answer.over=rereed: answer.over: 'r",
              "--set modle.source=x: modle: unknown key; did you mean model?"]  # fmt: skip
    assert all(any(line.startswith(start) for line in printed.splitlines()) for start in starts), printed
    assert len(printed.splitlines()) == len(starts)
    printed = message(write(tmp_path, SMALLEST), ["keep.block_tokens=31", "keep.budget.tokens=5"])
    assert [line.split(": ")[1] for line in printed.splitlines()] == ["read.chunk_tokens", "keep.budget.tokens"]


def test_an_override_of_kind_shares_the_blame_for_keys_the_new_kind_lacks(tmp_path: Path) -> None:
    file = write(tmp_path, with_value("pool", {"kind": "ray", "num_cpus": 1}))
    assert message(file, ["pool.kind=local"]).startswith(f"{file}, --set pool.kind=local: pool.num_cpus: unknown key")


def test_a_long_value_is_cut(tmp_path: Path) -> None:
    printed = message(write(tmp_path, with_value("model.dtype", "x" * 5000)), [])
    assert "(5002 characters); allowed: auto" in printed and len(printed) < 300
