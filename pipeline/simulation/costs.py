"""What work costs, in seconds and bytes: of an engine, and of the driver that feeds it.

``CPU_CORE`` was measured, ``GPU`` is an assumption; each says so in ``source``. Invariant: seconds depend on the
task alone, so that the same task costs the same wherever and whenever it runs (a straggler multiplies them).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Costs:
    """Engine seconds: ``encode_s`` for 1,000 tokens read, ``answer_s`` for one answer of a batch. Driver seconds:
    ``prepare_s`` (tokenizing, cutting) and ``choose_s`` (from relevance to what is kept) for 1,000 tokens,
    ``answer_row_s`` for one row of output, ``message_s`` for a task handed to a worker or taken back from it, and
    ``look_s`` for each worker whenever results are looked for, because ``RayPool`` asks Ray about all tasks each time.
    The driver's were measured once, by hand, on a shared core: the first three with the real reader and the tokenizer
    of SmolLM2, ``message_s`` with Ray 2.60; ``look_s`` is put together from ``ray.wait`` and the pool's own code.

    Bytes on the wire: ``token_bytes`` each, ``message_bytes`` around them, ``relevance_bytes`` for 1,000 tokens and
    one question; ``pair_bytes``: keys and values of one kept token in all layers and heads.
    """

    source: str
    encode_s: float
    answer_s: float
    prepare_s: float = 0.0021
    choose_s: float = 0.00065
    answer_row_s: float = 0.0002
    message_s: float = 0.0003
    look_s: float = 0.000003
    token_bytes: int = 3
    message_bytes: int = 400
    relevance_bytes: int = 6_000
    pair_bytes: int = 23_040

    def with_free_driver(self) -> Costs:
        """The same engine under a driver that takes no time."""
        return replace(self, prepare_s=0.0, choose_s=0.0, answer_row_s=0.0, message_s=0.0, look_s=0.0)


CPU_CORE = Costs(
    source="measured: one x86_64 core with SmolLM2-135M over kept pairs (docs/results/baseline.md, 32,768 tokens)",
    encode_s=1.65,
    answer_s=0.66,
)
GPU = Costs(
    source="ASSUMED, not measured: an 8B model that reads 25,000 tokens/s and writes an answer in 0.15 s of a batch",
    encode_s=0.04,
    answer_s=0.15,
    token_bytes=4,
    pair_bytes=131_072,
)
COSTS: Mapping[str, Costs] = {"cpu-core": CPU_CORE, "gpu": GPU}
