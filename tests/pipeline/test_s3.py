"""A whole run from bucket to bucket, over S3's real protocol."""

from __future__ import annotations

from pathlib import Path

import obstore
import pytest
from obstore.store import from_url

from pipeline.directory import existing_directory
from pipeline.driver import run
from pipeline.errors import DirectoryError
from pipeline.status import read_answers, read_status
from tests.pipeline.jobs import Bench


def test_a_run_from_bucket_to_bucket_has_the_rows_of_a_local_one(
    tmp_path: Path, tiny_model: Path, s3_bucket: str
) -> None:
    bench = Bench(tmp_path, tiny_model, [700, 0, 900, 300])
    obstore.put(from_url(s3_bucket), "in/corpus.parquet", bench.corpus)
    run(bench.job("local"))
    corpus = {"path": f"{s3_bucket}/in/*.parquet"}
    answers = f"{s3_bucket}/answers"
    job = bench.job(corpus=corpus, output={"path": answers})
    for _ in range(2):  # the second time it is finished already
        assert run(job).totals.answered == 6
    found = read_answers(existing_directory(answers)).to_pylist()
    expected = read_answers(existing_directory(str(tmp_path / "local"))).to_pylist()
    timed = ("seconds_encode", "seconds_answer", "source_file")
    assert [{k: v for k, v in row.items() if k not in timed} for row in found] == [
        {k: v for k, v in row.items() if k not in timed} for row in expected
    ]
    status = read_status(existing_directory(answers))
    assert status.is_finished and not status.orphans
    with pytest.raises(DirectoryError, match=r"read\.chunk_tokens: 128 -> 64"):
        run(bench.job(corpus=corpus, output={"path": answers}, read={"chunk_tokens": 64}))
