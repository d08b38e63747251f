"""Methods that cannot stand together, although each alone is well-formed.

Invariants: every message names the keys to change and says what is allowed; what is not refused here works
together, so a rule that is added when a combination breaks belongs here and nowhere else.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import pairwise

from configs.closed import Conflict
from configs.stages import AnswerOver, Keep, Read

_LOOK_AGAIN = ("narrow", "two_round")
_BUDGETS_OF_PAIRS = ("pyramid", "adaptive", "heads")


def method_conflicts(read: Read, keep: Keep, answer: AnswerOver) -> Iterable[Conflict]:
    """Every conflict among the methods of a job."""
    yield from _sizes(read, keep)
    yield from _skimming(read, answer)
    yield from _unknown_questions(keep, answer)
    yield from _budgets_of_pairs(keep, answer)
    yield from _second_looks(read, answer)
    yield from _depth_pruning(read, keep, answer)
    yield from _gate_pruning(read)
    yield from _unread_keys(read, keep)
    yield from _pages(answer)
    yield from _original_positions(read, answer)
    yield from _index(read, keep, answer)
    yield from _chunk_fraction(read, keep, answer)


def _sizes(read: Read, keep: Keep) -> Iterable[Conflict]:
    chunk, block, budget, pattern = read.chunk_tokens, keep.block_tokens, keep.budget, read.pattern
    if chunk % block:
        yield Conflict(
            ("read.chunk_tokens", "keep.block_tokens"),
            f"read.chunk_tokens: {chunk} is not a multiple of keep.block_tokens: {block}; "
            f"allowed: multiples, such as {(chunk // block + 1) * block}",
        )
    if budget.fraction is None and budget.tokens < block:
        yield Conflict(
            ("keep.budget.tokens", "keep.block_tokens"),
            f"keep.budget.tokens: {budget.tokens} is less than one block "
            f"(keep.block_tokens: {block}); allowed: {block} or more",
        )
    if pattern.kind != "dense" and pattern.block_tokens > chunk:
        yield Conflict(
            ("read.pattern.block_tokens", "read.chunk_tokens"),
            f"read.pattern.block_tokens: {pattern.block_tokens} is more than a chunk "
            f"(read.chunk_tokens: {chunk}); allowed: {chunk} or less",
        )


def _skimming(read: Read, answer: AnswerOver) -> Iterable[Conflict]:
    if read.skim is True and answer.over == "kept":
        yield Conflict(
            ("read.skim", "answer.over"),
            "read.skim: true keeps no pairs above the last layer that the scorer sees, but answer.over: kept "
            "needs all layers; allowed: read.skim: auto or false, or answer.over: reread",
        )


def _unknown_questions(keep: Keep, answer: AnswerOver) -> Iterable[Conflict]:
    if keep.question == "known":
        return
    if keep.scorer.kind == "probe":
        yield Conflict(
            ("keep.scorer.kind", "keep.question"),
            "keep.scorer.kind: probe scores with the question, but keep.question: unknown reads without it; "
            "allowed: keep.question: known, or another scorer, such as reconstruct, expected or window",
        )
    if answer.over in _LOOK_AGAIN:
        yield Conflict(
            ("answer.over", "keep.question"),
            f"answer.over: {answer.over} reads a second time for each question, but keep.question: unknown reads "
            "without it; allowed: keep.question: known, or answer.over: kept or reread",
        )


def _budgets_of_pairs(keep: Keep, answer: AnswerOver) -> Iterable[Conflict]:
    if keep.budget.kind in _BUDGETS_OF_PAIRS and answer.over != "kept":
        yield Conflict(
            ("keep.budget.kind", "answer.over"),
            f"keep.budget.kind: {keep.budget.kind} keeps other pairs in each layer or head, but answer.over: "
            f"{answer.over} keeps text, which has neither; allowed: answer.over: kept, or keep.budget.kind: "
            "uniform, threshold or min_p",
        )


def _second_looks(read: Read, answer: AnswerOver) -> Iterable[Conflict]:
    if answer.over in _LOOK_AGAIN and read.context == "carried":
        yield Conflict(
            ("answer.over", "read.context"),
            f"answer.over: {answer.over} reads parts of a document on their own a second time, but read.context: "
            "carried reads them in one row; allowed: read.context: isolated, or answer.over: kept or reread",
        )


def _depth_pruning(read: Read, keep: Keep, answer: AnswerOver) -> Iterable[Conflict]:
    pruning = read.pruning
    if pruning.kind != "depth":
        return
    if keep.scorer.kind not in ("probe", "window") or keep.question == "unknown":
        yield Conflict(
            ("read.pruning.kind", "keep.scorer.kind", "keep.question"),
            f"read.pruning.kind: depth drops what the question attends to least, but keep.scorer.kind: "
            f"{keep.scorer.kind} with keep.question: {keep.question} reads without it; allowed: keep.scorer.kind: "
            "probe or window, with keep.question: known",
        )
    if answer.over == "kept":
        yield Conflict(
            ("read.pruning.kind", "answer.over"),
            "read.pruning.kind: depth leaves dropped tokens without pairs in deeper layers, but answer.over: kept "
            "needs all layers; allowed: answer.over: reread, narrow or two_round, or read.pruning.kind: none",
        )
    for key, kind, allowed in (
        ("read.context", read.context, "isolated"),
        ("read.pattern.kind", read.pattern.kind, "dense"),
    ):
        if kind != allowed:
            yield Conflict(
                ("read.pruning.kind", key),
                "read.pruning.kind: depth reads chunk and question in one pass that ends without all pairs, but "
                f"{key}: {kind} needs a pass over the chunk alone; allowed: {key}: {allowed}, or read.pruning.kind: "
                "none",
            )
    layers, shares = list(pruning.layers), list(pruning.keep)
    ascending = all(earlier < later for earlier, later in pairwise(layers))
    falling = all(earlier >= later for earlier, later in pairwise(shares))
    if len(layers) != len(shares) or not ascending or not falling:
        yield Conflict(
            ("read.pruning.layers", "read.pruning.keep"),
            f"read.pruning.layers: {layers} and read.pruning.keep: {shares} are no schedule; allowed: "
            "one share for each layer, layers ascending, shares never rising",
        )


def _gate_pruning(read: Read) -> Iterable[Conflict]:
    if read.pruning.kind == "gate" and read.pattern.kind != "dense":
        yield Conflict(
            ("read.pruning.kind", "read.pattern.kind"),
            f"read.pruning.kind: gate decides itself which earlier tokens are read, and so does read.pattern.kind: "
            f"{read.pattern.kind}; allowed: read.pattern.kind: dense, or read.pruning.kind: none",
        )


def _unread_keys(read: Read, keep: Keep) -> Iterable[Conflict]:
    """A sum over what later rows paid to a key means nothing where some of them were kept from reading it."""
    hiding: list[tuple[str, str, str]] = []
    if read.pattern.kind != "dense":
        hiding.append(("read.pattern.kind", read.pattern.kind, "dense"))
    if read.pruning.kind == "gate":
        hiding.append(("read.pruning.kind", read.pruning.kind, "none"))
    for key, kind, allowed in hiding if keep.scorer.kind == "accumulated" else ():
        yield Conflict(
            ("keep.scorer.kind", key),
            f"keep.scorer.kind: accumulated sums what all later tokens pay to a token, but {key}: {kind} hides it from "
            f"some of them; allowed: {key}: {allowed}, or another scorer, such as window, expected or reconstruct",
        )


def _pages(answer: AnswerOver) -> Iterable[Conflict]:
    reader = answer.reader
    if reader.kind == "top_pages" and reader.tokens < reader.page_tokens:
        yield Conflict(
            ("answer.reader.tokens", "answer.reader.page_tokens"),
            f"answer.reader.tokens: {reader.tokens} is less than one page (answer.reader.page_tokens: "
            f"{reader.page_tokens}); allowed: {reader.page_tokens} or more",
        )


def _original_positions(read: Read, answer: AnswerOver) -> Iterable[Conflict]:
    if answer.positions == "compact":
        return
    for key, value, allowed in (("answer.over", answer.over, "kept"), ("read.context", read.context, "isolated")):
        if value != allowed:
            yield Conflict(
                ("answer.positions", key),
                "answer.positions: original leaves kept pairs where chunks that were read alone had them, but "
                f"{key}: {value} does not; allowed: {key}: {allowed}, or answer.positions: compact",
            )


def _index(read: Read, keep: Keep, answer: AnswerOver) -> Iterable[Conflict]:
    if keep.scorer.kind != "index":
        return
    for key, value, allowed in (
        ("keep.question", keep.question, "unknown"),
        ("read.context", read.context, "isolated"),
        ("answer.over", answer.over, "reread"),
    ):
        if value != allowed:
            yield Conflict(
                ("keep.scorer.kind", key),
                "keep.scorer.kind: index keeps a few heads' keys of every chunk for questions that come later, and "
                f"their answers reread text, but {key} is {value}; allowed: {key}: {allowed}, or another scorer, such "
                "as probe",
            )


def _chunk_fraction(read: Read, keep: Keep, answer: AnswerOver) -> Iterable[Conflict]:
    fraction = keep.chunk_fraction
    if fraction is None:
        return
    if answer.over != "kept":
        yield Conflict(
            ("keep.chunk_fraction", "answer.over"),
            f"keep.chunk_fraction: {fraction:g} bounds the pairs that a chunk keeps, but answer.over: {answer.over} "
            "keeps text; allowed: answer.over: kept, or no keep.chunk_fraction",
        )
    if fraction * read.chunk_tokens < keep.block_tokens:
        yield Conflict(
            ("keep.chunk_fraction", "keep.block_tokens"),
            f"keep.chunk_fraction: {fraction:g} of read.chunk_tokens: {read.chunk_tokens} is less than one block "
            f"(keep.block_tokens: {keep.block_tokens}); allowed: "
            f"{math.ceil(1000 * keep.block_tokens / read.chunk_tokens) / 1000} or more",
        )
