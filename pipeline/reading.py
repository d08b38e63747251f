"""One document's journey, seen from the driver: what is read next, what is kept, and the answer's row.

Invariants: pure (no model, no files, no clock); every question of a document that could be prepared gets exactly one
selection.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from configs.schema import Job
from pipeline.attribution import relevance_kept, spans_of
from pipeline.choosing import Chooser
from pipeline.outcome import Answer
from pipeline.prepared import Prepared, Selection
from pipeline.preparing import Preparer
from pipeline.rounds import second_round_of
from workers.loading import Reading
from workers.messages import ChunkRelevance, Encoded, Generated
from workers.selection.budgets.base import Budget
from workers.selection.saying import Saying
from workers.selection.scorers.base import Scorer


class DocumentReader(Preparer):
    """Prepares documents of one job, chooses what is kept of them, and writes down their answers."""

    def __init__(self, job: Job, reading: Reading, scorer: Scorer, budget: Budget) -> None:
        """``scorer`` and ``budget``: the job's own. Raises as ``Preparer``."""
        super().__init__(job, reading, budget)
        saying = Saying(scorer, job.keep.block_tokens, reading.frame.tokenizer.decode)
        self._chooser = Chooser(job, saying, budget, self._separator)
        self._second_round = second_round_of(job, budget, self._room, self._separator)

    def advance(self, prepared: Prepared, encoded: Sequence[Encoded]) -> Prepared | list[Selection]:
        """What each question keeps, once every encode message of the round has come back (in their order); or the
        document prepared for another round, where the job wants one."""
        if prepared.looks:
            return list(self._select_again(prepared, encoded))
        relevance = [chunk for message in encoded for chunk in message.relevance]
        tables = self._chooser.tables(prepared, relevance)
        if self._second_round is None:
            return [self._chooser.select(prepared, index, table) for index, table in enumerate(tables)]
        looks = tuple(self._second_round.look(prepared, index, table) for index, table in enumerate(tables))
        encodes = tuple(encode for look in looks for encode in look.encodes)
        return replace(prepared, round=prepared.round + 1, encodes=encodes, looks=looks)

    def answer(
        self,
        prepared: Prepared,
        index: int,
        selection: Selection,
        generated: Generated,
        seconds_encode: float,
    ) -> Answer:
        """The output row of question ``index``."""
        document, asked = prepared.document, prepared.asked[index]
        assert document.id is not None
        shown = [(run.start, run.stop) for run in selection.query.runs]
        return Answer(
            id=document.id,
            question_id=asked.question_id,
            question=asked.text,
            answer=generated.text.strip(),
            spans=spans_of(shown, selection.table, prepared.offsets_T2, document.text),
            document_tokens=prepared.num_tokens,
            kept_tokens=round(selection.choice.tokens),
            relevance_kept=relevance_kept(selection.choice, selection.table),
            generated_tokens=generated.num_tokens,
            seconds_encode=seconds_encode,
            seconds_answer=generated.seconds,
            source_file=document.source_file,
            source_row=document.source_row,
        )

    def _select_again(self, prepared: Prepared, encoded: Sequence[Encoded]) -> Iterator[Selection]:
        messages = iter(encoded)
        for index, look in enumerate(prepared.looks):
            relevance: list[ChunkRelevance] = []
            for _ in look.encodes:
                relevance += [chunk[0] for chunk in next(messages).relevance]
            yield self._chooser.select(prepared, index, self._chooser.table_again(look, relevance))
