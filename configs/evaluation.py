"""What an evaluation may say: which tasks, at which lengths and budgets, by which methods.

An evaluation is a job's settings (``base``) crossed with methods that each change a few of them. Invariants: as in
``schema``, models are closed and frozen and defaults are written here only; every method together with every
budget is a possible ``Job``, or the evaluation does not load. Imports neither torch nor ray.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Annotated, Literal, TypeVar

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from configs.closed import Closed, Conflict, Impossible, Natural, Positive
from configs.schema import Corpus, Job, LocalWorkers, Model, Name, Output, Pool, Prompt
from configs.stages import AnswerOver, Keep, Read
from configs.tasks import Task


def _number(key: object) -> object:
    """Keys of a mapping are text in our YAML and in JSON; a length is a number."""
    digits = str(key).replace("_", "")
    return int(digits) if digits.isascii() and digits.isdigit() else key


Length = Annotated[int, BeforeValidator(_number), Field(ge=1)]
Section = TypeVar("Section", bound=Closed)
NO_BUDGET = ("dense", "map_reduce")
"""Baselines that read everything, whatever the budget: each runs once per item."""


class Base(Closed):
    """The settings that all methods share, as in a job."""

    model: Model
    prompt: Prompt = Prompt()
    read: Read = Read()
    keep: Keep = Keep()
    answer: AnswerOver = AnswerOver()


class Method(Closed):
    """One row of the tables. A key of ``read``, ``keep`` or ``answer`` that is given here replaces the base's, a choice
    among kinds (``scorer``, ``budget``, ...) as a whole. ``baseline``: not a method of ours, but a control:
    ``dense`` reads everything at once, ``truncate`` keeps head and tail, ``bm25`` keeps the blocks that words
    find, ``map_reduce`` asks every chunk and then over the answers. ``max_items``, ``min_length`` and ``max_length``
    leave out what would cost too much or is somebody else's row: items of a task and length beyond so many, documents
    of other lengths."""

    name: Name
    baseline: Literal["dense", "truncate", "bm25", "map_reduce"] | None = None
    read: Read | None = None
    keep: Keep | None = None
    answer: AnswerOver | None = None
    max_items: Positive | None = None
    min_length: Positive | None = None
    max_length: Positive | None = None

    @property
    def takes_budget(self) -> bool:
        """Whether the evaluation's budgets apply; otherwise it runs once per item."""
        return self.baseline not in NO_BUDGET

    def tries(self, rank: int, length: int) -> bool:
        """Whether it is tried on the item number ``rank`` (from 0) of a task and ``length``."""
        fits = (self.min_length or length) <= length <= (self.max_length or length)
        return fits and rank < (self.max_items or rank + 1)


class Evaluation(Closed):
    """One evaluation, as a YAML file says it. ``lengths`` count document, prompt and answer together, in the model's
    tokens. ``items``: per task, for each length or for all. ``budgets``: each replaces ``keep.budget.tokens``.
    The first method is the one that the others are compared with. ``share_reading``: methods that read alike share one
    reading and one batch of answers, and nobody knows whose seconds were whose; without it each works alone and its
    seconds are its own. ``fidelity_items``: of how many items of each task and length every method's predictions are
    compared with the dense model's, where that fits into the window."""

    base: Base
    tasks: Annotated[tuple[Task, ...], Field(min_length=1)]
    lengths: Annotated[tuple[Positive, ...], Field(min_length=1)]
    items: Annotated[
        Positive | dict[Length, Positive],
        Field(description="integer >= 1, or mapping of every length to an integer >= 1"),
    ]
    budgets: Annotated[tuple[Positive, ...], Field(min_length=1)]
    methods: Annotated[tuple[Method, ...], Field(min_length=1)]
    seed: int = 0
    share_reading: bool = True
    fidelity_items: Natural = 0
    output: Output
    pool: Pool = LocalWorkers()

    @property
    def counts(self) -> dict[int, int]:
        """Items per task by length, the lengths in their order."""
        return {n: self.items if isinstance(self.items, int) else self.items[n] for n in self.lengths}

    def budgets_of(self, method: Method) -> tuple[int | None, ...]:
        """The budgets that a method runs at; one None for a method that knows no budget."""
        return self.budgets if method.takes_budget else (None,)

    def job(
        self, method: Method, budget: int | None, corpus: str = "items.parquet", *, instruction: str | None = None
    ) -> Job:
        """The job that runs ``method`` at ``budget`` tokens over a file of items as ``write_items`` makes it, on one
        worker of this process: who tries an evaluation's items is no part of what they are asked."""
        keep = _merged(self.base.keep, method.keep)
        if budget is not None:
            keep = keep.model_copy(update={"budget": keep.budget.model_copy(update={"tokens": budget})})
        columns = ("question", "answer_prefix", "max_new_tokens", "answer")
        return Job(
            corpus=Corpus(path=corpus, text="context", **{name: name for name in columns}),
            prompt=self.prompt(instruction),
            model=self.base.model,
            read=_merged(self.base.read, method.read),
            keep=keep,
            answer=_merged(self.base.answer, method.answer),
            output=self.output,
        )

    def prompt(self, instruction: str | None) -> Prompt:
        """The prompt with a task's own instruction; None: the base's."""
        own = {} if instruction is None else {"instruction": instruction}
        return self.base.prompt.model_copy(update=own)

    @model_validator(mode="after")
    def _possible(self) -> Evaluation:
        """Refuse what cannot run or be told apart; each message names the keys to change."""
        conflicts = [*_repeats(self), *_count_conflicts(self), *_method_conflicts(self)]
        if conflicts:
            raise Impossible(conflicts)
        return self


