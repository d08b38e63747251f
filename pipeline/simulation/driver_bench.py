"""What a driver does with a document, in pieces that can be timed: the real reader on real text, and no model.

The text is the manual inside Python. Relevance is drawn at random, in the shapes of the job's scorer: what choosing
costs depends on these alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pydoc_data.topics import topics
from typing import Any

import numpy as np

from configs.schema import Job
from pipeline.borders import CUTS
from pipeline.document import Document, job_questions
from pipeline.prepared import Prepared, Selection
from pipeline.reading import DocumentReader
from workers.loading import Reading, find_or_calibrate, load_method, load_reading, with_dtype
from workers.messages import ChunkRelevance, Encode, Encoded, Generated
from workers.selection.profile import Profile

QUESTION = "What does the yield statement do?"


@dataclass(frozen=True)
class Bench:
    """A job with its reader, and the manual cut into documents."""

    job: Job
    reading: Reading
    profile: Profile
    reader: DocumentReader
    documents: tuple[Document, ...]

    @classmethod
    def of(cls, model: str, num_documents: int, num_chars: int | None = None) -> Bench:
        """The manual, or its first ``num_chars`` characters, in documents of one length. A job's defaults, one
        question. Raises as ``load_reading``."""
        record = {
            "corpus": {"path": "-"},
            "questions": [{"id": "q", "text": QUESTION}],
            "model": {"source": model},
            "output": {"path": "-"},
        }
        job = with_dtype(Job.model_validate(record))
        reading = load_reading(job)
        profile = find_or_calibrate(job, reading)
        assert profile is not None, "the default scorer has one"
        method = load_method(job, reading, profile)
        manual = "\n\n".join(topics.values())[:num_chars]
        size = -(-len(manual) // num_documents)
        texts = [manual[start : start + size] for start in range(0, len(manual), size)]
        asked = job_questions(job.questions)
        documents = tuple(Document(str(row), text, "manual", row, asked) for row, text in enumerate(texts))
        return cls(job, reading, profile, DocumentReader(job, reading, method.scorer, method.budget), documents)

    def said_of(self, encode: Encode) -> Encoded:
        """What an engine might answer."""
        [probe], rng = encode.probes, np.random.default_rng(0)
        rows = len(self.profile.scored_rows(probe.scored, len(probe.token_ids)))
        relevance = []
        for chunk in encode.chunks:
            blocks = -(-len(chunk.token_ids) // self.job.keep.block_tokens)
            log_RHB = rng.normal(size=(rows, len(self.profile.heads), blocks)).astype(np.float32)
            relevance.append((ChunkRelevance(log_RHB),))
        return Encoded(tuple(relevance), ("0" * 64,), 0.5, 0)


def preparing(bench: Bench, document: Document) -> Mapping[str, Callable[[], Any]]:
    """Preparing ``document``, whole and in parts."""
    frame, job = bench.reading.frame, bench.job
    ids, offsets = frame.tokenizer.encode_with_offsets(document.text)
    prepared = bench.reader.prepare(document)

    def messages() -> list[Encode]:
        probes = (frame.probe("q", QUESTION),)
        return [Encode(prepared.name, (chunk,), probes, prepared.budget_tokens) for chunk in prepared.chunks]

    return {
        "prepare": lambda: bench.reader.prepare(document),
        "... tokens and offsets": lambda: frame.tokenizer.encode_with_offsets(document.text),
        "... (tokens without offsets)": lambda: frame.tokenizer.encode(document.text),
        "... offsets as an array": lambda: np.array(offsets, dtype=np.int64).reshape(-1, 2),
        "... chunks": lambda: CUTS[job.read.borders](tuple(ids), job.read.chunk_tokens),
        "... probe and messages": messages,
    }


def choosing(bench: Bench, document: Document) -> Mapping[str, Callable[[], Any]]:
    """Choosing what is kept of ``document``, and writing down its answer."""
    prepared = bench.reader.prepare(document)
    encoded = [bench.said_of(encode) for encode in prepared.encodes]
    [selection] = chosen(bench.reader, prepared, encoded)
    return {
        "choose": lambda: chosen(bench.reader, prepared, encoded),
        "answer row": lambda: bench.reader.answer(prepared, 0, selection, Generated("text", 9, 0.5), 1.0),
    }


def chosen(reader: DocumentReader, prepared: Prepared, encoded: Sequence[Encoded]) -> list[Selection]:
    """What each question keeps, of a job that reads once."""
    selections = reader.advance(prepared, encoded)
    assert not isinstance(selections, Prepared)
    return selections
