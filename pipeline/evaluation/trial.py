"""One item, tried by every method at every budget that is asked for.

What is kept is found by the product's own steps (``finding``) and answered by the product's own engines; questions
that are answered over text are answered in one batch, kept pairs at once so that they can be let go. Invariants: the
order of contenders changes no result; whoever cannot be tried is a result with its reason.

Shapes: N tokens of the dense answer, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import mean

from torch import Tensor

from configs.evaluation import Evaluation, Method
from pipeline.evaluation.contender import Contender, Found
from pipeline.evaluation.finding import Finder, Refused
from pipeline.evaluation.machine import describe_machine
from pipeline.evaluation.metrics import gold_recall, string_match
from pipeline.evaluation.results import Result
from pipeline.evaluation.tasks.base import Item
from workers.context import Context
from workers.loaded import LoadedModel
from workers.loading import Reading
from workers.messages import Ask, Interval
from workers.prompt import Frame
from workers.selection.profile import Profile
from workers.selection.questions import tokens_of

_BATCH = 24
"""Questions over text that are answered together: three budgets of eight methods."""


@dataclass(frozen=True)
class Trial:
    """One item and who is to try it: (method, budget) pairs. ``compares``: fidelity to dense is measured too."""

    item: Item
    contenders: tuple[tuple[str, int | None], ...]
    compares: bool = False


@dataclass(frozen=True)
class Tried:
    """What came of a trial, in the order of its contenders."""

    results: tuple[Result, ...]


@dataclass(frozen=True)
class Desk:
    """Everything that depends on the words before a document: who finds, and the methods as jobs."""

    reading: Reading
    finder: Finder
    contenders: Mapping[tuple[str, int | None], Contender]
    dense: Contender


class Bench:
    """A loaded model on which items are tried. Threads may share it."""

    def __init__(self, evaluation: Evaluation, reading: Reading, loaded: LoadedModel, profile: Profile | None) -> None:
        """``profile``: retrieval heads, where any method needs them."""
        self._evaluation = evaluation
        self._shares = evaluation.share_reading
        self._machine = describe_machine(evaluation.base.model)
        self._reading = reading
        self._loaded = loaded
        self._profile = profile
        self._desks: dict[str | None, Desk] = {}

    def work(self, trial: Trial) -> Tried:
        """Try an item with every contender that it names."""
        results: dict[tuple[str, int | None], Result] = {}
        for result in self._results(trial, self._desk(trial.item.instruction)):
            results[result.method, result.budget] = result
        return Tried(tuple(replace(results[name], machine=self._machine) for name in trial.contenders))

    def _desk(self, instruction: str | None) -> Desk:
        """For one instruction; made when it is first asked for (twice, should two threads ask at once)."""
        if instruction not in self._desks:
            evaluation = self._evaluation
            prompt = evaluation.prompt(instruction)
            frame = Frame.render(self._loaded.frame.tokenizer, prompt.system, prompt.instruction)
            reading, loaded = replace(self._reading, frame=frame), replace(self._loaded, frame=frame)
            dense = Method(name="dense", baseline="dense")
            self._desks[instruction] = Desk(
                reading,
                Finder(reading, loaded, self._profile, Context.of_anchor(loaded)),
                {
                    (method.name, budget): Contender(
                        method, budget, evaluation.job(method, budget, instruction=instruction)
                    )
                    for method in evaluation.methods
                    for budget in evaluation.budgets_of(method)
                },
                Contender(dense, None, evaluation.job(dense, None, instruction=instruction)),
            )
        return self._desks[instruction]

    def free(self, names: Sequence[str]) -> None:
        """Nothing outlives a trial."""

    def close(self) -> None:
        """As ``free``."""

    def _results(self, trial: Trial, desk: Desk) -> Iterator[Result]:
        item, contenders = trial.item, [desk.contenders[name] for name in trial.contenders]
        standard = _standard_of(item, desk) if trial.compares else None
        texts: dict[str, list[Found]] = {}
        for found in desk.finder.find(item, contenders, shares=self._shares):
            if isinstance(found, Refused):
                who = found.contender
                yield Result.refused(item, who.method.name, who.budget, found.reason)
            elif found.contender.job.keeps_pairs or not self._shares:
                yield from self._answer(item, [found], standard)
            else:
                texts.setdefault(str(found.contender.job.answer.reader), []).append(found)
        for alike in texts.values():
            for start in range(0, len(alike), _BATCH):
                yield from self._answer(item, alike[start : start + _BATCH], standard)

    def _answer(self, item: Item, found: Sequence[Found], standard: _Standard | None) -> Iterator[Result]:
        """Results of contenders whose answers one engine can give."""
        prompts = [each.query.reread for each in found]
        distinct = dict(zip(prompts, found, strict=True))  # who keeps the same text is asked once
        answered = found[0].engine.answer(Ask(tuple(each.query for each in distinct.values())))
        answers = dict(zip(distinct, answered.answers, strict=True))
        for each, prompt in zip(found, prompts, strict=True):
            generated = answers[prompt]
            kl, top1 = standard.compare(each) if standard is not None else (None, None)
            yield Result(
                task=item.task,
                length=item.length,
                item=item.id,
                method=each.contender.method.name,
                budget=each.contender.budget,
                answer=generated.text,
                score=string_match(generated.text, item.answers, item.match),
                recall=_recall(self._gold(item), each),
                relevance_kept=each.relevance_kept,
                kept_tokens=_tokens(each),
                kept_bytes=each.kept_bytes,
                seconds_read=each.seconds_read,
                seconds_answer=None if len(found) > 1 else generated.seconds,
                kl=kl,
                top1=top1,
            )

    def _gold(self, item: Item) -> tuple[Interval, ...]:
        """The gold passages of an item in tokens."""
        if not item.gold:
            return ()
        _, offsets = self._reading.frame.tokenizer.encode_with_offsets(item.context)
        return tokens_of(item.gold, offsets)


@dataclass(frozen=True)
class _Standard:
    """What the dense model said, for others to be compared with: its answer's N tokens, and the logarithms of the
    probabilities with which it predicted each."""

    token_ids: tuple[int, ...]
    log_NV: Tensor

    def compare(self, found: Found) -> tuple[float, float]:
        """Mean Kullback-Leibler divergence from dense in nats, and the share of tokens on which both agree."""
        theirs_NV = found.engine.predict(found.query, self.token_ids).log_softmax(dim=-1)
        kl_N = (self.log_NV.exp() * (self.log_NV - theirs_NV)).sum(dim=-1)
        agree_N = self.log_NV.argmax(dim=-1) == theirs_NV.argmax(dim=-1)
        return float(kl_N.mean()), float(agree_N.float().mean())


def _recall(gold: Sequence[Interval], found: Found) -> float | None:
    """Gold recall, on average over layers and heads where they keep different tokens."""
    recalls = [recall for runs in found.kept if (recall := gold_recall(gold, runs)) is not None]
    return mean(recalls) if recalls else None


def _tokens(found: Found) -> float | None:
    """Tokens kept of the document, on average over layers and heads."""
    return mean(sum(stop - start for start, stop in runs) for runs in found.kept) if found.kept else None


def _standard_of(item: Item, desk: Desk) -> _Standard | None:
    """What the dense model makes of an item; None where it does not fit into the window."""
    [found] = desk.finder.find(item, [desk.dense], shares=False)
    if isinstance(found, Refused):
        return None
    query, frame = found.query, desk.reading.frame
    if len(frame.anchor) + len(query.reread) + query.max_new_tokens > desk.reading.shape.window:
        return None
    [generated] = found.engine.answer(Ask((query,))).answers
    ids = frame.tokenizer.encode(generated.text)
    return _Standard(tuple(ids), found.engine.predict(query, ids).log_softmax(dim=-1)) if ids else None
