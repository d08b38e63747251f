"""What a job may say: frozen, closed models, and the only place where a default is written.

Invariants: every model forbids unknown keys and cannot be changed after it was made; a choice among
methods is a model with a literal ``kind``; units and shapes are in the names. This module imports
neither torch nor ray, so that a laptop can check a job that only a cluster can run.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, ByteSize, Field, model_validator
from pydantic_core import PydanticCustomError

from configs.closed import Closed, Conflict, Impossible, Positive
from configs.conflicts import method_conflicts
from configs.stages import AnswerOver, Keep, Read

Name = Annotated[
    str,
    Field(
        max_length=128,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        description="1 to 128 letters, digits, '.', '_' or '-', the first a letter or digit",
    ),
]


def _whole_size(value: object) -> object:
    """ByteSize alone reads the front of a text: ``2 GiB/s`` would be two GiB."""
    if isinstance(value, str) and not re.fullmatch(r"\s*\d+(\.\d+)?\s*([kmgtpe]?i?b)?\s*", value, re.IGNORECASE):
        raise PydanticCustomError("byte_size", "not a size")
    return value


def _whole_above_one(number: float) -> float:
    """A share of one GPU, or several whole ones: Ray knows nothing between."""
    if number > 1 and number != int(number):
        raise PydanticCustomError("num_gpus", "a fraction above 1; allowed: 0 to 1, or a whole number")
    return number


Bytes = Annotated[ByteSize, BeforeValidator(_whole_size)]


class Corpus(Closed):
    """Where documents lie and which columns hold what. ``path``: file, glob, directory or URL of Parquet.

    ``id: null`` names each document ``<file name>:<row>``. The per-row columns may hold one value or a
    list of values (several questions of one document). ``answer`` is an expected answer: it is compared
    with what the run found and reported, and never shown to the model.
    """

    path: str | tuple[str, ...]
    id: str | None = "id"
    text: str = "text"
    question: str | None = None
    answer_prefix: str | None = None
    max_new_tokens: str | None = None
    answer: str | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        """Every column the job reads, each once, in a fixed order."""
        named = (self.id, self.text, self.question, self.answer_prefix, self.max_new_tokens, self.answer)
        return tuple(dict.fromkeys(name for name in named if name is not None))


class Question(Closed):
    """One question, asked of every document. ``answer_prefix`` is put into the model's mouth."""

    id: Name
    text: Annotated[str, Field(min_length=1)]
    answer_prefix: str = ""
    max_new_tokens: Positive = 48


class Prompt(Closed):
    """The words around document and question. ``system: null`` leaves the model's own default."""

    system: str | None = None
    instruction: str = "Answer the question from the text."


class Model(Closed):
    """Which model answers. ``source``: a directory, a hub id, a ``.gguf`` file, or
    ``package:NAME/FILE.gguf`` for a file inside an installed Python package. ``profile``: retrieval heads;
    ``auto`` takes the shipped or cached one and calibrates a model that has none."""

    source: Annotated[str, Field(min_length=1)]
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    attention: Literal["auto", "cpu", "flash", "torch_flash"] = "auto"
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="auto, cpu, cuda, cuda:N")] = "auto"
    profile: str = "auto"


class MemoryTier(Closed):
    """This process's memory."""

    kind: Literal["memory"] = "memory"
    max_bytes: Bytes = ByteSize(2**30)


class FilesTier(Closed):
    """A directory, shared by all processes that can see it. ``pending_bytes``: what may wait in memory to be written;
    0: each write is waited for."""

    kind: Literal["files"] = "files"
    path: Annotated[str, Field(min_length=1)]
    max_bytes: Bytes = ByteSize(10 * 2**30)
    pending_bytes: Bytes = ByteSize(0)


class ObjectsTier(Closed):
    """Object storage, shared by all processes that have its credentials. ``url``: bucket and folder.
    ``timeout_seconds``: about the longest that one request takes, its transfer included; longer is a miss.
    ``pending_bytes``: as of a directory."""

    kind: Literal["objects"] = "objects"
    url: Annotated[str, Field(min_length=1)]
    max_bytes: Bytes = ByteSize(100 * 2**30)
    timeout_seconds: Annotated[float, Field(gt=0.0)] = 10.0
    pending_bytes: Bytes = ByteSize(256 * 2**20)


class RayTier(Closed):
    """The object stores of a Ray cluster's nodes, for as long as the job runs. ``max_bytes``: of all nodes together,
    each entry counted once; beyond what the nodes' object stores hold, Ray moves entries to their disks."""

    kind: Literal["ray"] = "ray"
    max_bytes: Bytes = ByteSize(2**30)


