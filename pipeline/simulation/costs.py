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
    Measured by ``driver_costs`` on a machine with nothing else to do, with the real reader, SmolLM2's tokenizer and
    Ray 2.60: 2.9 ms for preparing, what choosing, a row and a message cost, 0.3 µs of ``ray.wait`` for a task. Assumed:
    that ``prepare_s``, what holds Python's lock, is a fifth of preparing (the tokenizer alone is nine tenths), while
    threads of the driver have cores for ``prepare_apart_s``, the rest; and that the pool's own code adds a third to
    looking at two tasks of each worker.

    Bytes on the wire: ``token_bytes`` each, ``message_bytes`` around them, ``relevance_bytes`` for 1,000 tokens and
    one question; ``pair_bytes``: keys and values of one kept token in all layers and heads.
    """

    source: str
    encode_s: float
    answer_s: float
    prepare_s: float = 0.0006
    prepare_apart_s: float = 0.0023
    choose_s: float = 0.0007
    answer_row_s: float = 0.00034
    message_s: float = 0.00024
    look_s: float = 0.0000008
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
