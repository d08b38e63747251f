"""The six parts of selective attention, as a job names them: pattern, context, scorer, budget, reader, answer.

Each method of the literature is one model here (what it can be told), one dataclass in ``workers`` (what it
does) and one line in a table there. Any scorer goes with any budget and any pattern; ``schema`` refuses the few
combinations that cannot work. This module is a leaf beside ``schema``: no torch, no ray.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from configs.closed import Closed, Fraction, Natural, Positive

PatternBlock = Annotated[int, Field(ge=16, description="16 or more")]


# -- pattern: which earlier tokens may a token of a chunk read? ---------------------------------------------


class DensePattern(Closed):
    """Every token of a chunk reads every earlier token of it."""

    kind: Literal["dense"] = "dense"


class SlidingWindowPattern(Closed):
    """A block of tokens reads itself and the ``window_tokens`` before it."""

    kind: Literal["sliding_window"] = "sliding_window"
    block_tokens: PatternBlock = 64
    window_tokens: Positive = 512


class LongformerPattern(Closed):
    """A sliding window, and the first ``global_tokens`` of the chunk, which everybody reads (Longformer). The
    question's tokens read the whole chunk, as in every pattern."""

    kind: Literal["longformer"] = "longformer"
    block_tokens: PatternBlock = 64
    window_tokens: Positive = 512
    global_tokens: Positive = 64


class BigBirdPattern(Closed):
    """Windows of ``window_blocks``, ``global_blocks`` at the front and ``random_blocks`` drawn by ``seed``."""

    kind: Literal["bigbird"] = "bigbird"
    block_tokens: PatternBlock = 64
    window_blocks: Positive = 3
    random_blocks: Natural = 3
    global_blocks: Natural = 2
    seed: int = 0


class TriShapePattern(Closed):
    """Sinks and a window, and the last ``last_tokens`` of the chunk read everything (the triangle at the end)."""

    kind: Literal["tri_shape"] = "tri_shape"
    block_tokens: PatternBlock = 64
    sink_tokens: Positive = 64
    window_tokens: Positive = 512
    last_tokens: Positive = 128


class RoutingPattern(Closed):
    """Blocks are routed to the cluster of keys that they lie in, and read the blocks of that cluster. ``clusters:
    auto`` is the square root of the number of blocks; found by ``iterations`` of k-means from ``seed``."""

    kind: Literal["routing"] = "routing"
    block_tokens: PatternBlock = 64
    clusters: Positive | Literal["auto"] = "auto"
    iterations: Positive = 4
    seed: int = 0


class TopBlocksPattern(Closed):
    """The blocks with the highest estimated attention, up to a cumulative ``mass``, at least ``min_blocks``."""

    kind: Literal["top_blocks"] = "top_blocks"
    block_tokens: PatternBlock = 64
    mass: Fraction = 0.9
    min_blocks: Positive = 4


Pattern = Annotated[
    DensePattern
    | SlidingWindowPattern
    | LongformerPattern
    | BigBirdPattern
    | TriShapePattern
    | RoutingPattern
    | TopBlocksPattern,
    Field(discriminator="kind"),
]


# -- scorer: how relevant is each block? --------------------------------------------------------------------


class ProbeScorer(Closed):
    """Relevance = the share of the question's attention, over the calibrated retrieval heads, and evidence of words
    beside it: the logarithm of a block's share gains ``lexical`` times its BM25 score. ``heads: all`` lets every head
    of the model vote, which is what calibration is measured against."""

    kind: Literal["probe"] = "probe"
    heads: Literal["calibrated", "all"] = "calibrated"
    lexical: Annotated[float, Field(ge=0.0)] = 0.1


class IndexScorer(Closed):
    """An attention index: the keys of the calibrated retrieval heads are kept of every token, and nothing else; a later
    question is scored against them as ``probe`` scores, without reading a chunk again."""

    kind: Literal["index"] = "index"
    lexical: Annotated[float, Field(ge=0.0)] = 0.1


class WindowScorer(Closed):
    """SnapKV: attention of the last ``window_tokens`` of the prompt, per head, pooled over ``pool_tokens``. The
    prompt ends with the question, or with the chunk where ``keep.question`` is ``unknown``."""

    kind: Literal["window"] = "window"
    window_tokens: Positive = 64
    pool_tokens: Positive = 5


class AccumulatedScorer(Closed):
    """H2O: the attention that a token received from all tokens after it, per head."""

    kind: Literal["accumulated"] = "accumulated"


class StreamingScorer(Closed):
    """StreamingLLM: the first ``sink_tokens`` of the document, then the most recent tokens."""

    kind: Literal["streaming"] = "streaming"
    sink_tokens: Natural = 4


class ExpectedScorer(Closed):
    """Expected Attention: what queries distributed like the chunk's would pay to each key in the next
    ``future_tokens``, times the size of its value, per head."""

    kind: Literal["expected"] = "expected"
    future_tokens: Positive = 512
    use_covariance: bool = True
    epsilon: Annotated[float, Field(ge=0)] = 0.02


class ReconstructScorer(Closed):
    """KVzip: the highest attention that a token gets while the model repeats the chunk, per head."""

    kind: Literal["reconstruct"] = "reconstruct"