Tier = Annotated[MemoryTier | FilesTier | RayTier | ObjectsTier, Field(discriminator="kind")]


class Store(Closed):
    """Where kept sets live, fastest tier first. Entries are freed when their part commits, unless ``keep``.
    ``tenant`` separates users of one store: it is part of every key."""

    tiers: tuple[Tier, ...] = (MemoryTier(),)
    keep: bool = False
    tenant: str = ""


class Output(Closed):
    """Where answers go, how much work commits together, and when too many failures stop the run: once more than
    ``max_failed_fraction`` of all planned questions failed, and never before ten did (one of three is no trend);
    0 stops at the first."""

    path: Annotated[str, Field(min_length=1)]
    part_tokens: Positive = 2_000_000
    max_failed_fraction: Annotated[float, Field(ge=0.0, le=1.0)] = 0.1


class LocalWorkers(Closed):
    """Engines in this process: ``workers`` threads that share one copy of the weights."""

    kind: Literal["local"] = "local"
    workers: Positive = 1


class RayWorkers(Closed):
    """Engines as Ray actors, started as there is work for them, at most ``workers`` at once.

    ``address: auto`` joins the running cluster (in a Ray job: its own) and starts one on this machine where there is
    none. With ``num_gpus`` above 1 a model's layers are spread over so many, all of one machine. An engine is stopped
    after ``idle_seconds`` without work, so that its machine can be given back. One that needs more than
    ``task_seconds`` for a chunk or for a question, or more than ``start_seconds`` to load its model, hangs: it is
    replaced.
    """

    kind: Literal["ray"] = "ray"
    workers: Positive = 1
    num_cpus: Annotated[float, Field(gt=0)] = 1
    num_gpus: Annotated[
        float, Field(ge=0, description="0 to 1, or a whole number"), AfterValidator(_whole_above_one)
    ] = 0
    address: str = "auto"
    idle_seconds: Annotated[float, Field(gt=0)] = 60.0
    task_seconds: Annotated[float, Field(gt=0)] = 900.0
    start_seconds: Annotated[float, Field(gt=0)] = 1800.0


Pool = Annotated[LocalWorkers | RayWorkers, Field(discriminator="kind")]


class Job(Closed):
    """One batch job, as a YAML file says it."""

    corpus: Corpus
    questions: tuple[Question, ...] = ()
    prompt: Prompt = Prompt()
    model: Model
    read: Read = Read()
    keep: Keep = Keep()
    answer: AnswerOver = AnswerOver()
    store: Store = Store()
    output: Output
    pool: Pool = LocalWorkers()

    @property
    def skims(self) -> bool:
        """Whether the encode pass stops at the last layer that the scorer looks at."""
        return not self.keeps_pairs if self.read.skim == "auto" else self.read.skim

    @property
    def keeps_pairs(self) -> bool:
        """Whether answers come from kept pairs; otherwise from kept text."""
        return self.answer.over == "kept"

    @model_validator(mode="after")
    def _possible(self) -> Job:
        """Refuse combinations that cannot work; each message names the keys to change."""
        methods = method_conflicts(self.read, self.keep, self.answer)
        conflicts = [*_question_conflicts(self), *methods, *_store_conflicts(self)]
        if conflicts:
            raise Impossible(conflicts)
        return self


def _question_conflicts(job: Job) -> Iterable[Conflict]:
    if not job.questions and job.corpus.question is None:
        yield Conflict(
            ("questions", "corpus.question"),
            "questions: none given; add questions, or name a column of them in corpus.question",
        )
    ids = [question.id for question in job.questions]
    for index, name in enumerate(ids):
        if name in ids[:index]:
            keys = (f"questions[{index}].id", f"questions[{ids.index(name)}].id")
            yield Conflict(keys, f"{keys[0]}: {name!r} is already the id of {keys[1][:-3]}; allowed: unique ids")


def _store_conflicts(job: Job) -> Iterable[Conflict]:
    shared = any(tier.kind != "memory" for tier in job.store.tiers)
    if job.pool.kind == "ray" and job.pool.workers > 1 and job.answer.over == "kept" and not shared:
        yield Conflict(
            ("store.tiers", "answer.over", "pool.kind", "pool.workers"),
            f"store.tiers: answer.over: kept on {job.pool.workers} ray workers needs a tier that they share; "
            "allowed: a tier {kind: ray} or {kind: files, path: ...}, or answer.over: reread, or pool.workers: 1",
        )
