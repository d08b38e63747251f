"""The dry run: its counts are those of the real run, and it writes nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cache_store.tiers.files import FilesTier
from configs.schema import Job
from pipeline.directory import existing_directory
from pipeline.driver import run
from pipeline.estimate import Counts, Estimate, Measured, estimate
from pipeline.status import read_status
from tests.pipeline.jobs import Bench
from workers.selection.profile import Profile

LENGTHS = [900, 300, 0, 40, 513]
BYTES_PER_TOKEN = 2 * 3 * 2 * 8 * 4  # keys and values, layers, kv heads, head dimension, bytes of float32


@pytest.fixture
def bench(tmp_path: Path, tiny_model: Path) -> Bench:
    return Bench(tmp_path, tiny_model, LENGTHS)


@pytest.mark.parametrize("over", ["reread", "kept"])
def test_counts_are_those_of_the_run(bench: Bench, over: str) -> None:
    job = bench.job(answer={"over": over})
    found = estimate(job, measure=False)
    assert not (bench.root / "out").exists()
    run(job)
    status = read_status(existing_directory(str(bench.root / "out")))
    assert found.counts.documents == status.totals.documents
    assert found.counts.questions == status.totals.answered
    assert found.counts.failures == status.totals.errors == {"NullText": 2}
    assert found.counts.tokens == status.totals.document_tokens
    assert found.counts.parts == status.totals.parts
    kept = sum(row["kept_tokens"] for row in bench.rows() if "kept_tokens" in row)
    assert found.counts.kept_tokens >= kept > 0


def test_bytes_follow_from_the_model_and_the_budget(bench: Bench) -> None:
    record = bench.job(answer={"over": "kept"}).model_dump(mode="json")
    record["model"]["dtype"] = "float32"
    found = estimate(Job.model_validate(record), measure=False)
    counts = found.counts
    assert found.full_kv_bytes == counts.tokens * BYTES_PER_TOKEN
    assert counts.kept_tokens == 2 * sum(min(96, length) for length in _tokens(bench))
    assert found.kept_kv_bytes == counts.kept_tokens * BYTES_PER_TOKEN
    widened = 96 + 2 * 4
    per_chunk = [min(widened, size) for length in _tokens(bench) for size in _chunks(length)]
    assert counts.chunks == len(per_chunk)
    assert found.store_bytes == 2 * sum(per_chunk) * BYTES_PER_TOKEN
    assert estimate(bench.job(), measure=False).store_bytes == 0


KEPT = {"block_tokens": 16, "widen_tokens": 4}
PAIRS = {"scorer": {"kind": "keydiff"}, "budget": {"kind": "adaptive", "tokens": 48}, "question": "unknown"}
STORED: dict[str, dict[str, Any]] = {
    "for each question": {"keep": KEPT | {"budget": {"kind": "uniform", "tokens": 48}}, "answer": {"over": "kept"}},
    "for all questions": {"keep": KEPT | PAIRS, "answer": {"over": "kept"}},
    "a share of each chunk": {"keep": KEPT | PAIRS | {"chunk_fraction": 0.25}, "answer": {"over": "kept"}},
    "as bytes": {"keep": KEPT | PAIRS | {"codec": "int8"}, "answer": {"over": "kept"}},
    "as an index": {"keep": KEPT | {"question": "unknown", "scorer": {"kind": "index"}}},
    "text": {},
}


@pytest.mark.parametrize("way", STORED)
def test_a_run_stores_what_its_plan_said_at_most(bench: Bench, tmp_path: Path, way: str) -> None:
    """And not much less, or the number would be of no use."""
    store = {"keep": True, "tiers": [{"kind": "files", "path": str(tmp_path)}]}
    job = bench.job(way, store=store, **STORED[way])
    promised = estimate(job, measure=False).store_bytes
    run(job)
    tier = FilesTier(tmp_path, 2**30)
    blocks = [tier.get(key) for key in tier.keys()]  # noqa: SIM118 (no mapping)
    stored = sum(block.keys_ND.nbytes + block.values_ND.nbytes for block in blocks if block is not None)
    assert blocks and promised is not None and 0.4 * promised <= stored <= promised


def test_a_question_keeps_no_more_than_its_chunks_may(bench: Bench) -> None:
    keep = KEPT | PAIRS | {"budget": {"kind": "adaptive", "tokens": 400}, "chunk_fraction": 0.25}
    job = bench.job(keep=keep, answer={"over": "kept"})
    promised = estimate(job, measure=False).counts.kept_tokens
    run(job)
    kept = sum(row["kept_tokens"] for row in bench.rows() if "kept_tokens" in row)
    assert 0.8 * promised <= kept <= promised


def test_nobody_knows_what_an_index_takes_before_calibration(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    job = bench.job(**STORED["as an index"])
    bare = replace(Profile.load(bench.profile), index=None)
    bare.save(bench.root / "bare.json")
    model = job.model.model_copy(update={"profile": str(bench.root / "bare.json")})
    assert estimate(job.model_copy(update={"model": model}), measure=False).store_bytes is None


def _tokens(bench: Bench) -> list[int]:
    """The byte tokenizer has one token per character of the corpus."""
    import pyarrow.parquet as pq

    return [len(text) for text in pq.read_table(bench.corpus)["text"].to_pylist() if text]


def _chunks(length: int) -> list[int]:
    return [min(128, length - start) for start in range(0, length, 128)]


@pytest.mark.parametrize("over", ["reread", "kept"])
@pytest.mark.parametrize("context", ["isolated", "carried"])
def test_time_rests_on_one_chunk_measured_here(bench: Bench, over: str, context: str) -> None:
    store = {"tiers": [{"kind": "files", "path": str(bench.root / "store")}]}
    read = {"chunk_tokens": 128, "context": context}
    found = estimate(bench.job(answer={"over": over}, read=read, store=store))
    assert found.measured is not None and found.seconds is not None
    assert found.measured.chunk_tokens == 128 and found.measured.chunk_questions == 2
    assert found.measured.seconds_chunk > 0 and found.measured.seconds_answer > 0
    assert 0 < found.measured.answer_tokens <= 96
    assert not (bench.root / "store").exists()


def test_every_document_ticks(bench: Bench) -> None:
    ticks: list[tuple[int, int]] = []
    estimate(bench.job(), measure=False, tick=lambda done, total: ticks.append((done, total)))
    assert ticks == [(done, len(LENGTHS)) for done in range(1, len(LENGTHS) + 1)]


def test_time_is_shared_by_engines_and_unknown_without_a_measurement() -> None:
    counts = Counts(
        documents=1,
        unasked=0,
        questions=10,
        failures={},
        tokens=10_000,
        longest=10_000,
        chunks=10,
        offered_tokens=0,
        kept_tokens=0,
        again_tokens=0,
        answer_tokens=0,
        parts=1,
    )
    measured = Measured(1000, 1, seconds_chunk=2.0, answer_tokens=100, seconds_answer=1.0)
    found = Estimate(counts, "float32", 2048, 1, 1, 0, engines=3, measured=measured, unmeasured="")
    assert found.seconds == pytest.approx((10 * 2.0 + 10 * 1.0) / 3)
    unknown = Estimate(counts, "float32", 2048, 1, 1, 0, engines=3, measured=None, unmeasured="why")
    assert unknown.seconds is None


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"model": {"profile": "auto"}}, "not calibrated"),
        ({"corpus": {"text": "nothing"}}, "no document"),
    ],
)
def test_why_nothing_was_measured_is_said(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, dict[str, str]], why: str
) -> None:
    monkeypatch.setenv("FOVEATE_CACHE", str(tmp_path / "cache"))
    import pyarrow.parquet as pq

    table = pq.read_table(bench.corpus)
    pq.write_table(table.append_column("nothing", [[None] * table.num_rows]), bench.corpus)
    record = bench.job().model_dump(mode="json")
    job = Job.model_validate({**record, **{key: record[key] | value for key, value in changes.items()}})
    found = estimate(job)
    assert found.seconds is None and why in found.unmeasured
