"""What a store that outlives its questions takes and saves: ``python -m pipeline.evaluation stored``.

A text is asked about as a user does it, by the steps of ``foveate ask``, over a directory. The first table says what
1,000 tokens take on disk by what is kept and how it is held, against all keys and values; the second how long a
question to a text that was read before takes, against one to a text that must be read. Invariants: bytes are those of
the files; reading and finding take turns, and each ratio is of one turn, so that a busy machine slows both; every
answer from the store is compared with that of a first reading, in a store of its own.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from cache_store.archive import open_archive
from configs.schema import Model
from pipeline.ask import Reply, Request, asked
from pipeline.evaluation.machine import describe_machine
from pipeline.evaluation.tables import table
from pipeline.evaluation.tasks.reference import reference_text
from pipeline.quantities import in_bytes
from workers.hf import Tokenizer, model_shape
from workers.loading import resolve_runtime
from workers.source import locate


@dataclass(frozen=True)
class Way:
    """A way to keep a text for later questions: ``settings`` of ``foveate ask --set``."""

    name: str
    settings: tuple[str, ...]


def _pairs(scorer: str, *settings: str) -> tuple[str, ...]:
    kept = ("keep.budget={kind: adaptive, tokens: 1024}", "keep.chunk_fraction=0.25", "answer.over=kept")
    return (f"keep.scorer={{kind: {scorer}}}", *kept, *settings)


WAYS = (
    Way("attention index", ()),
    Way("attention index, int8", ("keep.codec=int8",)),
    Way("KVzip, a quarter of each chunk", _pairs("reconstruct")),
    Way("the same, float32", _pairs("reconstruct", "keep.codec=float32")),
    Way("the same, float16", _pairs("reconstruct", "keep.codec=float16")),
    Way("the same, int8", _pairs("reconstruct", "keep.codec=int8")),
    Way("KVzip, a sixteenth of each chunk", _pairs("reconstruct", "keep.chunk_fraction=0.0625")),
    Way("KVzip, all that the document could keep", _pairs("reconstruct", "keep.chunk_fraction=null")),
    Way("Expected Attention, a quarter", _pairs("expected")),
    Way("gate, a quarter", _pairs("gate")),
)
"""What the first table compares; the first is what ``foveate ask`` does."""
TIMED = (WAYS[0], WAYS[2])
"""What the second one does."""
QUESTIONS = (
    "What does the with statement do?",
    "What is a generator?",
    "How are default parameter values evaluated?",
    "What does the global statement do?",
)


@dataclass(frozen=True)
class Told:
    """An answer, and what it took: ``seconds`` of the whole command, the model's loading included."""

    reply: Reply
    seconds: float


@dataclass(frozen=True)
class Bench:
    """One model, and a place for texts and stores."""

    model: str
    work: Path

    def text(self, tokens: int) -> Path:
        """So many tokens of the reference text, as a file."""
        text = reference_text("held_out", whole=True)
        _, offsets = Tokenizer(locate(self.model).directory).encode_with_offsets(text[: 8 * tokens])
        path = self.work / f"{tokens}.txt"
        path.write_text(text[: offsets[tokens - 1][1]])
        return path

    def ask(self, way: Way, text: Path, store: Path, question: str) -> Told:
        """Ask as the command does. Raises ``RuntimeError`` for what could not be answered."""
        request = Request((question,), (str(text),), str(store), self.model, None, way.settings)
        started = time.perf_counter()
        with asked(request) as found:
            [reply] = found.replies()
        if reply.answer is None:
            raise RuntimeError(f"{way.name}: {reply.error}")
        return Told(reply, time.perf_counter() - started)

    def full_bytes(self) -> int:
        """All keys and values of a token, as the model computes them."""
        shape = model_shape(locate(self.model).directory)
        itemsize = resolve_runtime(Model(source=self.model)).torch_dtype.itemsize
        return 2 * shape.num_layers * shape.num_kv_heads * shape.head_dim * itemsize


