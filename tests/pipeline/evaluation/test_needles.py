"""Needle corpora are what they say: seeded, sized, with the fact in them once."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from configs.load import load_job
from pipeline.corpus import open_corpus
from pipeline.evaluation.needles import build_needles
from workers.hf import Tokenizer


def test_items_are_sized_seeded_and_hold_their_answer_once(tiny_model: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer(tiny_model)
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        build_needles(tmp_path / f"{name}.parquet", tokenizer, tokens=4096, items=6, seed=seed)
    a, b, c = (pq.read_table(tmp_path / f"{name}.parquet").to_pylist() for name in "abc")
    assert a == b != c
    for index, row in enumerate(a):
        needle = row["context"].index(f"is: {row['answer']}.")
        assert row["context"].count(row["answer"]) == 1
        assert len(tokenizer.encode(row["context"])) + 192 == pytest.approx(4096, abs=120)
        assert needle / len(row["context"]) == pytest.approx((index + 0.5) / 6, abs=0.1)


def test_the_benchmark_schema_runs_by_naming_columns(tiny_model: Path, tmp_path: Path) -> None:
    build_needles(tmp_path / "n.parquet", Tokenizer(tiny_model), tokens=1024, items=2, seed=0)
    job = load_job("configs/needles.yaml", [f"corpus.path={tmp_path / 'n.parquet'}"])
    corpus = open_corpus(job.corpus)
    assert sum(file.rows for file in corpus.files) == 2


@pytest.mark.parametrize("tokens", [100, 10**9])
def test_a_length_that_cannot_be_had_is_refused(tiny_model: Path, tmp_path: Path, tokens: int) -> None:
    with pytest.raises(ValueError, match=f"tokens: {tokens}; allowed: 193 to"):
        build_needles(tmp_path / "n.parquet", Tokenizer(tiny_model), tokens=tokens, items=1, seed=0)
