"""What Foveate keeps and answers: our side of the agreement.

Each case is one chunk that is its whole document, in blocks of one token that are not widened, read before its
question is known: the definitions of the literature, without what Foveate adds for long documents. Invariants: chunks
are read by the product's encoder, chosen from by its scorers and budgets and answered by its engine.

Shapes: L layers, G kv heads, N context tokens, C chunk tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from cache_store.store import TieredStore
from cache_store.tiers.memory import MemoryTier
from configs.stages import AnswerOver, Keep, Read
from pipeline.evaluation.agreement.exchange import Case, Said
from pipeline.evaluation.agreement.methods import Compared
from pipeline.evaluation.sharing import SharedReading
from workers.context import Context, positions_of
from workers.engine import Engine
from workers.loaded import LoadedModel
from workers.messages import Ask, Chunk, Encode, Probe, Query
from workers.method import Method, Stages, method_of
from workers.selection.budgets.base import BlockTable, Choice
from workers.selection.scorers.base import ChunkScores

_ROOM = 2**40
"""Bytes that a kept set may take while it is answered from: it goes with its engine."""


@dataclass(frozen=True)
class OurSide:
    """A model in float32."""

    loaded: LoadedModel

    def said(self, case: Case, methods: Sequence[Compared], pinned: int) -> Iterator[tuple[str, Said]]:
        """What each method makes of a case whose first ``pinned`` tokens everybody reads, as an anchor, and which count
        against the budget; the others are one chunk. Positions are the context's."""
        frame = self.loaded.frame
        loaded = replace(self.loaded, frame=replace(frame, anchor=case.context[:pinned]))
        anchor = Context.of_anchor(loaded)
        parts = {compared.name: self._parts(compared) for compared in methods}
        rule = next(iter(parts.values())).rule
        shared = SharedReading(loaded, anchor, rule, [method.scorer for method in parts.values()], keeps_pairs=True)
        for compared in methods:
            method = parts[compared.name]
            encoder = shared.encoder_for(method.scorer, rule)
            engine = Engine(loaded, method, TieredStore([MemoryTier(_ROOM)]), encoder=encoder, anchor=anchor)
            tokens = len(case.context) if compared.keeps_all else case.keep
            yield compared.name, self._keep(engine, method, case, (pinned, tokens))

    def _parts(self, compared: Compared) -> Method:
        assert compared.budget is not None
        keep = Keep(block_tokens=1, widen_tokens=0, question="unknown", scorer=compared.scorer, budget=compared.budget)
        source = self.loaded.source
        return method_of(Stages(Read(), keep, AnswerOver(over="kept")), self.loaded.weights.shape, source.weights, None)

    def _keep(self, engine: Engine, method: Method, case: Case, sizes: tuple[int, int]) -> Said:
        """``sizes``: tokens that are pinned, and those that may be kept with them."""
        pinned, tokens = sizes[0], sizes[1] - sizes[0]
        ids = case.context[pinned:]
        probe = Probe(case.item.id, case.question, (0, len(case.question)))
        task = Encode(case.item.id, (Chunk(0, 0, ids),), (probe,), tokens)
        [[said]] = engine.encode(task).relevance
        [shares_LGC] = method.scorer.settle([ChunkScores(said.log_RHB, (0, len(ids)), block_tokens=1)])
        choice = method.budget.choose(BlockTable.of_chunks([(0, len(ids))], [shares_LGC], 1), tokens)
        moved = Query(case.item.id, probe, (), case.item.max_new_tokens, (task,), choice.shape, choice.kept)
        stays = replace(moved, spread=len(ids))
        answered, answered_moved = engine.answer(Ask((stays, moved))).answers
        return Said(
            kept_LGN=self._kept(choice, pinned, len(case.context)),
            scores_LGN=self._scores(shares_LGC, pinned),
            answer=answered.text,
            moved=answered_moved.text,
        )

    def _kept(self, choice: Choice, pinned: int, num_tokens: int) -> NDArray[np.bool_]:
        """What was chosen, and what is pinned, of the context."""
        shape = self.loaded.weights.shape
        kept_LGN = np.zeros((shape.num_layers, shape.num_kv_heads, num_tokens), dtype=bool)
        kept_LGN[:, :, :pinned] = True
        for layer, head in np.ndindex(kept_LGN.shape[:2]):
            kept_LGN[layer, head, (positions_of(choice.of(layer, head)) + pinned).numpy()] = True
        return kept_LGN

    def _scores(self, shares_LGC: NDArray[np.float64], pinned: int) -> NDArray[np.float32]:
        """Shares over the context; those of pinned tokens are nobody's (NaN)."""
        shape = self.loaded.weights.shape
        spread_LGC = np.broadcast_to(shares_LGC, (shape.num_layers, shape.num_kv_heads, shares_LGC.shape[2]))
        return np.pad(spread_LGC.astype(np.float32), ((0, 0), (0, 0), (pinned, 0)), constant_values=np.nan)
