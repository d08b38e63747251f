"""A document reader without tokenizer, scorer or text, which takes the time that the real one was measured to take.

Invariant: messages are of the same number, sizes and order as the real reader's for isolated chunks of one length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import numpy as np
from numpy.typing import NDArray

from pipeline.document import Document
from pipeline.outcome import Answer
from pipeline.prepared import Prepared, Selection, cut
from pipeline.simulation.clock import Clock
from pipeline.simulation.settings import Scene
from workers.messages import Encode, Encoded, Generated, Probe, Query
from workers.selection.budgets.base import BlockTable, Choice

_NO_OFFSETS_T2 = np.empty((0, 2), np.int64)
_NO_TABLE = BlockTable(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.int64), np.empty((1, 1, 0)))
_NOTHING = Choice((1, 1), ((),))


class SimulatedReader:
    """What ``pipeline.loop`` and ``pipeline.scheduler`` ask of ``reading.DocumentReader``."""

    def __init__(self, scene: Scene, lengths_N: NDArray[np.int64], clock: Clock) -> None:
        self._scene, self._lengths_N, self._clock = scene, lengths_N, clock

    def prepare(self, document: Document) -> Prepared:
        """As ``Preparer.prepare``. Token ids are a range: it has the length, and its slices cost nothing."""
        with self._clock:
            tokens = int(self._lengths_N[document.source_row])
            self._clock.spend(self._scene.costs.prepare_s * tokens / 1000, "prepare")
            whole = Prepared(
                document=document,
                offsets_T2=_NO_OFFSETS_T2,
                token_ids=cast("tuple[int, ...]", range(tokens)),
                asked=document.questions,
                probes=tuple(Probe(asked.question_id, (), (0, 0)) for asked in document.questions),
                chunks=(),
                encodes=(),
                failures=(),
                budget_tokens=self._scene.budget_tokens,
                max_chunk_tokens=self._scene.chunk_tokens,
            )
            return _in_chunks(whole, self._scene.chunk_tokens)

    def cut_smaller(self, prepared: Prepared) -> Prepared | None:
        """As ``Preparer.cut_smaller``."""
        with self._clock:
            size = prepared.max_chunk_tokens // 2
            return _in_chunks(prepared, size) if size >= self._scene.block_tokens else None

    def advance(self, prepared: Prepared, encoded: Sequence[Encoded]) -> list[Selection]:
        """As ``DocumentReader.advance``. Kept blocks lie evenly over the document: as many kept sets as can be are
        needed for an answer."""
        with self._clock:
            questions = len(prepared.asked)
            self._clock.spend(self._scene.costs.choose_s * questions * prepared.num_tokens / 1000, "choose")
            most = max(1, prepared.budget_tokens // self._scene.block_tokens)
            sources = prepared.encodes[:: -(-len(prepared.encodes) // most)]
            name = prepared.encodes[0].document
            return [
                Selection(Query(name, probe, (), asked.max_new_tokens, sources), _NO_TABLE, _NOTHING)
                for probe, asked in zip(prepared.probes, prepared.asked, strict=True)
            ]

    def answer(
        self, prepared: Prepared, index: int, selection: Selection, generated: Generated, seconds_encode: float
    ) -> Answer:
        """As ``DocumentReader.answer``."""
        with self._clock:
            self._clock.spend(self._scene.costs.answer_row_s, "answer rows")
            document, asked = prepared.document, prepared.asked[index]
            return Answer(
                id=str(document.id),
                question_id=asked.question_id,
                question=asked.text,
                answer=generated.text,
                spans=(),
                document_tokens=prepared.num_tokens,
                kept_tokens=prepared.budget_tokens,
                relevance_kept=1.0,
                generated_tokens=generated.num_tokens,
                seconds_encode=seconds_encode,
                seconds_answer=generated.seconds,
                source_file=document.source_file,
                source_row=document.source_row,
            )


def _in_chunks(prepared: Prepared, size: int) -> Prepared:
    chunks = cut(prepared.token_ids, size)
    encodes = tuple(Encode(prepared.name, (chunk,), prepared.probes, prepared.budget_tokens) for chunk in chunks)
    return replace(prepared, chunks=chunks, encodes=encodes, max_chunk_tokens=size)