class KeyDiffScorer(Closed):
    """KeyDiff: keys that point away from the mean key of their head."""

    kind: Literal["keydiff"] = "keydiff"


class GateScorer(Closed):
    """Dynamic Context Pruning for a frozen model: small trained heads on hidden states predict what ``reconstruct``
    would say. ``file: auto`` takes the cached one (`foveate calibrate --gate`)."""

    kind: Literal["gate"] = "gate"
    file: str = "auto"


class RandomScorer(Closed):
    """The control: blocks in an order drawn by ``seed``."""

    kind: Literal["random"] = "random"
    seed: int = 0


Scorer = Annotated[
    ProbeScorer
    | IndexScorer
    | WindowScorer
    | AccumulatedScorer
    | StreamingScorer
    | ExpectedScorer
    | ReconstructScorer
    | KeyDiffScorer
    | GateScorer
    | RandomScorer,
    Field(discriminator="kind"),
]


# -- budget: how much is kept, and where? -------------------------------------------------------------------


class Amount(Closed):
    """How much of a document is kept, per layer and head on average: ``tokens``, or where ``fraction`` is given that
    share of the document's tokens."""

    tokens: Positive = 1024
    fraction: Fraction | None = None

    def tokens_of(self, document_tokens: int) -> int:
        """The budget for a document of that length, in tokens; at least one."""
        return self.tokens if self.fraction is None else max(1, round(self.fraction * document_tokens))


class UniformBudget(Amount):
    """The most relevant tokens of a document, as many in every layer and head. Every chunk keeps at least its
    best ``min_blocks_per_chunk`` blocks while the budget lasts."""

    kind: Literal["uniform"] = "uniform"
    min_blocks_per_chunk: Natural = 0


class PyramidBudget(Amount):
    """PyramidKV: more in low layers, less in high ones, falling in a line; the first layer keeps ``slope`` times
    what the last one keeps."""

    kind: Literal["pyramid"] = "pyramid"
    slope: Annotated[float, Field(ge=1.0)] = 7.0


class AdaptiveBudget(Amount):
    """AdaKV: the heads of a layer share one budget; each is sure of ``safeguard`` of an equal part."""

    kind: Literal["adaptive"] = "adaptive"
    safeguard: Annotated[float, Field(ge=0.0, le=1.0)] = 0.2


class HeadsBudget(Amount):
    """DuoAttention: retrieval heads keep the budget, streaming heads the first ``sink_tokens`` and last
    ``window_tokens``, pruned heads nothing. ``map``: a head map; ``auto`` takes the cached or shipped one."""

    kind: Literal["heads"] = "heads"
    map: str = "auto"
    sink_tokens: Natural = 16
    window_tokens: Natural = 64


class ThresholdBudget(Amount):
    """Blocks that are at least ``times_mean`` as relevant as the mean block of their head, at most the budget."""

    kind: Literal["threshold"] = "threshold"
    times_mean: Annotated[float, Field(gt=0.0)] = 2.0


class MinPBudget(Amount):
    """Blocks that are at least ``p`` times as relevant as the best block of their head, at most the budget."""

    kind: Literal["min_p"] = "min_p"
    p: Annotated[float, Field(gt=0.0, le=1.0)] = 0.1


Budget = Annotated[
    UniformBudget | PyramidBudget | AdaptiveBudget | HeadsBudget | ThresholdBudget | MinPBudget,
    Field(discriminator="kind"),
]


# -- reader: what does a step of decoding read? -------------------------------------------------------------


class AllReader(Closed):
    """Everything that was kept."""

    kind: Literal["all"] = "all"


class TopPagesReader(Closed):
    """Quest: pages of ``page_tokens``, the best by the bound that the least and greatest of their keys set, up to
    ``tokens`` for each head and step."""

    kind: Literal["top_pages"] = "top_pages"
    page_tokens: Positive = 16
    tokens: Positive = 256


Reader = Annotated[AllReader | TopPagesReader, Field(discriminator="kind")]


# -- progressive pruning ------------------------------------------------------------------------------------


class DepthPruning(Closed):
    """LazyLLM: before layer ``layers[i]`` of the encode pass only the ``keep[i]`` of the chunk's tokens that the
    question attends to most go on; the others have no pairs in deeper layers."""

    kind: Literal["depth"] = "depth"
    layers: Annotated[tuple[Positive, ...], Field(min_length=1)]
    keep: Annotated[tuple[Fraction, ...], Field(min_length=1)]


class GateDropping(Closed):
    """Dynamic Context Pruning while reading: tokens whose gate is below ``threshold`` (a share of attention) are
    no longer read by tokens more than ``delay_tokens`` behind them. Needs a trained gate (``file``)."""

    kind: Literal["gate"] = "gate"
    threshold: Annotated[float, Field(gt=0.0)]
    delay_tokens: Positive = 128
    file: str = "auto"


class NoPruning(Closed):
    """Every token is read in every layer."""

    kind: Literal["none"] = "none"


Pruning = Annotated[NoPruning | DepthPruning | GateDropping, Field(discriminator="kind")]
