"""Files, overrides and records of a job."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from configs.load import ConfigError, differences, identity_record, job_record, job_yaml, load_job
from configs.schema import Job

CONFIGS = Path(__file__).parents[2] / "configs"

# as the README and the command's help show it
SAMPLE = """
corpus:    {path: corpus/*.parquet, id: id, text: text}     # optional: question, answer_prefix, max_new_tokens
questions: [{id: who, text: "Who signed it?", answer_prefix: "", max_new_tokens: 48}]   # asked of every document
prompt:    {system: ..., instruction: ...}                  # the model's chat template is used where there is one
model:     {source: ..., dtype: auto, attention: auto, device: auto}
read:      {chunk_tokens: 2048, context: isolated, pattern: {kind: dense}, skim: auto}
keep:      {block_tokens: 32, scorer: {kind: probe}, budget: {kind: uniform, tokens: 1024}}
answer:    {over: reread}                                   # or: kept
store:     {tiers: [{kind: memory, max_bytes: 1GiB}, {kind: files, path: ..., max_bytes: 10GiB}]}
output:    {path: ..., part_tokens: 2_000_000, max_failed_fraction: 0.1}
pool:      {kind: local, workers: 1}                        # ray: workers, num_cpus, num_gpus, address
"""
SMALLEST = """
corpus: {path: corpus}
questions: [{id: who, text: "Who signed it?"}]
model: {source: some/model}
output: {path: out}
"""

# (override, key path in the record, value there)
OVERRIDES: list[tuple[str, tuple[str | int, ...], Any]] = [
    ("read.chunk_tokens=1_024", ("read", "chunk_tokens"), 1024),
    (" read.skim = false ", ("read", "skim"), False),
    ("questions[0].text=Who signed it: A or B? # 1", ("questions", 0, "text"), "Who signed it: A or B? # 1"),
    ("questions.0.text=When?", ("questions", 0, "text"), "When?"),
    ('questions[1]={id: when, text: "When?"}', ("questions", 1, "id"), "when"),
    ("questions[0].answer_prefix=''", ("questions", 0, "answer_prefix"), ""),
    ("prompt.system=", ("prompt", "system"), None),
    ("output.path=a=b", ("output", "path"), "a=b"),
    ('output.path="7"', ("output", "path"), "7"),
    ("corpus.path=[a.parquet, b.parquet]", ("corpus", "path"), ["a.parquet", "b.parquet"]),
    ("store.tiers[0].max_bytes=2GiB", ("store", "tiers", 0, "max_bytes"), 2 * 2**30),
    ("store.tiers[0].max_bytes=5", ("store", "tiers", 0), {"kind": "memory", "max_bytes": 5}),
    ("store.tiers[1]={kind: files, path: /x}", ("store", "tiers", 1, "max_bytes"), 10 * 2**30),
    ("store.tiers=[]", ("store", "tiers"), []),
    ("keep.budget.tokens=64", ("keep", "budget"),
     {"kind": "uniform", "tokens": 64, "fraction": None, "min_blocks_per_chunk": 0}),
    ("keep.budget.fraction=0.1", ("keep", "budget", "fraction"), 0.1),
    ("pool.workers=3", ("pool",), {"kind": "local", "workers": 3}),
    ("pool.kind=ray", ("pool", "kind"), "ray"),
    ("pool={kind: ray, num_gpus: 0.5}", ("pool", "num_gpus"), 0.5),
]  # fmt: skip

REFUSED = [
    ("read", "not an override; allowed: KEY.PATH=VALUE"),
    ("=5", "not an override"),
    ("questions[x]=5", "not an override"),
    ("questions[-1].id=a", "not an override"),
    ("read.chunk_tokens={", "line 1, column 2: expected the node content"),
    ("questions[5].id=a", "questions is a list of 1; allowed: an index, 1 to add"),
    ("questions.id=a", "questions is a list of 1; allowed: an index"),
    ("read[0]=a", "read is a mapping, there is no [0] in it"),
    ("output.path.x=1", "output.path is 'out', there is no x in it"),
    ("questions[1].id=when", "questions[1].text: missing; allowed: string, not empty"),
    ("reed.chunk_tokens=64", "reed: unknown key; did you mean read?"),
]


@pytest.fixture
def smallest(tmp_path: Path) -> Path:
    file = tmp_path / "job.yaml"
    file.write_text(SMALLEST)
    return file


def at(record: Any, path: tuple[str | int, ...]) -> Any:
    for part in path:
        record = record[part]
    return record


JOBS = sorted(set(CONFIGS.glob("*.yaml")) - set(CONFIGS.glob("evaluate*.yaml")))  # see test_evaluation


@pytest.mark.parametrize("file", JOBS, ids=lambda file: file.name)
def test_every_job_in_the_folder_loads(file: Path) -> None:
    assert isinstance(load_job(file), Job)


def test_the_folder_has_the_job_for_a_cluster() -> None:
    pool = load_job(CONFIGS / "cluster.yaml").pool
    assert pool.kind == "ray" and pool.workers == 2


def test_the_sample_loads_and_the_smallest_job_gets_its_defaults(tmp_path: Path, smallest: Path) -> None:
    file = tmp_path / "sample.yaml"
    file.write_text(SAMPLE)
    sample, least = load_job(file), load_job(str(smallest))
    assert sample.read == least.read and sample.keep == least.keep and sample.pool == least.pool
    assert [tier.max_bytes for tier in sample.store.tiers] == [2**30, 10 * 2**30]


@pytest.mark.parametrize(("override", "path", "value"), OVERRIDES, ids=[o[0] for o in OVERRIDES])
def test_an_override_sets_one_key_and_nothing_else(
    smallest: Path, override: str, path: tuple[str | int, ...], value: Any
) -> None:
    before, after = job_record(load_job(smallest)), job_record(load_job(smallest, [override]))
    assert at(after, path) == value and type(at(after, path)) is type(value)
    assert {key for key in after if after[key] != before[key]} <= {path[0]}


@pytest.mark.parametrize(("override", "message"), REFUSED)
def test_a_refused_override_is_named_and_the_file_is_not(smallest: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_job(smallest, [override])
    assert str(caught.value).startswith(f"--set {override}: ") and message in str(caught.value)
    assert "job.yaml" not in str(caught.value)


def test_the_last_override_wins_and_takes_the_blame(smallest: Path) -> None:
    assert load_job(smallest, ["read.chunk_tokens=x", "read.chunk_tokens=64"]).read.chunk_tokens == 64
    with pytest.raises(ConfigError, match=r"^--set read=\{chunk_tokens: y\}: read.chunk_tokens: 'y'"):
        load_job(smallest, ["read.chunk_tokens=64", "read={chunk_tokens: y}"])


def test_an_override_of_an_alias_leaves_its_anchor(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    shared = "questions: [&q {id: a, text: A}]\ncorpus: {path: p}\nmodel: {source: m}\noutput: {path: o}\n"
    file.write_text(shared.replace("]", ", *q]"))
    job = load_job(file, ["questions[1].id=b"])
    assert [(question.id, question.text) for question in job.questions] == [("a", "A"), ("b", "A")]


def test_relative_paths_stay_as_they_are_written(smallest: Path) -> None:
    job = load_job(smallest)
    assert job.corpus.path == "corpus" and job.output.path == "out"


names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True)
words = st.text(min_size=1, max_size=30)
tiers = st.one_of(
    st.fixed_dictionaries({"kind": st.just("memory")}, optional={"max_bytes": st.integers(0, 2**40)}),
    st.fixed_dictionaries({"kind": st.just("files"), "path": words}, optional={"max_bytes": st.just("3MiB")}),
)
questions = st.fixed_dictionaries({"id": names, "text": words}, optional={"answer_prefix": st.text(max_size=9)})
gpus = st.floats(0, 1) | st.integers(2, 8).map(float)
ray_pools = st.fixed_dictionaries({"kind": st.just("ray")}, optional={"num_gpus": gpus, "address": words})
jobs = st.fixed_dictionaries(
    {
        "corpus": st.fixed_dictionaries({"path": words | st.lists(words, max_size=2).map(tuple)}),
        "questions": st.lists(questions, min_size=1, max_size=3, unique_by=lambda q: q["id"]).map(tuple),
        "model": st.fixed_dictionaries({"source": words}),
        "output": st.fixed_dictionaries({"path": words}, optional={"max_failed_fraction": st.floats(0, 1)}),
    },
    optional={
        "prompt": st.fixed_dictionaries({"system": st.none() | st.text(max_size=30)}),
        "store": st.fixed_dictionaries({"tiers": st.lists(tiers, max_size=2).map(tuple), "keep": st.booleans()}),
        "pool": ray_pools,
    },
).map(lambda values: Job.model_validate(values))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(job=jobs)
def test_a_record_is_json_and_its_yaml_loads_as_the_same_job(tmp_path: Path, job: Job) -> None:
    record = job_record(job)
    assert json.loads(json.dumps(record)) == record
    file = tmp_path / "job.yaml"
    file.write_text(job_yaml(job), encoding="utf-8", newline="")
    assert load_job(file) == job and job_record(load_job(file)) == record


@pytest.mark.parametrize(
    "override",
    ["pool={kind: ray, workers: 4}", "output.path=elsewhere", "output.max_failed_fraction=1", "store.keep=true",
     "store.tiers[0].max_bytes=5"],
)  # fmt: skip
def test_who_works_and_where_is_not_identity(smallest: Path, override: str) -> None:
    old, new = load_job(smallest), load_job(smallest, [override])
    assert old != new and identity_record(old) == identity_record(new)


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("read.chunk_tokens=1024", "read.chunk_tokens: 2048 -> 1024"),
        ("questions[0].text=When?", "questions[0].text: 'Who signed it?' -> 'When?'"),
        ("output.part_tokens=5", "output.part_tokens: 2000000 -> 5"),
        ("model.dtype=float32", "model.dtype: 'auto' -> 'float32'"),
        ("read.skim=true", "read.skim: 'auto' -> true"),
        ("corpus.id=null", "corpus.id: 'id' -> null"),
    ],
)
def test_what_decides_the_answers_is_identity_and_its_change_is_said(smallest: Path, override: str, line: str) -> None:
    old = json.loads(json.dumps(identity_record(load_job(smallest))))
    assert differences(old, identity_record(load_job(smallest, [override]))) == [line]


def test_differences_tell_absent_keys_empty_lists_and_true_from_one() -> None:
    assert differences({"a": 1, "b": {"c": []}, "d": 1}, {"a": True, "b": {"c": [5]}, "d": 1.0}) == [
        "a: 1 -> true",
        "b.c: [] -> absent",
        "b.c[0]: absent -> 5",
    ]


def test_the_configuration_imports_neither_torch_nor_ray() -> None:
    check = "import sys, configs.load; print(sorted({'torch', 'ray', 'transformers', 'numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, cwd=CONFIGS.parent, check=True)
    assert done.stdout.strip() == "[]"
