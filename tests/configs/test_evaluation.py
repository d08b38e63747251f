"""Evaluations: what a file may say, what each method becomes as a job, and what a mistake prints."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from configs.evaluation import Evaluation
from configs.load import ConfigError, load_evaluation
from configs.text import dump

ROOT = Path(__file__).parents[2]
SMOKE = ROOT / "configs" / "evaluate-smoke.yaml"
SMALLEST = """
base: {model: {source: some/model}}
tasks: [{kind: single_needle}]
lengths: [1024]
items: 2
budgets: [256]
methods: [{name: default}]
output: {path: out}
"""


@pytest.fixture
def smallest(tmp_path: Path) -> Path:
    file = tmp_path / "evaluation.yaml"
    file.write_text(SMALLEST)
    return file


@pytest.mark.parametrize("file", sorted((ROOT / "configs").glob("evaluate*.yaml")), ids=lambda file: file.name)
def test_every_evaluation_in_the_folder_loads(file: Path) -> None:
    assert isinstance(load_evaluation(file), Evaluation)


def test_the_smoke_evaluation_is_small() -> None:
    smoke = load_evaluation(SMOKE)
    assert (len(smoke.methods), len(smoke.tasks), smoke.counts, smoke.budgets) == (2, 2, {1024: 2}, (256,))


def test_a_record_loads_as_the_same_evaluation(tmp_path: Path) -> None:
    loaded = load_evaluation(SMOKE, ["items={1024: 3}", "tasks[2]={kind: parquet, path: x.parquet, name: mine}"])
    record = loaded.model_dump(mode="json")
    file = tmp_path / "again.yaml"
    file.write_text(dump(json.loads(json.dumps(record))))
    assert load_evaluation(file) == loaded and loaded.counts == {1024: 3}


def test_a_method_changes_what_it_names_and_keeps_the_rest_of_the_base(smallest: Path) -> None:
    evaluation = load_evaluation(
        smallest,
        [
            "base.read={chunk_tokens: 512}",
            "base.keep={widen_tokens: 8, scorer: {kind: random, seed: 4}, budget: {kind: threshold, times_mean: 3.0}}",
            "methods[1]={name: kept, keep: {block_tokens: 64}, answer: {over: kept}}",
        ],
    )
    default, kept = (evaluation.job(method, 192) for method in evaluation.methods)
    assert default.read == kept.read and default.read.chunk_tokens == 512
    assert (kept.keep.block_tokens, kept.keep.widen_tokens, kept.keep.scorer) == (64, 8, default.keep.scorer)
    assert default.keep.block_tokens == 32 and (default.answer.over, kept.answer.over) == ("reread", "kept")
    for job in (default, kept):
        assert job.keep.budget.model_dump() == {"kind": "threshold", "tokens": 192, "fraction": None, "times_mean": 3.0}
        assert job.corpus.text == "context" and job.corpus.answer == "answer"
        assert (job.model, job.output) == (evaluation.base.model, evaluation.output)


@pytest.mark.parametrize(
    ("baseline", "budgets"),
    [("null", (256,)), ("truncate", (256,)), ("bm25", (256,)), ("dense", (None,)), ("map_reduce", (None,))],
)
def test_baselines_that_read_everything_run_once(
    smallest: Path, baseline: str, budgets: tuple[int | None, ...]
) -> None:
    evaluation = load_evaluation(smallest, [f"methods[0].baseline={baseline}"])
    [method] = evaluation.methods
    assert evaluation.budgets_of(method) == budgets
    assert evaluation.job(method, budgets[0]).keep.budget.tokens == budgets[0] or budgets == (None,)


def test_items_are_for_all_lengths_or_for_each(smallest: Path) -> None:
    assert load_evaluation(smallest, ["lengths=[4096, 1024]"]).counts == {4096: 2, 1024: 2}
    both = load_evaluation(smallest, ["lengths=[4096, 1024]", "items={1_024: 7, 4096: 5}"])
    assert list(both.counts.items()) == [(4096, 5), (1024, 7)]


# (override, the line it prints without "--set OVERRIDE: ")
MISTAKES = [
    ("task=[]", "task: unknown key; did you mean tasks? allowed: base, tasks,"),
    ("chunk_tokens=64", "chunk_tokens: unknown key; did you mean base.read.chunk_tokens or methods[0].read.chunk_tok"),
    ("tasks[0].kind=single", "tasks[0].kind: 'single'; allowed: single_needle, multi_key"),
    ("tasks[0].keys=3", "tasks[0].keys: unknown key for kind: single_needle, known for kind: multi_key"),
    ("tasks[0]={kind: multi_key, keys: 1}", "tasks[0].keys: 1 is too small; allowed: integer >= 2"),
    ("tasks[0]={kind: parquet}", "tasks[0].path: missing; allowed: string, not empty"),
    ("tasks=[]", "tasks: []; allowed: list of (mapping with kind: single_needle or"),
    ("lengths=[0]", "lengths[0]: 0 is too small; allowed: integer >= 1"),
    ("lengths=4096", "lengths: 4096 is an integer; allowed: list of (integer >= 1), not empty"),
    ("items=few", "items: 'few'; allowed: integer >= 1, or mapping of every length to an integer >= 1"),
    ("items={long: 3}", 'items: {"long": 3}; allowed: integer >= 1, or mapping of every length'),
    ("methods[0].baseline=bm52", "methods[0].baseline: 'bm52'; allowed: dense, truncate, bm25, map_reduce, null; did"),
    ("methods[0].keep={scorr: 1}", "methods[0].keep.scorr: unknown key; did you mean scorer?"),
    ("base.model={}", "base.model.source: missing; allowed: string, not empty"),
    ("store={keep: true}", "store: unknown key"),
    # combinations
    ("methods[0]={name: x, min_length: 9, max_length: 8}", "methods[0] (x): min_length: 9 is above max_length: 8; al"),
    ("methods[1]={name: default}", "methods[1].name: 'default' is there already; allowed: each once"),
    ("tasks[1]={kind: single_needle}", "tasks[1].name: 'single_needle' is there already; allowed: each once"),
    ("lengths=[1024, 1024]", "lengths[1]: 1024 is there already"),
    ("budgets=[64, 64]", "budgets[1]: 64 is there already"),
    ("items={2048: 3}", "items: given for the lengths 2048, but lengths: 1024; allowed: one number, or a number for"),
    ("base.keep.budget.fraction=0.1", "methods[0] (default): keep.budget.fraction would overrule budgets; allowed: n"),
    ("budgets=[8]", "methods[0] (default): keep.budget.tokens: 8 is less than one block (keep.block_tokens: 32)"),
    ("methods[0].read={chunk_tokens: 100}", "methods[0] (default): read.chunk_tokens: 100 is not a multiple of"),
]  # fmt: skip


@pytest.mark.parametrize(("override", "line"), MISTAKES, ids=[mistake[0] for mistake in MISTAKES])
def test_a_mistake_is_one_line_that_says_what_is_allowed(smallest: Path, override: str, line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_evaluation(smallest, [override])
    printed = str(caught.value)
    assert "\n" not in printed
    start = printed.removeprefix(f"{smallest}: ").removeprefix(f"--set {override}: ")
    assert start.startswith(line), printed


def test_every_method_that_is_impossible_is_told_and_each_reason_once(smallest: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_evaluation(smallest, ["budgets=[256, 512]", "methods[1]={name: odd, read: {chunk_tokens: 100}}"])
    [line] = str(caught.value).splitlines()
    assert "methods[1] (odd): read.chunk_tokens: 100 is not a multiple of keep.block_tokens: 32" in line


def test_a_job_is_no_evaluation() -> None:
    with pytest.raises(ConfigError, match=r"demo\.yaml: corpus: unknown key"):
        load_evaluation(ROOT / "configs" / "demo.yaml")