def stored_bytes(store: Path) -> int:
    """Of the entries in a store's files."""
    return sum(entry.num_bytes for entry in open_archive(str(store)).inventory().entries)


def weighed(bench: Bench, ways: Sequence[Way], tokens: int) -> Iterator[list[str]]:
    """A row for each way: what 1,000 tokens of a text take, seconds of engines to read it and to answer from it."""
    text, full = bench.text(tokens), bench.full_bytes()
    for way in ways:
        with tempfile.TemporaryDirectory(dir=bench.work) as place:
            store = Path(place)
            first, later = (bench.ask(way, text, store, question) for question in QUESTIONS[:2])
            per_token = stored_bytes(store) / tokens
        _expect_found(way, later)
        yield [
            way.name,
            in_bytes(round(1000 * per_token)),
            f"{per_token / full:.1%}",
            f"{first.reply.seconds:.1f}",
            f"{later.reply.seconds:.1f}",
        ]


def timed(bench: Bench, ways: Sequence[Way], tokens: int) -> Iterator[list[str]]:
    """For each way: reading a text for a question against finding it read, by turns, and which answers agree."""
    text = bench.text(tokens)
    for way in ways:
        with tempfile.TemporaryDirectory(dir=bench.work) as place:
            shared = Path(place) / "shared"
            bench.ask(way, text, shared, QUESTIONS[0])
            turns = []
            for number, question in enumerate(QUESTIONS[1:]):
                own = Path(place) / str(number)
                turns.append((bench.ask(way, text, own, question), bench.ask(way, text, shared, question)))
                _expect_found(way, turns[-1][1])
        same = sum(read.reply.answer == found.reply.answer for read, found in turns)
        yield [
            way.name,
            *_compared([(read.reply.seconds, found.reply.seconds) for read, found in turns]),
            *_compared([(read.seconds, found.seconds) for read, found in turns]),
            f"{same} of {len(turns)}",
        ]


def _expect_found(way: Way, told: Told) -> None:
    """A number is only worth printing if it measured what it says."""
    if told.reply.chunks.read:
        raise RuntimeError(f"{way.name}: {told.reply.chunks.read} chunks were read again")


def _compared(turns: Sequence[tuple[float, float]]) -> tuple[str, str, str]:
    """Medians of both sides in seconds, and of their ratios."""
    reads, finds = zip(*turns, strict=True)
    ratio = median(read / found for read, found in turns)
    return f"{median(reads):.1f}", f"{median(finds):.1f}", f"{ratio:.0f}"


def write_stored(model: str, work: Path, out: Path, *, weighed_tokens: int = 8192, timed_tokens: int = 32_768) -> str:
    """Measure, write the page and return it. Some 25 minutes for the demo model on one core."""
    work.mkdir(parents=True, exist_ok=True)
    bench = Bench(model, work)
    lines = [
        "# What a store takes and saves",
        "",
        f"Made by `python -m pipeline.evaluation stored --model {model}` on {describe_machine(Model(source=model))}.",
        "",
        f"## Bytes, of a text of {weighed_tokens:,} tokens",
        "",
        f"All keys and values take {in_bytes(1000 * bench.full_bytes())} for 1,000 tokens. Seconds are of engines: the "
        "first question reads the text, the later one is another question. Unless said otherwise, numbers are held as "
        "the model computes them.",
        "",
        *table(
            ["kept", "1,000 tokens", "of all pairs", "first question s", "later question s"],
            list(weighed(bench, WAYS, weighed_tokens)),
        ),
        "",
        f"## Seconds, of a text of {timed_tokens:,} tokens",
        "",
        "Medians of three questions, each asked of a text that must be read and of one that was, by turns; *ratio*: "
        "the median of the turns' own. *Same*: answers from the store that are those of a first reading.",
        "",
        *table(
            [
                "kept", "read, engines s", "found, engines s", "ratio",
                "read, command s", "found, command s", "ratio", "same",
            ],
            list(timed(bench, TIMED, timed_tokens)),
        ),
        "",
    ]  # fmt: skip
    page = "\n".join(lines)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(page)
    return page
