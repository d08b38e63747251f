"""The tasks of an evaluation, as its YAML names them: what each can be told.

Each is one model here, one dataclass with the same fields in ``pipeline.evaluation.tasks`` and one line in the table
there. A leaf beside ``evaluation``: no torch, no ray.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from configs.closed import Closed, Positive
from configs.schema import Name

TaskCount = Annotated[int, Field(ge=2)]
_NUMBER = (
    "A special magic number is hidden within the following text. Make sure to memorize it. I will quiz you about the "
    "number afterwards."
)
_NUMBERS = (
    "Some special magic numbers are hidden within the following text. Make sure to memorize them. I will quiz you "
    "about the numbers afterwards."
)


class TaskSetting(Closed):
    """Base of every task. ``name`` is what tables call it; without one it is called by its kind. ``instruction``: the
    sentence before the document, in place of ``base.prompt.instruction`` (null: that one); a small model finds little
    that it was not told to look for."""

    name: Name | None = None
    instruction: str | None = None

    @property
    def label(self) -> str:
        """What tables call it, unique in an evaluation."""
        return self.name or str(self.kind)  # type: ignore[attr-defined]  # every task below has one


class SingleNeedle(TaskSetting):
    """One sentence with a number, hidden in real text."""

    kind: Literal["single_needle"] = "single_needle"
    instruction: str | None = _NUMBER


class MultiKey(TaskSetting):
    """``keys`` needles of one form; one of them is asked for, the others distract."""

    kind: Literal["multi_key"] = "multi_key"
    instruction: str | None = _NUMBERS
    keys: TaskCount = 4


class MultiValue(TaskSetting):
    """``values`` needles of one key; all numbers must be named."""

    kind: Literal["multi_value"] = "multi_value"
    instruction: str | None = _NUMBERS
    values: TaskCount = 4


class MultiQuery(TaskSetting):
    """``queries`` needles of different keys, all asked for in one question."""

    kind: Literal["multi_query"] = "multi_query"
    instruction: str | None = _NUMBERS
    queries: TaskCount = 4


class KeyValuePairs(TaskSetting):
    """Pairs of random uuids and nothing else; the value of one key is asked for."""

    kind: Literal["kv_pairs"] = "kv_pairs"
    instruction: str | None = (
        "A list of keys and values follows. Make sure to memorize it. I will quiz you about one of the values "
        "afterwards."
    )


class VariableTracking(TaskSetting):
    """A chain of ``hops`` assignments hidden in real text, among ``noise_chains`` others; all its names are asked."""

    kind: Literal["variable_tracking"] = "variable_tracking"
    instruction: str | None = "Memorize and track the chains of variable assignments hidden in the following text."
    hops: Positive = 4
    noise_chains: Annotated[int, Field(ge=0)] = 2


class CommonWords(TaskSetting):
    """A long list in which ``words`` words stand ``common_times`` each and all others ``other_times``."""

    kind: Literal["common_words"] = "common_words"
    instruction: str | None = (
        "Below is a numbered list of words. Some of them appear more often than others. Memorize these."
    )
    words: Positive = 10
    common_times: TaskCount = 30
    other_times: Positive = 3


class FrequentWords(TaskSetting):
    """Coded words with Zipf frequencies; the ``words`` most frequent are asked for."""

    kind: Literal["frequent_words"] = "frequent_words"
    instruction: str | None = "Read the following coded text and track how often each coded word appears."
    words: Positive = 3
    alpha: Annotated[float, Field(gt=1.0)] = 2.0


class RealText(TaskSetting):
    """Hand-written questions over the Python language reference, from the split that calibration never sees."""

    kind: Literal["real_text"] = "real_text"
    split: Literal["held_out", "calibrate"] = "held_out"
    answer_prefix: str = ""


class ParquetItems(TaskSetting):
    """Items of a Parquet file in the long-context schema. A row whose length is not said belongs to the smallest of
    ``lengths`` that holds it; rows of other lengths are left out."""

    kind: Literal["parquet"] = "parquet"
    path: Annotated[str, Field(min_length=1)]


Task = Annotated[
    SingleNeedle
    | MultiKey
    | MultiValue
    | MultiQuery
    | KeyValuePairs
    | VariableTracking
    | CommonWords
    | FrequentWords
    | RealText
    | ParquetItems,
    Field(discriminator="kind"),
]
