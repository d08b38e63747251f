"""Both sides on the same cases, item by item: what a page of agreement is made of.

Invariants: the other side is asked once, about all cases; every method of a table is compared on every case.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pipeline.evaluation.agreement import kvpress_side
from pipeline.evaluation.agreement.exchange import Case, Said, cases_text, read_said, read_versions, write_cases
from pipeline.evaluation.agreement.measures import Agreement, agreement
from pipeline.evaluation.agreement.methods import SINKS, Compared, Pinned
from pipeline.evaluation.agreement.ours import OurSide
from pipeline.evaluation.metrics import string_match
from workers.prompt import Frame


@dataclass(frozen=True)
class Theirs:
    """What the other side said: of each case in order, by method; and what it ran on."""

    said: Sequence[Mapping[str, Said]]
    versions: Mapping[str, str]


class OtherSide(Protocol):
    """Another implementation of the same methods."""

    def answer(self, cases: Sequence[Case]) -> Theirs:
        """What it makes of every case, with every method it has."""
        ...


@dataclass(frozen=True)
class KvpressProcess:
    """kvpress in a process of its own environment. What it said lies in ``work`` under a name made of the cases and of
    the script, so that a run that was cut off goes on, and one over other cases begins anew."""

    python: Path
    model: Path
    work: Path

    def answer(self, cases: Sequence[Case]) -> Theirs:
        """As ``OtherSide.answer``. Raises ``RuntimeError`` with the end of its own words if it fails."""
        script = Path(kvpress_side.__file__)
        asked = hashlib.sha256(cases_text(cases).encode() + script.read_bytes()).hexdigest()[:16]
        directory = self.work / f"kvpress-{asked}"
        write_cases(directory, cases)
        log = directory / "kvpress.log"
        with log.open("wb") as sink:
            command = [str(self.python), str(script), str(self.model), str(directory)]
            # Another environment's packages: nothing of this one may be found first.
            environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
            done = subprocess.run(command, stdout=sink, stderr=subprocess.STDOUT, env=environment)
        if done.returncode != 0:
            raise RuntimeError(f"{self.python} {script.name}: exit {done.returncode}:\n{log.read_text()[-2000:]}")
        return Theirs([read_said(directory, case) for case in cases], read_versions(directory))


@dataclass(frozen=True)
class Row:
    """One case with one method. ``agreement`` and ``own_score``: None where only the other side has the method;
    ``other_score``: None where the other side gives no answer, and ``error`` says why."""

    method: str
    pinned: Pinned
    agreement: Agreement | None
    own_score: float | None
    other_score: float | None
    error: str | None = None


def compare(
    ours: OurSide, cases: Sequence[Case], theirs: Sequence[Mapping[str, Said]], methods: Sequence[Compared]
) -> Iterator[Row]:
    """Every method on every case, twice: with what the other side leaves out of its choice pinned, and with all words
    before the document, as the product does."""
    template = Frame.render(ours.loaded.frame.tokenizer, None, "").anchor
    for case, other in zip(cases, theirs, strict=True):
        assert case.anchor[: len(template)] == template, "the words before a document begin with the template's"
        sizes: dict[Pinned, int] = {
            "nothing": 0, "sinks": SINKS, "template": len(template), "anchor": len(case.anchor),
        }  # fmt: skip
        for pinned, size in sizes.items():
            asked = [method for method in methods if pinned in (method.pinned, "anchor")]
            own = dict(ours.said(case, [method for method in asked if method.budget is not None], size))
            for method in asked:
                yield _row(case, method.name, (pinned, size), own.get(method.name), other[method.name])


def _row(case: Case, name: str, pinned: tuple[Pinned, int], own: Said | None, other: Said) -> Row:
    def score(said: Said | None) -> float | None:
        if said is None or said.answer is None:
            return None
        return string_match(said.answer, case.item.answers, case.item.match)

    agreed = None if own is None else agreement(own, other, pinned[1])
    return Row(name, pinned[0], agreed, score(own), score(other), other.error)
