"""What must fit into the model's window at once: the sums, before anything is read.

Invariant: what is not refused here never overflows the window, whatever a budget chooses; what is refused is
refused with the sum and with what to lower.
"""

from __future__ import annotations

from configs.schema import Job
from workers.loading import Reading
from workers.messages import Probe
from workers.selection.budgets.base import Budget


class Room:
    """The window of a job's model, and what the job's settings put into it."""

    def __init__(self, job: Job, reading: Reading, budget: Budget, separator: tuple[int, ...]) -> None:
        """``separator``: token ids between kept runs of text."""
        self._window = reading.shape.window
        self._anchor_tokens = len(reading.frame.anchor)
        self._separator_tokens = len(separator)
        self._repeat_tokens = len(reading.frame.repetition)
        self._budget = budget
        self._job = job
        self._amount = "keep.budget.tokens" if job.keep.budget.fraction is None else "keep.budget.fraction"

    def chunk_tokens(self, probe: Probe) -> int:
        """How long a chunk may be behind the anchor and before this question: whole blocks, at least one."""
        block = self._job.keep.block_tokens
        free = self._window - self._anchor_tokens - len(probe.token_ids)
        return max(1, free // block) * block

    def problem(self, probe: Probe, max_new_tokens: int, budget_tokens: int, document_tokens: int) -> str | None:
        """Why a question cannot be asked of such a document with this budget, or None where every pass fits."""
        encode = {
            "prompt": self._anchor_tokens,
            "read.chunk_tokens": self._job.read.chunk_tokens,
            **self._before_chunk(budget_tokens),
            **self._behind_chunk(probe),
        }
        stays = self._job.answer.positions == "original"
        answer = {
            "prompt": self._anchor_tokens,
            **({"document": document_tokens} if stays else self._kept(budget_tokens)),
            "question": len(probe.token_ids),
            "max_new_tokens": max_new_tokens,
        }
        also = f" or {self._amount}" if self._before_chunk(budget_tokens) else ""
        return self._refuse(encode, f"read.chunk_tokens{also}") or self._refuse(
            answer, "max_new_tokens, or set answer.positions: compact" if stays else f"{self._amount} or max_new_tokens"
        )

    def _before_chunk(self, budget_tokens: int) -> dict[str, int]:
        """What a chunk is read behind, besides the anchor. A narrowed text is cut to what fits and needs no sum."""
        if self._job.read.context == "carried":
            return {"carried": budget_tokens}
        if self._job.answer.over == "two_round":
            return {"kept of other chunks": sum(self._kept(budget_tokens).values())}
        return {}

    def _behind_chunk(self, probe: Probe) -> dict[str, int]:
        """What is read behind a chunk: the question, or its repetition where a scorer looks at that."""
        if self._job.keep.scorer.kind != "reconstruct":
            return {"question": len(probe.token_ids)}
        return {"repetition": self._job.read.chunk_tokens + self._repeat_tokens}

    def _kept(self, budget_tokens: int) -> dict[str, int]:
        """The most tokens that an answer is computed over. Between runs of text stand separators, and all runs but one
        hold a whole widened block; where chunks end by content, that block may have been one token."""
        if self._job.keeps_pairs:
            return {self._amount: self._budget.most(budget_tokens)}
        keep = self._job.keep
        even = self._job.read.borders == "even"
        gaps = budget_tokens // (keep.block_tokens if even else min(keep.block_tokens, 1 + 2 * keep.widen_tokens))
        return {self._amount: budget_tokens, "answer.separator": gaps * self._separator_tokens}

    def _refuse(self, parts: dict[str, int], advice: str) -> str | None:
        total = sum(parts.values())
        if total <= self._window:
            return None
        listed = " + ".join(f"{name} {count}" for name, count in parts.items() if count)
        return (
            f"{listed} = {total} tokens, but the model's window is {self._window}; "
            f"shorten the question or lower {advice}"
        )
