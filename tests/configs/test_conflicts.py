"""Which methods cannot stand together: every rule refuses with its keys, and every method has company it works in."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import get_args

import pytest
from pydantic import BaseModel

from configs.load import ConfigError, load_job
from configs.methods import Budget, Pattern, Scorer
from configs.schema import Job

SMALLEST = """
corpus: {path: corpus}
questions: [{id: who, text: "Who signed it?"}]
model: {source: some/model}
output: {path: out}
"""
DEPTH = "read.pruning={kind: depth, layers: [4, 8], keep: [0.5, 0.25]}"

# (overrides that cannot stand together, the line's beginning, what it allows; without the last override all is well)
CONFLICTS = [
    (["keep.question=unknown"], "keep.scorer.kind: probe scores with the question", "another scorer, such as"),
    (["keep.budget.kind=pyramid"], "keep.budget.kind: pyramid keeps other pairs", "answer.over: kept"),
    (["keep.budget.kind=adaptive"], "keep.budget.kind: adaptive keeps other pairs", "answer.over: kept"),
    (["answer.over=narrow", "keep.budget.kind=heads"], "keep.budget.kind: heads keeps other", "threshold or min_p"),
    (["answer.over=narrow", "read.context=carried"], "answer.over: narrow reads parts", "read.context: isolated"),
    (["answer.over=two_round", "read.context=carried"], "answer.over: two_round reads parts", "read.context: isolated"),
    (["keep.scorer.kind=window", "answer.over=narrow", "keep.question=unknown"],
     "answer.over: narrow reads a second time", "keep.question: known, or answer.over: kept or reread"),
    (["keep.scorer.kind=window", "answer.over=two_round", "keep.question=unknown"],
     "answer.over: two_round reads a second time", "keep.question: known"),
    (["keep.scorer.kind=keydiff", DEPTH], "read.pruning.kind: depth drops", "keep.scorer.kind: probe or window"),
    (["keep.scorer.kind=window", "keep.question=unknown", DEPTH], "read.pruning.kind: depth drops", "question: known"),
    (["answer.over=kept", DEPTH], "read.pruning.kind: depth leaves", "answer.over: reread, narrow or two_round"),
    (["read.context=carried", DEPTH], "read.pruning.kind: depth reads chunk", "read.context: isolated"),
    (["read.pattern.kind=bigbird", DEPTH], "read.pruning.kind: depth reads chunk", "read.pattern.kind: dense"),
    (["read.pruning={kind: depth, layers: [4], keep: [0.5, 0.2]}"], "read.pruning.layers: [4]", "one share for each"),
    (["read.pruning={kind: depth, layers: [8, 4], keep: [0.5, 0.2]}"], "read.pruning.layers: [8, 4]", "ascending"),
    (["read.pruning={kind: depth, layers: [4, 8], keep: [0.2, 0.5]}"], "read.pruning.layers: [4, 8]", "never rising"),
    (["read.pattern.kind=bigbird", "read.pruning={kind: gate, threshold: 0.01}"],
     "read.pruning.kind: gate decides", "read.pattern.kind: dense"),
    (["read.chunk_tokens=64", "read.pattern={kind: routing, block_tokens: 128}"],
     "read.pattern.block_tokens: 128 is more than a chunk", "64 or less"),
    (["keep.budget.tokens=16"], "keep.budget.tokens: 16 is less than one block", "32 or more"),
    (["answer.over=kept", "read.skim=true"], "read.skim: true keeps no pairs", "read.skim: auto or false"),
    (["read.pattern.kind=bigbird", "keep.scorer.kind=accumulated"],
     "keep.scorer.kind: accumulated sums what all later tokens", "read.pattern.kind: dense, or another scorer"),
    (["read.pruning={kind: gate, threshold: 0.01}", "keep.scorer.kind=accumulated"],
     "keep.scorer.kind: accumulated sums what all later tokens", "read.pruning.kind: none, or another scorer"),
    (["keep.scorer.kind=index"], "keep.scorer.kind: index keeps a few heads' keys", "keep.question: unknown"),
    (["keep.scorer.kind=index", "keep.question=unknown", "answer.over=kept"],
     "keep.scorer.kind: index keeps", "answer.over: reread"),
    (["keep.scorer.kind=index", "keep.question=unknown", "read.context=carried"],
     "keep.scorer.kind: index keeps", "read.context: isolated"),
    (["keep.chunk_fraction=0.5"], "keep.chunk_fraction: 0.5 bounds the pairs", "answer.over: kept"),
    (["answer.over=kept", "keep.chunk_fraction=0.01"],
     "keep.chunk_fraction: 0.01 of read.chunk_tokens: 2048 is less than one block", "0.016 or more"),
    (["answer.positions=original"], "answer.positions: original leaves", "answer.over: kept, or answer.positions"),
    (["answer.over=kept", "answer.positions=original", "read.context=carried"],
     "answer.positions: original leaves", "read.context: isolated"),
    (["answer.reader={kind: top_pages, page_tokens: 64, tokens: 32}"],
     "answer.reader.tokens: 32 is less than one page (answer.reader.page_tokens: 64)", "64 or more"),
]  # fmt: skip


@pytest.fixture
def smallest(tmp_path: Path) -> Path:
    file = tmp_path / "job.yaml"
    file.write_text(SMALLEST)
    return file


@pytest.mark.parametrize(("overrides", "begins", "allows"), CONFLICTS, ids=[" ".join(c[0]) for c in CONFLICTS])
def test_methods_that_cannot_stand_together_are_refused_in_one_line(
    smallest: Path, overrides: list[str], begins: str, allows: str
) -> None:
    load_job(smallest, overrides[:-1])
    with pytest.raises(ConfigError) as caught:
        load_job(smallest, overrides)
    [line] = str(caught.value).splitlines()
    who, _, rest = line.partition(": " + begins)
    assert f"--set {overrides[-1]}" in who
    assert allows in rest.partition("; allowed: ")[2]


@pytest.mark.parametrize(
    "overrides",
    [
        ["keep.budget={kind: uniform, tokens: 1, fraction: 0.1}"],
        ["answer.over=two_round", DEPTH],
        ["keep.scorer.kind=window", DEPTH],
        ["read.pruning={kind: gate, threshold: 0.01}"],
        ["read.skim=true", "keep.scorer.kind=expected"],
        ["answer.over=kept", "answer.reader.kind=top_pages", "keep.budget.kind=pyramid"],
        ["answer.over=narrow", "answer.reader.kind=top_pages"],
        ["read.chunk_tokens=64", "read.pattern={kind: routing, block_tokens: 64}"],
        ["keep.scorer.kind=accumulated", "read.context=carried"],
        ["answer.reader={kind: top_pages, page_tokens: 64, tokens: 64}"],
        ["keep.scorer.kind=index", "keep.question=unknown", "keep.budget.kind=threshold", "read.pattern.kind=bigbird"],
    ],
    ids=" ".join,
)
def test_what_can_stand_together_loads(smallest: Path, overrides: list[str]) -> None:
    assert isinstance(load_job(smallest, overrides), Job)


def kinds(union: object) -> list[str]:
    members: tuple[type[BaseModel], ...] = get_args(get_args(union)[0])
    return [member.model_fields["kind"].default for member in members]


def test_every_scorer_budget_and_pattern_goes_with_every_other_over_kept_pairs(smallest: Path) -> None:
    """But for sums over what all later tokens read, and an index, which holds no pairs."""
    for scorer, budget, pattern in itertools.product(kinds(Scorer), kinds(Budget), kinds(Pattern)):
        if scorer == "index" or (scorer == "accumulated" and pattern != "dense"):
            continue
        chosen = [f"keep.scorer.kind={scorer}", f"keep.budget.kind={budget}", f"read.pattern.kind={pattern}"]
        job = load_job(smallest, [*chosen, "answer.over=kept"])
        assert (job.keep.scorer.kind, job.keep.budget.kind, job.read.pattern.kind) == (scorer, budget, pattern)
