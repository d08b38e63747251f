"""The table of tasks: what an evaluation calls them, and who makes their items."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from configs.tasks import TaskSetting
from pipeline.evaluation.tasks.base import Item, Task
from pipeline.evaluation.tasks.common_words import CommonWords
from pipeline.evaluation.tasks.frequent_words import FrequentWords
from pipeline.evaluation.tasks.kv_pairs import KeyValuePairs
from pipeline.evaluation.tasks.multi_key import MultiKey
from pipeline.evaluation.tasks.multi_query import MultiQuery
from pipeline.evaluation.tasks.multi_value import MultiValue
from pipeline.evaluation.tasks.parquet import ParquetItems
from pipeline.evaluation.tasks.real_text import RealText
from pipeline.evaluation.tasks.single_needle import SingleNeedle
from pipeline.evaluation.tasks.sizer import Sizer
from pipeline.evaluation.tasks.variable_tracking import VariableTracking

TASKS: Mapping[str, Any] = {
    "single_needle": SingleNeedle,
    "multi_key": MultiKey,
    "multi_value": MultiValue,
    "multi_query": MultiQuery,
    "kv_pairs": KeyValuePairs,
    "variable_tracking": VariableTracking,
    "common_words": CommonWords,
    "frequent_words": FrequentWords,
    "real_text": RealText,
    "parquet": ParquetItems,
}


def task_of(setting: TaskSetting) -> Task:
    """The task that a setting asks for: its fields are the setting's."""
    fields = setting.model_dump(exclude={"kind", "name", "instruction"})
    made: Task = TASKS[setting.model_dump()["kind"]](label=setting.label, **fields)
    return made


def make_items(settings: Iterable[TaskSetting], sizer: Sizer, counts: Mapping[int, int], seed: int) -> Iterator[Item]:
    """All items of an evaluation (``Evaluation.tasks``, ``.counts``, ``.seed``). Raises ``ValueError`` that names task
    and length for what cannot be made, and for an id that comes twice."""
    seen: set[str] = set()
    for setting in settings:
        for item in task_of(setting).items(sizer.told(setting.instruction), counts, seed):
            if item.id in seen:
                raise ValueError(f"{setting.label}: item {item.id!r} is there already; allowed: unique ids")
            seen.add(item.id)
            yield item if item.instruction is not None else replace(item, instruction=setting.instruction)
