"""``foveate ask``: questions to documents that were read before; those that were not are read now, once.

A question makes an ordinary job, which the ordinary driver runs into a directory that is thrown away afterwards, over
a store that stays. Invariants: what is kept of a document never depends on a question, so the next one finds it; a
store's entries are never thrown out to make room for new ones; why a text is read although the store is not empty is
said while it is read.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.load import ConfigError, load_job
from configs.schema import Job
from pipeline import driver
from pipeline.ask_watch import ChunkCount, Watch
from pipeline.directory import RunDirectory, existing_directory, open_directory
from pipeline.driver import Report, StopRequest, Summary
from pipeline.outcome import Span
from pipeline.report.committed import answer_tables, failure_tables
from pipeline.texts import with_texts

DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "read": {"borders": "content", "chunk_tokens": 1024},
    "keep": {"question": "unknown", "scorer": {"kind": "index"}, "budget": {"kind": "uniform", "tokens": 1024}},
    "answer": {"over": "reread"},
    "output": {"max_failed_fraction": 1.0},
}
"""What a job is where neither file nor option says otherwise: an attention index, which answers like a reading with the
question and takes a hundredth of the pairs (docs/results/memory.md). Tokens and not a fraction: what is read again fits
into the window, however long the document is."""

NO_LIMIT = "1024TiB"
"""The budget of a store that is named by ``--store``: a smaller one would have its other entries thrown out."""


@dataclass(frozen=True)
class Request:
    """What is asked, as the command line says it. ``config``: a job file to start from; ``settings``: as ``--set``."""

    questions: tuple[str, ...]
    corpus: tuple[str, ...] = ()
    store: str | None = None
    model: str | None = None
    config: Path | None = None
    settings: tuple[str, ...] = ()


def make_job(request: Request, output: str) -> Job:
    """The job that answers a request. Raises ``ConfigError`` for what is missing or cannot work, and for a method whose
    kept sets only one question could use."""
    own: dict[str, object] = {"output.path": output, "store.keep": True}
    own["questions"] = [{"id": f"q{number}", "text": text} for number, text in enumerate(request.questions, start=1)]
    own |= dict.fromkeys(("corpus.question", "corpus.answer_prefix", "corpus.max_new_tokens", "corpus.answer"))
    if request.corpus:
        own["corpus.path"] = list(request.corpus)
    if request.store is not None:
        own["store.tiers"] = [{"kind": "memory"}, _tier(request.store)]
    if request.model is not None:
        own["model.source"] = request.model
    _refuse_gaps(request)
    settings = [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in own.items()]
    job = load_job(request.config, [*settings, *request.settings], DEFAULTS)
    if all(tier.kind in ("memory", "ray") for tier in job.store.tiers):
        raise ConfigError("store.tiers: nothing that outlives the command; allowed: --store with a directory or a URL")
    if job.keep.question == "known":
        raise ConfigError(
            f"keep.question: known: what {job.keep.scorer.kind} keeps for one question no other one finds again; "
            "allowed: unknown, with keep.scorer index, reconstruct, expected, gate, keydiff, accumulated, window, "
            "streaming or random (or `foveate run`, which reads the documents for its own questions)"
        )
    return job


def _refuse_gaps(request: Request) -> None:
    """Name the option, before the job would name the key."""
    set_keys = [setting.partition("=")[0].strip() for setting in request.settings]
    for option, given, key in (
        ("--corpus", request.corpus, "corpus.path"),
        ("--model", request.model, "model.source"),
        ("--store", request.store, "store.tiers"),
    ):
        is_set = any(set_key.startswith(key) or set_key == key.partition(".")[0] for set_key in set_keys)
        if not (given or is_set or request.config):
            raise ConfigError(f"{option}: missing; allowed: {option}, or --config with a job file that has {key}")


def _tier(store: str) -> dict[str, Any]:
    place = {"kind": "objects", "url": store} if "://" in store else {"kind": "files", "path": store}
    return place | {"max_bytes": NO_LIMIT}


@dataclass(frozen=True)
class Reply:
    """What became of a question of a document: an ``answer``, or an ``error``. ``seconds``: engine time."""

    document: str | None
    question: str
    answer: str | None
    error: str | None
    spans: tuple[Span, ...]
    chunks: ChunkCount
    seconds: float


@dataclass(frozen=True)
class Asked:
    """Questions that were asked, while their answers are still there."""

    summary: Summary
    directory: RunDirectory
    watch: Watch

    def replies(self) -> Iterator[Reply]:
        """Answers in the order of documents and questions, then what failed."""
        for table in answer_tables(self.directory):
            for row in table.to_pylist():
                spans = tuple(Span(**span) for span in row["spans"])
                yield self._reply(row, row["answer"], None, spans, row["seconds_encode"] + row["seconds_answer"])
        for table in failure_tables(self.directory):
            for row in table.to_pylist():
                yield self._reply(row, None, f"{row['error']}: {row['message']}", (), 0.0)

    def _reply(
        self, row: Mapping[str, Any], answer: str | None, error: str | None, spans: tuple[Span, ...], seconds: float
    ) -> Reply:
        chunks = self.watch.chunks.get((row["source_file"], row["source_row"]), ChunkCount())
        return Reply(row["id"], row["question"], answer, error, spans, chunks, seconds)


@contextmanager
def asked(
    request: Request, output: str | None = None, *, progress: Report | None = None, stop: StopRequest | None = None
) -> Iterator[Asked]:
    """Ask, and have the answers until the scope ends; with ``output`` they stay there, as a run's. Raises as
    ``driver.run`` and ``make_job``."""
    with tempfile.TemporaryDirectory(prefix="foveate-ask-") as temporary:
        job = make_job(request, output or temporary)
        job = with_texts(job, open_directory(job.output.path))
        watch = Watch(job)
        summary = driver.run(job, progress=progress, stop=stop, on_read=watch)
        watch.close()
        yield Asked(summary, existing_directory(job.output.path), watch)
