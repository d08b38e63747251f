"""Answers beside what right ones hold, where the corpus says so (``corpus.answer``).

Invariant: what is compared is what was committed, by whichever driver and in whichever attempt.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.corpus import CorpusFiles
from pipeline.sink import RunState


@dataclass(frozen=True)
class Checked:
    """An answered question and what a right answer holds: every line of ``expected``, in upper or lower case."""

    id: str
    question_id: str
    expected: str
    answer: str

    @property
    def correct(self) -> bool:
        """Whether the answer holds all of it."""
        return all(line.casefold() in self.answer.casefold() for line in self.expected.splitlines())


def check_answers(state: RunState, corpus: CorpusFiles) -> Iterator[Checked]:
    """Every committed answer to a question with an expected one, in row order; reads the corpus once more."""
    if corpus.corpus.answer is None:
        return
    for index in state.committed():
        answers = {(a.source_file, a.source_row, a.question_id): a for a in state.answers(index)}
        for run in state.plan.parts[index].runs:
            for row in corpus.rows(run, state.plan.first_places):
                for asked in row.questions:
                    answer = answers.get((row.source_file, row.source_row, asked.question_id))
                    if answer is not None and asked.expected is not None:
                        yield Checked(answer.id, asked.question_id, asked.expected, answer.answer)
