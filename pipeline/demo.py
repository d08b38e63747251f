"""The demo corpus: the language reference that ships with every Python, as a few long documents with questions.

``python -m pipeline.demo build DIR`` writes ``DIR/corpus/python-reference.parquet`` from
``pydoc_data.topics``: real text, nothing planted, no tokenizer and no network needed. Invariants: the same
Python gives the same rows in the same order; a document never falls below its size (a topic that this Python
lacks is left out, and missing too much is an error); every question's passage is in its document, so an
expected answer can be found there.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics as PYTHON_TOPICS

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import CorpusError, JobError

# The reference has 3.6 to 4.4 characters per SmolLM2 token in prose and up to 5.2 in its wide tables; the
# sizes leave a margin: 180,000 characters are more than 40,000 tokens, 22,000 more than 5,000.
LONG_CHARS = 180_000
SHORT_CHARS = 22_000

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("text", pa.string()),
        ("question", pa.list_(pa.string())),
        ("answer_prefix", pa.list_(pa.string())),
        ("max_new_tokens", pa.list_(pa.int32())),
        ("answer", pa.list_(pa.string())),
    ]
)


@dataclass(frozen=True)
class DemoQuestion:
    """A question and the ``passage`` that answers it, verbatim but for whitespace. ``answer``: what a right
    answer must contain; None where no short string decides. ``prefix`` is put into the model's mouth."""

    question: str
    passage: str
    prefix: str = ""
    answer: str | None = None
    max_new_tokens: int = 16

    def is_in(self, text: str) -> bool:
        """Whether ``text`` holds the passage; lines are wrapped differently in every Python version."""
        return _without_whitespace(self.passage) in _without_whitespace(text)


@dataclass(frozen=True)
class DemoDocument:
    """Topics of the reference, joined in this order. ``min_chars``: the least number of characters."""

    id: str
    topics: tuple[str, ...]
    questions: tuple[DemoQuestion, ...]
    min_chars: int = SHORT_CHARS

    def text(self, topics: Mapping[str, str]) -> str:
        """The joined topics, those that ``topics`` lacks left out; ``CorpusError`` if too little remains."""
        text = "\n\n\n".join(topics[name].strip() for name in self.topics if name in topics)
        if len(text) < self.min_chars:
            missing = ", ".join(name for name in self.topics if name not in topics) or "none"
            raise CorpusError(
                f"demo document {self.id!r}: {len(text):,} characters, at least {self.min_chars:,} are needed; "
                f"topics that the pydoc_data of Python {sys.version.split()[0]} lacks: {missing}"
            )
        return text

    def asked(self, text: str) -> tuple[DemoQuestion, ...]:
        """The questions whose passage is in ``text``: one that this Python words differently is not asked.
        ``CorpusError`` if none is left whose answer can be checked."""
        asked = tuple(question for question in self.questions if question.is_in(text))
        if not any(question.answer for question in asked):
            raise CorpusError(
                f"demo document {self.id!r}: the pydoc_data of Python {sys.version.split()[0]} has the passage "
                f"of no question with a checkable answer"
            )
        return asked


