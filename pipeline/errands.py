"""What a driver sets out to do: the parts that nobody has committed, or the failures of those that are.

Invariants: an errand yields the rows of each part in order, then the part's end; whether a part still needs
doing is asked of the directory before its first row, not of this process's memory.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Protocol

from pipeline.commit import CommitRecord, Totals
from pipeline.corpus import CorpusFiles, Document
from pipeline.ledger import FinishedPart
from pipeline.outcome import Failure
from pipeline.plan import Part
from pipeline.sink import RunState


@dataclass(frozen=True)
class Extent:
    """So much of a run: planned, or done before this process began. ``tokens``: as ``plan.Part`` estimates;
    ``read_tokens``: as they were counted when they were read."""

    parts: int
    documents: int
    tokens: int
    failed: int = 0
    read_tokens: int = 0

    def __add__(self, other: Extent) -> Extent:
        return Extent(*(getattr(self, own.name) + getattr(other, own.name) for own in fields(self)))

    @classmethod
    def of(cls, parts: Iterable[Part], records: Mapping[int, CommitRecord]) -> Extent:
        """Those of ``parts`` that were committed, as ``records`` say."""
        done = [part for part in parts if part.index in records]
        past = Totals.of([records[part.index] for part in done])
        rows, tokens = sum(part.rows for part in done), sum(part.tokens for part in done)
        return cls(len(done), rows, tokens, past.failed, past.document_tokens)


NOTHING = Extent(0, 0, 0)


@dataclass(frozen=True)
class Share:
    """Which of several drivers of one run this is: ``number`` from 1 to ``of``. It begins with every ``of``-th part.
    Nobody is told of the others, and a share is where a driver begins, not where it ends: each goes on until the whole
    run is committed, so that one that dies leaves nothing undone."""

    number: int = 1
    of: int = 1

    @classmethod
    def parse(cls, text: str) -> Share:
        """``2/4`` -> the second of four. ``ValueError`` says what is allowed."""
        number, _, of = text.partition("/")
        if not (number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of)):
            raise ValueError(f"{text!r}; allowed: NUMBER/OF, such as 1/4, 2/4, 3/4 and 4/4 for four drivers")
        return cls(int(number), int(of))

    def own(self, parts: Sequence[Part]) -> Sequence[Part]:
        """The parts to begin with."""
        return parts[self.number - 1 :: self.of]

    def others(self, parts: Sequence[Part]) -> Iterator[Part]:
        """Parts of the other shares, each from its end: its own driver comes from its beginning."""
        for step in range(1, self.of):
            yield from reversed(parts[(self.number - 1 + step) % self.of :: self.of])


@dataclass(frozen=True)
class Row:
    """A row of the corpus in its part, or with ``document`` None the end of that part. ``only``: ids of the
    questions to ask of it (None: all)."""

    part: int
    document: Document | None
    only: Collection[str] | None = None


WHOLE = Share()
"""Of the only driver there is, as far as it knows."""


class Errand(Protocol):
    """Rows to work on, and where their outcomes go."""

    elsewhere: Extent
    """What other drivers have done of it since it was begun, as far as it is known."""

    def rows(self) -> Iterator[Row]:
        """The rows, part after part."""

    def commit(self, part: FinishedPart) -> bool:
        """Make the outcomes of a part durable; False where another driver's stand instead."""

    def unwanted(self, part: FinishedPart) -> Sequence[str]:
        """The store entries of a committed part that nobody needs any more."""


class _OverParts:
    """What errands over parts of the plan have in common."""

    def __init__(self, state: RunState, corpus: CorpusFiles, *, keep: bool) -> None:
        """``keep``: store entries outlive their part."""
        self._state, self._corpus, self._keep = state, corpus, keep
        self.elsewhere = NOTHING
        """As ``Errand.elsewhere``."""

    def unwanted(self, part: FinishedPart) -> Sequence[str]:
        """As ``Errand.unwanted``."""
        return () if self._keep else part.keys

    def _documents(self, part: Part) -> Iterator[Document]:
        for run in part.runs:
            yield from self._corpus.rows(run, self._state.plan.first_places)


class FreshParts(_OverParts):
    """Every part that no driver has committed."""

    def __init__(self, state: RunState, corpus: CorpusFiles, *, keep: bool, share: Share = WHOLE) -> None:
        """``keep``: store entries outlive their part."""
        super().__init__(state, corpus, keep=keep)
        self._share = share
        self._before = frozenset(state.committed())
        self._lost_a_race = False

    def rows(self) -> Iterator[Row]:
        """Its share in plan order, then what the others have left. A driver that lost a race over a part of its share
        goes on from the end, to meet the other one in the middle instead of at every part."""
        parts = self._state.plan.parts
        own = deque(self._share.own(parts))
        while own:
            yield from self._rows_of(own.pop() if self._lost_a_race else own.popleft())
        for part in self._share.others(parts):
            yield from self._rows_of(part)

    def _rows_of(self, part: Part) -> Iterator[Row]:
        records = self._state.committed()
        if part.index not in records:
            yield from (Row(part.index, document) for document in self._documents(part))
            yield Row(part.index, None)
        elif part.index not in self._before:
            self.elsewhere += Extent.of([part], records)

    def commit(self, part: FinishedPart) -> bool:
        """As ``Errand.commit``; losing the race to another driver is fine, the part is done."""
        outcomes = (part.answers, part.failures, part.num_documents, part.num_questions)
        is_ours = self._state.commit(part.index, *outcomes)
        self._lost_a_race = self._lost_a_race or not is_ours
        return is_ours


class FailedQuestions(_OverParts):
    """The retryable failures of the committed parts. ``records``: the commits that have any."""

    def __init__(self, state: RunState, corpus: CorpusFiles, *, keep: bool) -> None:
        """``keep``: store entries outlive their part."""
        super().__init__(state, corpus, keep=keep)
        self.records = {index: record for index, record in state.committed().items() if record.retryable}
        self._failures: dict[int, list[Failure]] = {}

    @property
    def extent(self) -> Extent:
        """How much there is to do; tokens are not known before the documents are read."""
        again = {_row(f) for index in self.records for f in self._state.failures(index) if f.retryable}
        return Extent(len(self.records), len(again), 0)

    def rows(self) -> Iterator[Row]:
        """The documents with such failures, each with the questions to ask again."""
        for index in self.records:
            self._failures[index] = self._state.failures(index)
            again: dict[tuple[str, int], set[str]] = {}
            for failure in self._failures[index]:
                if failure.retryable:
                    again.setdefault(_row(failure), set()).add(failure.question_id)
            for document in self._documents(self._state.plan.parts[index]):
                if only := again.get(_row(document)):
                    yield Row(index, document, only)
            yield Row(index, None)

    def commit(self, part: FinishedPart) -> bool:
        """As ``Errand.commit``. A new failure counts the attempts of the old one too; if another driver retried
        the part meanwhile, its outcomes stand."""
        old = self._failures.pop(part.index)
        attempts = {(*_row(failure), failure.question_id): failure.attempts for failure in old}
        failures = [failure for failure in old if not failure.retryable]
        for failure in part.failures:
            before = attempts[(*_row(failure), failure.question_id)]
            failures.append(replace(failure, attempts=failure.attempts + before))
        return self._state.recommit(part.index, part.answers, failures, self.records[part.index].revision)


def _row(of: Document | Failure) -> tuple[str, int]:
    return of.source_file, of.source_row
