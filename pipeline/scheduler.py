"""Which task runs next, and what its result means: a pure state machine.

Rows go in one by one, in order; tasks come out, their results go in, and parts come out whole. It knows
neither Ray nor clock, file nor model, so a test can drive it through thousands of histories in a second.

Invariants: every question of every row ends as exactly one outcome; a task is in the pool at most once at a
time; batches of questions are fixed by row order alone, so no answer depends on timing or on the number of
workers (a question whose document failed leaves its batch, and nobody takes its place); a document is read in
rounds, and a round begins when every message of the one before has come back; a part comes out when all its
questions have ended and none of its tasks is in the pool; what is held in memory is bounded by the window and
not by the corpus.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from pipeline.ledger import FinishedPart, PartBook, RowBook
from pipeline.order import ReadingOrder
from pipeline.outcome import Answer, Failure
from pipeline.pool import Result
from pipeline.prepared import Prepared, Selection, fail
from pipeline.retry import Again, CutSmaller, GiveUp, Split, Tally, judge
from workers.messages import Answered, Ask, Encode, Encoded, Generated

_UNTRIED = Tally()

OnRead = Callable[[Prepared, Encoded], None]
"""Hears of every message that was read, of which document, whether its result is still wanted or not."""


class Reader(Protocol):
    """What the scheduler asks of ``reading.DocumentReader``."""

    def cut_smaller(self, prepared: Prepared) -> Prepared | None:
        """The same document from its first round on, in chunks half as long; None where they are one block already."""

    def advance(self, prepared: Prepared, encoded: Sequence[Encoded]) -> Prepared | list[Selection]:
        """What each question keeps, once all of this round has been read; or the document prepared for another."""

    def answer(
        self, prepared: Prepared, index: int, selection: Selection, generated: Generated, seconds_encode: float
    ) -> Answer:
        """The output row of question ``index``."""


@dataclass(eq=False)
class _Document:
    """A row with questions to ask, on its way through reading and answering."""

    part: PartBook
    row: RowBook
    prepared: Prepared
    encoded: dict[int, Encoded] = field(default_factory=dict)
    selections: list[Selection] = field(default_factory=list)
    batches: list[_Batch] = field(default_factory=list)
    seconds_encode: float = 0.0

    @property
    def settled(self) -> bool:
        """Whether a batch need not wait for this document: it is selected, or nothing of it is open."""
        return bool(self.selections) or not self.row.open


@dataclass(frozen=True, eq=False)
class _Pair:
    """A question of a document: ``index`` counts in ``Prepared.asked``."""

    document: _Document
    index: int

    @property
    def open(self) -> bool:
        return self.index in self.document.row.open


@dataclass(eq=False)
class _Batch:
    """Questions that are answered together; closed when it is full or its part ends."""

    pairs: list[_Pair] = field(default_factory=list)
    closed: bool = False


@dataclass(eq=False)
class _Reading:
    """The task of reading message ``index`` of a round of a document, as it was prepared when the task was made."""

    task_id: int
    document: _Document
    prepared: Prepared
    index: int
    tally: Tally = _UNTRIED

    @property
    def outdated(self) -> bool:
        """Whether the document has been cut smaller since: a round only ends when all its tasks are back."""
        return self.prepared is not self.document.prepared

    @property
    def part(self) -> PartBook:
        return self.document.part

    @property
    def message(self) -> Encode:
        return self.prepared.encodes[self.index]


@dataclass(eq=False)
class _Asking:
    """The task of answering questions of one batch."""

    task_id: int
    pairs: list[_Pair]
    tally: Tally = _UNTRIED

    @property
    def part(self) -> PartBook:
        return self.pairs[0].document.part

    @property
    def message(self) -> Ask:
        return Ask(tuple(pair.document.selections[pair.index].query for pair in self.pairs))


class Scheduler:
    """See the module. ``add`` and ``close_part`` in row order, ``next_task`` and ``finish`` in any order."""

    def __init__(
        self, reader: Reader, *, batch_size: int, window_tokens: int, num_slots: int, on_read: OnRead | None = None
    ) -> None:
        """``num_slots``: tasks that the pool can hold at once."""
        self._reader = reader
        self._on_read = on_read
        self._batch_size = batch_size
        self._window_tokens = window_tokens
        self._num_slots = num_slots
        self._parts: dict[int, PartBook] = {}
        self._batch = _Batch()
        self._asks: deque[_Asking] = deque()
        self._encodes: ReadingOrder[_Reading] = ReadingOrder()
        self._num_parts_begun = 0
        self._running: dict[int, _Reading | _Asking] = {}
        self._next_id = 0
        self.held_tokens = 0
        """Tokens of the documents that are read in and not yet done."""
        self.encoded_tokens = 0
        """Tokens that came back from the pool as read for the first time, since the start."""
        self.num_documents_done = 0
        self.errors: Counter[str] = Counter()
        """Questions that ended as failures, since the start, by class of error."""
        self.last_failure: Failure | None = None

    @property
    def num_failed(self) -> int:
        """Questions that ended as failures, since the start."""
        return self.errors.total()

    # -- rows in, parts out ----------------------------------------------------------------------

    @property
    def wants_rows(self) -> bool:
        """Whether more rows should be added: the window has room, or workers would go idle. The second
        also opens a batch that waits for company from a row not yet added."""
        return self.held_tokens < self._window_tokens or self.num_ready + len(self._running) < self._num_slots

    @property
    def idle(self) -> bool:
        """Whether every part that was begun has been taken out again."""
        return not self._parts

    @property
    def num_ready(self) -> int:
        """Tasks that wait for a slot."""
        return len(self._asks) + len(self._encodes)

    def add(self, part: int, prepared: Prepared, only: Collection[str] | None = None) -> None:
        """Take the next row. ``only``: ids of the questions to ask of it; the others get no outcome, but the
        document is read with them, so that answers come out as they would have with all."""
        wanted = [i for i, q in enumerate(prepared.asked) if only is None or q.question_id in only]
        unfit = [f for f in prepared.failures if only is None or f.question_id in only]
        book = self._book(part)
        assert not book.closed
        row = RowBook(unfit, wanted)
        book.rows.append(row)
        for failure in unfit:
            self._count(failure)
        if not wanted:
            self.num_documents_done += 1
            return
        document = _Document(book, row, prepared)
        book.num_open_rows += 1
        self.held_tokens += prepared.num_tokens
        self._encodes.add(self._readings(document), book.turn, prepared.num_tokens)
        for index in wanted:
            self._enrol(_Pair(document, index))

    def close_part(self, part: int) -> None:
        """No more rows of this part: its last batch is as full as it gets."""
        self._book(part).closed = True
        self._close_batch()

    def take_finished(self) -> list[FinishedPart]:
        """Parts that are complete, each once, lowest index first."""
        done = sorted(index for index, part in self._parts.items() if part.complete)
        return [self._parts.pop(index).finish() for index in done]

    def _book(self, part: int) -> PartBook:
        if part not in self._parts:
            self._parts[part] = PartBook(part, self._num_parts_begun)
            self._num_parts_begun += 1
        return self._parts[part]

    # -- tasks out, results in -------------------------------------------------------------------

    def next_task(self) -> tuple[int, Encode | Ask] | None:
        """The next task to submit, with its id: answers before reading, reading as ``ReadingOrder`` says."""
        while self._asks:
            asking = self._asks.popleft()
            asking.pairs = [pair for pair in asking.pairs if pair.open]
            if asking.pairs:
                return self._start(asking)
        reading = self._encodes.take()
        return None if reading is None else self._start(reading)

    def finish(self, task_id: int, result: Result) -> None:
        """Take back a task with its result."""
        task = self._running.pop(task_id)
        task.part.num_running -= 1
        if self._on_read is not None and isinstance(task, _Reading) and isinstance(result, Encoded):
            self._on_read(task.prepared, result)
        if isinstance(task, _Reading) and task.outdated:
            task.part.keys.extend(result.keys if isinstance(result, Encoded) else ())
        elif isinstance(task, _Reading) and isinstance(result, Encoded):
            self._take_encoded(task, result)
        elif isinstance(task, _Asking) and isinstance(result, Answered):
            self._take_answered(task, result)
        else:
            assert not isinstance(result, Encoded | Answered), f"{task} came back as {type(result).__name__}"
            task.tally = task.tally.after(result)
            size = len(task.pairs) if isinstance(task, _Asking) else 0
            match judge(task.tally, result, size):
                case Again():
                    self._put_back(task)
                case Split(batch_size):
                    self._split(task, batch_size)
                case CutSmaller(otherwise):
                    self._cut_smaller(task, otherwise)
                case GiveUp() as letter:
                    self._give_up(task, letter)

    def _start(self, task: _Reading | _Asking) -> tuple[int, Encode | Ask]:
        self._running[task.task_id] = task
        task.part.num_running += 1
        return task.task_id, task.message

    def _take_encoded(self, task: _Reading, result: Encoded) -> None:
        document = task.document
        task.part.keys.extend(result.keys)
        if task.prepared.round == 1:
            self.encoded_tokens += sum(len(chunk.token_ids) for chunk in task.message.chunks)
        document.seconds_encode += result.seconds
        document.encoded[task.index] = result
        if len(document.encoded) == len(document.prepared.encodes) and document.row.open:
            self._end_round(document)

    def _end_round(self, document: _Document) -> None:
        """All messages of a round are back: the next one goes first in the queue, or the questions can be asked."""
        encoded = [document.encoded[index] for index in range(len(document.encoded))]
        document.encoded = {}
        next_step = self._reader.advance(document.prepared, encoded)
        if isinstance(next_step, Prepared):
            document.prepared = next_step
            self._encodes.put_first(self._readings(document))
        else:
            document.selections = next_step
            self._document_settled(document)

    def _take_answered(self, task: _Asking, result: Answered) -> None:
        for pair, generated in zip(task.pairs, result.answers, strict=True):
            if not pair.open:
                continue
            document, prepared = pair.document, pair.document.prepared
            seconds = document.seconds_encode / len(prepared.asked)
            selection = document.selections[pair.index]
            answer = self._reader.answer(prepared, pair.index, selection, generated, seconds)
            document.row.end(pair.index, answer)
            self._question_ended(document)

    # -- batches ---------------------------------------------------------------------------------

    def _enrol(self, pair: _Pair) -> None:
        self._batch.pairs.append(pair)
        if self._batch not in pair.document.batches:
            pair.document.batches.append(self._batch)
        if len(self._batch.pairs) == self._batch_size:
            self._close_batch()

    def _close_batch(self) -> None:
        batch, self._batch = self._batch, _Batch()
        batch.closed = True
        self._ask_if_ready(batch)

    def _document_settled(self, document: _Document) -> None:
        for batch in document.batches:
            self._ask_if_ready(batch)
        document.batches = []

    def _ask_if_ready(self, batch: _Batch) -> None:
        """Queue a closed batch once all its documents are settled; that is so exactly once."""
        if batch.closed and batch.pairs and all(pair.document.settled for pair in batch.pairs):
            self._asks.append(_Asking(self._new_id(), batch.pairs))
            batch.pairs = []

    # -- failures --------------------------------------------------------------------------------

    def _put_back(self, task: _Reading | _Asking) -> None:
        """First in the queue again, unless nothing waits for it any more."""
        if isinstance(task, _Asking):
            self._asks.appendleft(task)
        elif task.document.row.open:
            self._encodes.put_first([task])

    def _split(self, task: _Reading | _Asking, batch_size: int) -> None:
        assert isinstance(task, _Asking)
        cuts = range(0, len(task.pairs), batch_size)
        parts = [task.pairs[cut : cut + batch_size] for cut in cuts]
        self._asks.extendleft(_Asking(self._new_id(), pairs, task.tally) for pairs in reversed(parts))

    def _cut_smaller(self, task: _Reading | _Asking, otherwise: GiveUp) -> None:
        """Read a document again from its first round, in shorter chunks; what of it is queued is dropped, what runs
        comes too late."""
        assert isinstance(task, _Reading)
        document = task.document
        smaller = self._reader.cut_smaller(document.prepared)
        if smaller is None or not document.row.open:
            self._give_up(task, otherwise)
            return
        self._encodes.drop(document)
        document.prepared, document.encoded = smaller, {}
        self._encodes.put_first(self._readings(document))

    def _give_up(self, task: _Reading | _Asking, letter: GiveUp) -> None:
        if isinstance(task, _Asking):
            document, stage = task.pairs[0].document, "answer"
            indices = sorted(document.row.open) if letter.quarantine else [task.pairs[0].index]
        else:
            document, stage = task.document, "encode"
            indices = sorted(document.row.open)
        for index in indices:
            if index in document.row.open:
                self._end_as_failure(document, index, stage, task.tally.attempts, letter)

    def _end_as_failure(self, document: _Document, index: int, stage: str, attempts: int, letter: GiveUp) -> None:
        failure = fail(
            document.prepared.document,
            document.prepared.asked[index],
            stage,
            letter.error,
            letter.message,
            attempts=attempts,
            retryable=letter.retryable,
        )
        document.row.end(index, failure)
        self._count(failure)
        self._question_ended(document)

    def _count(self, failure: Failure) -> None:
        self.errors[failure.error] += 1
        self.last_failure = failure

    def _question_ended(self, document: _Document) -> None:
        """After the last question of a document: let go of it, and of what it made others wait for."""
        if document.row.open:
            return
        document.part.num_open_rows -= 1
        self.num_documents_done += 1
        self.held_tokens -= document.prepared.num_tokens
        if not document.selections:
            self._encodes.drop(document)
        self._document_settled(document)

    def _readings(self, document: _Document) -> list[_Reading]:
        prepared = document.prepared
        return [_Reading(self._new_id(), document, prepared, index) for index in range(len(prepared.encodes))]

    def _new_id(self) -> int:
        self._next_id += 1
        return self._next_id
