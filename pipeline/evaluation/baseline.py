"""The baseline: the demo with its answers, what reading costs by length, and recall of the shipped profile.

Makes ``docs/results/baseline.md``. Runs by hand (some minutes on two cores), resumes where it stopped. How often
questions are answered, and by which method best, is what ``foveate evaluate`` measures.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pyarrow.parquet as pq

from configs.load import load_job
from pipeline.demo import build
from pipeline.directory import existing_directory
from pipeline.evaluation.bm25 import bm25_recall
from pipeline.evaluation.machine import describe_machine
from pipeline.evaluation.runs import Cost, measure, run_job
from pipeline.evaluation.tables import table
from pipeline.evaluation.tasks.parquet import write_items
from pipeline.evaluation.tasks.single_needle import SingleNeedle
from pipeline.evaluation.tasks.sizer import Sizer
from pipeline.status import read_answers
from workers.hf import Tokenizer, model_shape
from workers.selection.calibrate import BUDGETS
from workers.selection.profile import find_profile
from workers.selection.questions import Exam
from workers.source import locate

JOB = Path("configs/needles.yaml")
DEMO = Path("configs/demo.yaml")
LENGTHS = (8192, 32768)
ITEMS = 4
METHODS: Mapping[str, tuple[str, ...]] = {"reread (the default)": (), "kept pairs": ("answer.over=kept",)}


def write_baseline(work: Path, out: Path) -> None:
    """Run what has not run yet and write the page."""
    model = load_job(JOB).model
    window = model_shape(locate(model.source).directory).window
    lines = [
        "# Baseline",
        "",
        f"Made by `python -m pipeline.evaluation baseline`; do not edit. Model `{model.source}`, window {window:,} "
        f"tokens; two workers of one thread each; measured on {describe_machine(model)}.",
        "",
        *_demo_lines(work),
        *_cost_lines(work),
        *_recall_lines(),
    ]
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text("\n".join(lines))


def _demo_lines(work: Path) -> list[str]:
    """The demo: its time, and every answer beside what was expected."""
    corpus = build(work / "demo")
    cost = run_job(
        "demo", DEMO, work / "demo-answers", (f"corpus.path={corpus}", f"store.tiers[1].path={work / 'demo-store'}")
    )
    answers = read_answers(existing_directory(str(work / "demo-answers"))).to_pylist()
    wanted = _expected(corpus)
    rows, right = [], 0
    for row in answers:
        want, mark = wanted[row["id"], row["question_id"]], ""
        if want is not None:
            correct = want.lower() in row["answer"].lower()
            right += correct
            mark = f"{want} {'✓' if correct else '✗'}"
        cells = (row["id"], row["question"], row["answer"], mark)
        rows.append([" ".join(cell.split()).replace("|", "\\|") for cell in cells])
    checked = sum(wanted[row["id"], row["question_id"]] is not None for row in answers)
    lengths = {row["id"]: row["document_tokens"] for row in answers}
    return [
        "## The demo",
        "",
        f"`foveate run configs/demo.yaml`: {len(answers)} questions of {len(lengths)} documents, "
        f"{sum(lengths.values()):,} tokens (the longest {max(lengths.values()):,}), in {cost.wall_s:.0f} s with "
        f"loading the converted model; peak {_gibibytes(cost)} GiB. {right} of {checked} answers that can be "
        "checked by string are right.",
        "",
        *table(["document", "question", "answer", "expected"], rows),
        "",
    ]


def _expected(corpus: Path) -> dict[tuple[str, str], str | None]:
    """What each question of the demo expects, by document and question; None where no string decides."""
    return {
        (row["id"], f"row-{index}"): answer
        for row in pq.read_table(corpus, columns=["id", "answer"]).to_pylist()
        for index, answer in enumerate(row["answer"])
    }


def _cost_lines(work: Path) -> list[str]:
    """What reading costs, by length: seconds of engines, tokens by the clock, memory."""
    sizer = Sizer.of(load_job(JOB))
    rows = []
    for length in LENGTHS:
        corpus = work / f"cost-{length}.parquet"
        if not corpus.is_file():
            write_items(corpus, SingleNeedle(label="cost").items(sizer, {length: ITEMS}, 0))
        for method, overrides in METHODS.items():
            name = f"cost-{length}-{method.partition(' ')[0]}"
            run = measure(name, JOB, corpus, work / name, overrides)
            seconds = [f"{run.encode_s_per_1000:.2f}", f"{run.answer_s_per_1000:.2f}"]
            rows.append([f"{length:,}", method, *seconds, f"{run.tokens_per_s:,.0f}", _gibibytes(run.cost)])
    columns = ["length", "answered over", "encode s/1k", "answer s/1k", "tokens/s", "peak GiB"]
    return [
        "## What reading costs",
        "",
        f"{ITEMS} documents of each length with one question each, `{JOB}`. Seconds are engine seconds per 1,000 "
        "document tokens on one core; tokens/s are by the clock, with loading the model; *peak* is the largest "
        "resident set of the process, two workers and weights included.",
        "",
        *table(columns, rows),
        "",
    ]


def _gibibytes(cost: Cost) -> str:
    return f"{cost.peak_bytes / 2**30:.2f}"


def _recall_lines() -> list[str]:
    """Recall of gold passages, from what calibration recorded in the profile, and BM25's beside it."""
    source = locate(load_job(JOB).model.source)
    profile = find_profile("auto", source.weights)
    if profile is None or f"recall_of_heads_alone_at_{BUDGETS[0]}" not in profile.measured.get("held_out", {}):
        raise RuntimeError("the profile has no held-out recall with and without words; run `foveate calibrate` again")
    tokenizer, exam = Tokenizer(source.directory), Exam.of_split("held_out")
    lexical, heard = (bm25_recall(tokenizer, exam, neighbours=neighbours) for neighbours in (False, True))
    measured: Mapping[str, float] = profile.measured["held_out"]
    rows = {
        f"shipped profile ({len(profile.heads)} heads) and words": [measured[f"recall_at_{b}"] for b in BUDGETS],
        "its heads alone": [measured[f"recall_of_heads_alone_at_{budget}"] for budget in BUDGETS],
        "mean over all heads": [measured[f"recall_of_all_heads_at_{budget}"] for budget in BUDGETS],
        "BM25": [lexical[f"recall_at_{budget}"] for budget in BUDGETS],
        "BM25, with the same neighbour step": [heard[f"recall_at_{budget}"] for budget in BUDGETS],
    }
    learnt: Mapping[str, float] = profile.measured["calibrate"]
    there = ", ".join("{:.0%} at {}".format(learnt[f"recall_at_{budget}"], budget) for budget in BUDGETS)
    return [
        "## Held-out questions over real text",
        "",
        f"{measured['questions']} hand-written questions over {measured['tokens']:,} tokens of the Python language "
        "reference, which is full of look-alikes; share whose whole gold passage is kept. No topic is shared with the "
        f"{learnt['questions']} questions the heads were chosen on (there: {there}).",
        "",
        "| scored by | " + " | ".join(f"{budget:,} tokens kept" for budget in BUDGETS) + " |",
        "|---" * (1 + len(BUDGETS)) + "|",
        *(f"| {name} | " + " | ".join(f"{value:.0%}" for value in values) + " |" for name, values in rows.items()),
        "",
        f"Heads (layer, head): {', '.join(map(str, profile.heads))}; rows: {profile.rows}.",
        "",
    ]
