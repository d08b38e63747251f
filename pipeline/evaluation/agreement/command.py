"""``python -m pipeline.evaluation agreement``: makes ``docs/results/kvpress.md``."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

from configs.load import load_job
from configs.schema import Model
from pipeline.evaluation.agreement.comparing import KvpressProcess, OtherSide, compare
from pipeline.evaluation.agreement.exchange import Case
from pipeline.evaluation.agreement.methods import COMPARED
from pipeline.evaluation.agreement.ours import OurSide
from pipeline.evaluation.agreement.page import Agreed, agreement_lines
from pipeline.evaluation.tasks.base import Item
from pipeline.evaluation.tasks.sizer import Sizer
from pipeline.evaluation.tasks.table import TASKS
from workers.loading import load_model, load_reading

JOB = Path("configs/needles.yaml")
TASKS_ASKED = ("single_needle", "multi_key")
TOKENS = 1536
FRACTION = 0.25
SEED = 0


def write_agreement(kvpress_python: Path, out: Path, *, items: int = 12, work: Path = Path("out/agreement")) -> None:
    """Ask both sides and write the page. ``items``: of all tasks together. What kvpress said is kept in ``work`` and
    not asked again; it takes about two minutes of a core for each item, ours half a minute. Raises ``RuntimeError`` if
    kvpress fails."""
    job = load_job(JOB)
    reading = load_reading(job)
    cases = [Case.of(item, reading.frame, FRACTION) for item in _items(Sizer(reading.frame), items)]
    other: OtherSide = KvpressProcess(kvpress_python, reading.source.directory, work)
    theirs = other.answer(cases)
    exact = Model(source=job.model.source, dtype="float32", attention="cpu", device="cpu")
    ours = OurSide(load_model(exact, reading.source, reading.frame))
    rows = list(compare(ours, cases, theirs.said, COMPARED))
    said = ", ".join(f"{name} {number}" for name, number in theirs.versions.items())
    own = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "numpy"))
    lengths = sorted(len(case.context) for case in cases)
    lines = [
        "# Agreement with kvpress",
        "",
        f"Made by `python -m pipeline.evaluation agreement --kvpress-python .../bin/python`; do not edit. Issue 3 asks "
        "that a method that exists both in Foveate and in NVIDIA's kvpress agrees, or that the difference is "
        f"explained. {len(cases)} items ({', '.join(TASKS_ASKED)}; seed {SEED}) of {lengths[0]:,} to {lengths[-1]:,} "
        f"tokens of context, SmolLM2-135M-Instruct in float32, {FRACTION:.0%} of the pairs kept, chosen before the "
        "question is known.",
        "",
        f"kvpress's side: {said} (in an environment of its own: `pip install torch kvpress`). Foveate's side: python "
        f"{platform.python_version()}, {own}.",
        "",
        *agreement_lines(Agreed(rows, COMPARED)),
        "",
        *_ELSEWHERE,
    ]
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text("\n".join(lines) + "\n")


def _items(sizer: Sizer, count: int) -> Iterator[Item]:
    """As many of each task, one after the other in turn."""
    each = -(-count // len(TASKS_ASKED))
    made = [TASKS[name](label=name).items(sizer, {TOKENS: each}, SEED) for name in TASKS_ASKED]
    in_turn = [item for turn in zip(*made, strict=True) for item in turn]
    yield from in_turn[:count]


_ELSEWHERE = (
    "Not compared: Quest and LazyLLM, which kvpress does not have; DuoAttention, whose kvpress version fetches head "
    "maps for other models. H2O, SnapKV and KVzip have presses of the same name for decoding or with corrections "
    "(`TOVAPress`, `CriticalKVPress`, KVzip+), which are other methods.",
)
