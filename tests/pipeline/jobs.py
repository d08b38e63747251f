"""Tiny corpora and jobs over the tiny model: real files, a real engine, milliseconds a document."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from configs.load import job_yaml
from configs.schema import Job
from pipeline.directory import existing_directory
from pipeline.status import read_answers, read_failures
from workers.selection.profile import Profile
from workers.source import locate

WORDS = (
    "the",
    "quick",
    "brown",
    "fox",
    "signed",
    "a",
    "treaty",
    "with",
    "seven",
    "dogs",
    "of",
    "Utrecht",
    "in",
    "April",
)
QUESTIONS = [
    {"id": "who", "text": "Who signed it?", "max_new_tokens": 4},
    {"id": "when", "text": "When?", "answer_prefix": "In", "max_new_tokens": 6},
]


def sentence(num_characters: int, seed: int) -> str:
    """Words without meaning, the same for the same seed."""
    rng = random.Random(seed)
    text = ""
    while len(text) < num_characters:
        text += rng.choice(WORDS) + " "
    return text[:num_characters].strip() or "word"


def write_corpus(path: Path, lengths: Sequence[int], *, rows_per_group: int = 2, **columns: list[Any]) -> Path:
    """A Parquet file of one document per entry of ``lengths`` (characters; 0: a null text)."""
    texts = [sentence(length, seed) if length else None for seed, length in enumerate(lengths)]
    table = pa.table({"id": [f"doc{n}" for n in range(len(lengths))], "text": pa.array(texts, pa.string()), **columns})
    pq.write_table(table, path, row_group_size=rows_per_group)
    return path


class Bench:
    """A place with a corpus and jobs over it; ``run_rows`` reads back what a run wrote."""

    def __init__(self, root: Path, model: Path, lengths: Sequence[int], **columns: list[Any]) -> None:
        self.root = root
        self.corpus = write_corpus(root / "corpus.parquet", lengths, **columns)
        self.profile = root / "profile.json"
        self._model = model
        weights = locate(str(model)).weights
        Profile(weights, ((1, 0), (2, 1)), index=Profile(weights, ((0, 2), (1, 1)))).save(self.profile)

    def job(self, name: str = "out", *, output: dict[str, Any] | None = None, **changes: Any) -> Job:
        """A job with parts of about 2,400 characters that writes to ``name``. ``changes`` replace whole top-level
        entries, ``output`` single keys of that one."""
        record: dict[str, Any] = {
            "corpus": {"path": str(self.corpus)},
            "questions": QUESTIONS,
            "model": {"source": str(self._model), "profile": str(self.profile), "attention": "cpu", "device": "cpu"},
            "read": {"chunk_tokens": 128},
            "keep": {"block_tokens": 16, "widen_tokens": 4, "budget": {"kind": "uniform", "tokens": 96}},
            "answer": {"batch_size": 3},
            "output": {"path": str(self.root / name), "part_tokens": 600, **(output or {})},
        }
        return Job.model_validate(record | changes)

    def write_job(self, job: Job, name: str = "job.yaml") -> Path:
        """The job as a file, for drivers in processes of their own."""
        path = self.root / name
        path.write_text(job_yaml(job))
        return path

    def rows(self, name: str = "out") -> list[dict[str, Any]]:
        """All outcomes of a run, in order, without what a clock measured."""
        directory = existing_directory(str(self.root / name))
        found = [*read_answers(directory).to_pylist(), *read_failures(directory).to_pylist()]
        return [{key: value for key, value in row.items() if not key.startswith("seconds_")} for row in found]


def by_question(rows: Sequence[dict[str, Any]]) -> dict[tuple[str, str], dict[str, Any]]:
    """Rows by (document id, question id); one that comes twice fails."""
    found = {(row["id"], row["question_id"]): row for row in rows}
    assert len(found) == len(rows)
    return found