def _merged(base: Section, own: Section | None) -> Section:
    """``base`` with the keys that ``own`` was given."""
    return base.model_copy(update={name: getattr(own, name) for name in own.model_fields_set}) if own else base


def _repeats(evaluation: Evaluation) -> Iterator[Conflict]:
    """Names, lengths and budgets that are there twice."""
    lists: dict[str, Iterable[object]] = {
        "methods[{}].name": [method.name for method in evaluation.methods],
        "tasks[{}].name": [task.label for task in evaluation.tasks],
        "lengths[{}]": evaluation.lengths,
        "budgets[{}]": evaluation.budgets,
    }
    for pattern, values in lists.items():
        seen: Counter[object] = Counter()
        for index, value in enumerate(values):
            if seen[value]:
                key = pattern.format(index)
                yield Conflict((key,), f"{key}: {value!r} is there already; allowed: each once")
            seen[value] += 1


def _count_conflicts(evaluation: Evaluation) -> Iterator[Conflict]:
    if isinstance(evaluation.items, dict) and set(evaluation.items) != set(evaluation.lengths):
        yield Conflict(
            ("items", "lengths"),
            f"items: given for the lengths {_list(evaluation.items)}, but lengths: {_list(evaluation.lengths)}; "
            "allowed: one number, or a number for each of lengths",
        )


def _method_conflicts(evaluation: Evaluation) -> Iterator[Conflict]:
    """What makes a method's job impossible, at any budget, told once."""
    for index, method in enumerate(evaluation.methods):
        if method.min_length and method.max_length and method.min_length > method.max_length:
            yield Conflict(
                (f"methods[{index}].min_length", f"methods[{index}].max_length"),
                f"methods[{index}] ({method.name}): min_length: {method.min_length} is above max_length: "
                f"{method.max_length}; allowed: at most that",
            )
        told: set[str] = set()
        for budget in evaluation.budgets_of(method):
            for message in _impossible(evaluation, method, budget):
                if message not in told:
                    told.add(message)
                    yield Conflict((f"methods[{index}]",), f"methods[{index}] ({method.name}): {message}")
        if method.takes_budget and _merged(evaluation.base.keep, method.keep).budget.fraction is not None:
            yield Conflict(
                (f"methods[{index}].keep.budget.fraction", "base.keep.budget.fraction", "budgets"),
                f"methods[{index}] ({method.name}): keep.budget.fraction would overrule budgets; allowed: null",
            )


def _impossible(evaluation: Evaluation, method: Method, budget: int | None) -> list[str]:
    """Why a method at a budget is no possible job; empty where it is one."""
    try:
        evaluation.job(method, budget)
    except ValidationError as error:
        reasons = [detail.get("ctx", {}).get("error") for detail in error.errors()]
        return [c.message for reason in reasons if isinstance(reason, Impossible) for c in reason.conflicts]
    return []


def _list(values: Iterable[object]) -> str:
    return ", ".join(map(str, values))
