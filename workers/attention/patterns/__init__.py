"""Patterns by the ``kind`` of their settings: one line for each, imported when it is asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from configs import methods
from workers.attention.plan import Pattern


def _sliding_window(settings: methods.SlidingWindowPattern) -> Pattern:
    from workers.attention.patterns.sliding_window import SlidingWindow

    return SlidingWindow(settings.block_tokens, settings.window_tokens)


def _longformer(settings: methods.LongformerPattern) -> Pattern:
    from workers.attention.patterns.longformer import Longformer

    return Longformer(settings.block_tokens, settings.window_tokens, settings.global_tokens)


def _bigbird(settings: methods.BigBirdPattern) -> Pattern:
    from workers.attention.patterns.bigbird import BigBird

    return BigBird(
        settings.block_tokens, settings.window_blocks, settings.random_blocks, settings.global_blocks, settings.seed
    )


def _tri_shape(settings: methods.TriShapePattern) -> Pattern:
    from workers.attention.patterns.tri_shape import TriShape

    return TriShape(settings.block_tokens, settings.sink_tokens, settings.window_tokens, settings.last_tokens)


def _routing(settings: methods.RoutingPattern) -> Pattern:
    from workers.attention.patterns.routing import Routing

    clusters = None if settings.clusters == "auto" else settings.clusters
    return Routing(settings.block_tokens, clusters, settings.iterations, settings.seed)


def _top_blocks(settings: methods.TopBlocksPattern) -> Pattern:
    from workers.attention.patterns.top_blocks import TopBlocks

    return TopBlocks(settings.block_tokens, settings.mass, settings.min_blocks)


_PATTERNS: dict[str, Callable[[Any], Pattern | None]] = {
    "dense": lambda settings: None,
    "sliding_window": _sliding_window,
    "longformer": _longformer,
    "bigbird": _bigbird,
    "tri_shape": _tri_shape,
    "routing": _routing,
    "top_blocks": _top_blocks,
}


def pattern_of(settings: methods.Pattern) -> Pattern | None:
    """The pattern that a job asks for; None for dense, which is a plain causal call."""
    return _PATTERNS[settings.kind](settings)