DOCUMENTS = (
    DemoDocument(
        id="data-model-and-statements",
        topics=(
            "objects",
            "types",
            "specialnames",
            "execmodel",
            "import",
            "assignment",
            "calls",
            "compound",
        ),
        min_chars=LONG_CHARS,
        questions=(
            DemoQuestion(
                "Which abstract class defines what can be done with sys.stdin, sys.stdout and sys.stderr?",
                passage='follow the interface defined by the "io.TextIOBase" abstract class',
                prefix="They follow the abstract class",
                answer="TextIOBase",
            ),
            DemoQuestion(
                "Which exception is raised if a class derived from int has nonempty __slots__?",
                passage='"TypeError" will be raised if nonempty *__slots__* are defined for a class derived from',
                prefix="The exception is",
                answer="TypeError",
            ),
            DemoQuestion(
                "In a sequence pattern, how is the length of the subject sequence obtained?",
                passage='The length of the subject sequence is obtained via "len()"',
                prefix="It is obtained via",
                answer="len()",
            ),
        ),
    ),
    DemoDocument(
        id="errors-and-debugging",
        topics=("exceptions", "raise", "assert", "debugger"),
        questions=(
            DemoQuestion(
                "Which exception is raised by a raise statement without expressions if there is no active exception?",
                passage='If there isn’t currently an active exception, a "RuntimeError" exception is raised',
                prefix="It is a",
                answer="RuntimeError",
            ),
            DemoQuestion(
                "Which model of error handling does Python use?",
                passage="Python uses the “termination” model of error handling",
                prefix="Python uses the",
                answer="termination",
            ),
            DemoQuestion(
                "How can a breakpoint be set that is removed once it was hit?",
                passage="Temporary breakpoint, which is removed automatically when it is first hit.",
                max_new_tokens=32,
            ),
        ),
    ),
    DemoDocument(
        id="string-formatting",
        topics=("formatstrings",),
        questions=(
            DemoQuestion(
                "Which character fills a field by default when it is aligned?",
                passage="any character and defaults to a space if omitted",
                prefix="The default is a",
                answer="space",
            ),
            DemoQuestion(
                "How can a brace character be included in the literal text?",
                passage="it can be escaped by doubling",
                prefix="It can be escaped by",
                answer="doubling",
            ),
        ),
    ),
    DemoDocument(
        id="string-methods",
        topics=("string-methods",),
        questions=(
            DemoQuestion(
                "Which exception does str.join() raise if the iterable holds values that are not strings?",
                passage='A "TypeError" will be raised if there are any non-string values in *iterable*',
                prefix="It raises a",
                answer="TypeError",
            ),
            DemoQuestion(
                "What does str.find() return if the substring is not found?",
                passage='Return "-1" if *sub* is not found.',
                prefix="It returns",
                answer="-1",
            ),
            DemoQuestion(
                "What is casefolding good for?",
                passage="Casefolded strings may be used for caseless matching.",
                max_new_tokens=32,
            ),
        ),
    ),
    DemoDocument(
        id="sequences-and-mappings",
        topics=("typesseq", "typesmapping"),
        questions=(
            DemoQuestion(
                "Which exception is raised if the step of a range is zero?",
                passage='If *step* is zero, "ValueError" is raised.',
                prefix="The exception is",
                answer="ValueError",
            ),
            DemoQuestion(
                "In which order does popitem() return the pairs of a dictionary?",
                passage="Pairs are returned in LIFO (last-in, first-out) order.",
                prefix="Pairs are returned in",
                answer="LIFO",
            ),
        ),
    ),
)


def demo_table(topics: Mapping[str, str] = PYTHON_TOPICS) -> pa.Table:
    """One row per document, columns as in ``SCHEMA``; the lists of a row have one entry per question.
    Raises ``CorpusError`` if ``topics`` holds too little for a document."""
    rows = []
    for document in DOCUMENTS:
        text = document.text(topics)
        asked = document.asked(text)
        rows.append(
            {
                "id": document.id,
                "text": text,
                "question": [question.question for question in asked],
                "answer_prefix": [question.prefix for question in asked],
                "max_new_tokens": [question.max_new_tokens for question in asked],
                "answer": [question.answer for question in asked],
            }
        )
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def build(directory: Path, topics: Mapping[str, str] = PYTHON_TOPICS) -> Path:
    """Write the corpus below ``directory`` and return its file; an older one is replaced in one step.
    One document is one row group, so that a part of the run can begin at any of them."""
    table = demo_table(topics)
    path = directory / "corpus" / "python-reference.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = path.with_name(f".{path.name}.staged")
    pq.write_table(table, staged, row_group_size=1, compression="zstd", write_page_checksum=True)
    staged.replace(path)
    return path


def _without_whitespace(text: str) -> str:
    return re.sub(r"\s+", "", text)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 0, or 2 with a message where this Python's reference does not suffice."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.demo", description="The corpus of the demo.")
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("build", help="write DIR/corpus/*.parquet from this Python's manual")
    command.add_argument("directory", metavar="DIR", type=Path)
    directory: Path = parser.parse_args(arguments).directory
    try:
        path = build(directory)
    except JobError as error:
        print(error, file=sys.stderr)
        return 2
    rows = pq.read_table(path).to_pylist()
    for row in rows:
        print(f"{row['id']}: {len(row['text']):,} characters, {len(row['question'])} questions")
    print(f"{path}: {len(rows)} documents")
    return 0


if __name__ == "__main__":
    sys.exit(main())
