"""The benchmark of patterns, on a random layer: what it counts and covers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pipeline.evaluation.sparse import PATTERNS, LayerInputs, layer_inputs, measure_patterns, table, write_sparse
from tests.tiny import save_tiny_model


def test_every_pattern_reads_less_than_dense_and_covers_less(tmp_path: Path) -> None:
    inputs = layer_inputs(save_tiny_model(tmp_path), 1024, layer=1)
    assert inputs.q_THD.shape == (1024, 4, 8) and inputs.k_TGD.shape == (1024, 2, 8)
    rows = measure_patterns(inputs, (64, 1024), repeats=1)
    assert [(row.num_tokens, row.kind) for row in rows] == [(n, p.kind) for n in (64, 1024) for p in PATTERNS]
    for row in rows[: len(PATTERNS) + 1]:  # one block is all that there is, and dense reads everything
        assert row.blocks_read == row.blocks_dense and row.covered == pytest.approx(1.0, abs=1e-5)
    for row in rows[len(PATTERNS) + 1 :]:
        assert row.blocks_read < row.blocks_dense == 136 and 0 < row.covered < 1 and row.plan_ms > 0
    assert len(table(rows).splitlines()) == 2 + len(rows)


def test_a_shorter_measurement_is_a_shorter_reading(tmp_path: Path) -> None:
    """The first tokens of a layer are what the model would give it for them alone."""
    directory = save_tiny_model(tmp_path)
    long, short = layer_inputs(directory, 200, layer=2), layer_inputs(directory, 80, layer=2)
    first: LayerInputs = long.first(80)
    for got, want in ((first.q_THD, short.q_THD), (first.k_TGD, short.k_TGD), (first.v_TGD, short.v_TGD)):
        torch.testing.assert_close(got, want)


def test_the_page_says_what_was_measured_and_is_written(tmp_path: Path) -> None:
    model, out = save_tiny_model(tmp_path / "model"), tmp_path / "results" / "sparse.md"
    page = write_sparse(str(model), out, (128,), layer=0)
    assert out.read_text() == page
    assert "4 heads, 2 kv heads of 8, float32" in page and "| 128 | top_blocks |" in page
