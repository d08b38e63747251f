"""The baseline: needle accuracy by length beside the dense model, recall of the shipped profile, cost.

Makes ``docs/results/baseline.md``. Runs by hand (about half an hour on two cores), resumes where it stopped.
*Dense* is the same engine told to keep everything and read it at once, which a law test holds equal to the
model itself; it exists only where document and prompt fit into the window.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pyarrow.parquet as pq
import torch

from configs.load import load_job
from pipeline.demo import build
from pipeline.directory import existing_directory
from pipeline.evaluation.bm25 import bm25_recall
from pipeline.evaluation.needles import PROMPT_TOKENS, build_needles
from pipeline.evaluation.runs import Measured, measure, run_job
from pipeline.status import read_answers
from workers.hf import Tokenizer
from workers.loading import resolve_runtime
from workers.selection.calibrate import BUDGETS
from workers.selection.profile import find_profile
from workers.selection.questions import Exam
from workers.source import locate

JOB = Path("configs/needles.yaml")
DEMO = Path("configs/demo.yaml")
ITEMS = {4096: 20, 8192: 20, 16384: 20, 32768: 10}
DENSE_LENGTHS = (4096, 8192)
SEED = 0


def needle_runs(work: Path) -> Iterator[tuple[int, str, Measured]]:
    """(length, method, result) of every run, shortest first. Corpora and answers are kept in ``work``."""
    tokenizer = Tokenizer(locate(load_job(JOB).model.source).directory)
    for tokens, items in ITEMS.items():
        corpus = work / f"needles-{tokens}.parquet"
        if not corpus.is_file():
            build_needles(corpus, tokenizer, tokens=tokens, items=items, seed=SEED)
        methods: dict[str, Sequence[str]] = {"foveate": ()}
        if tokens in DENSE_LENGTHS:
            methods["foveate, kept pairs"] = ("answer.over=kept",)
            methods["dense"] = (f"keep.budget.tokens={tokens - PROMPT_TOKENS}", "answer.batch_size=1")
        if tokens == min(DENSE_LENGTHS):  # whether it is the precision that costs the dense model its answers
            methods["dense, float32"] = (*methods["dense"], "model.dtype=float32")
        for method, overrides in methods.items():
            name = f"{tokens}-{method.replace(', ', '-').replace(' ', '-')}"
            yield tokens, method, measure(name, JOB, corpus, work / name, overrides)


def write_baseline(work: Path, out: Path) -> None:
    """Run what has not run yet and write the page."""
    results = list(needle_runs(work))
    runtime = resolve_runtime(load_job(JOB).model)
    lines = [
        "# Baseline",
        "",
        "Made by `python -m pipeline.evaluation baseline`; do not edit. SmolLM2-135M-Instruct (window 8,192), "
        f"{runtime.dtype}, attention `{runtime.attention}`, two workers of one thread each on "
        f"{platform.machine()} ({torch.backends.cpu.get_cpu_capability()}), torch {torch.__version__}.",
        "",
        *_demo_lines(work),
        *_needle_lines(results),
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
    expected = {
        (row["id"], f"row-{index}"): answer
        for row in pq.read_table(corpus, columns=["id", "answer"]).to_pylist()
        for index, answer in enumerate(row["answer"])
    }
    answers = read_answers(existing_directory(str(work / "demo-answers"))).to_pylist()
    wanted = [expected[row["id"], row["question_id"]] for row in answers]
    right = [
        want is not None and want.lower() in row["answer"].lower() for want, row in zip(wanted, answers, strict=True)
    ]
    lengths = {row["id"]: row["document_tokens"] for row in answers}
    lines = [
        "## The demo",
        "",
        f"`foveate run configs/demo.yaml`: {len(answers)} questions of {len(lengths)} documents, "
        f"{sum(lengths.values()):,} tokens (the longest {max(lengths.values()):,}), in {cost.wall_s:.0f} s with "
        f"loading the converted model; peak {cost.peak_bytes / 2**30:.2f} GiB. {sum(right)} of "
        f"{sum(want is not None for want in wanted)} answers that can be checked by string are right.",
        "",
        "| document | question | answer | expected |",
        "|---|---|---|---|",
    ]
    for row, want, correct in zip(answers, wanted, right, strict=True):
        mark = "" if want is None else f"{want} {'✓' if correct else '✗'}"
        cells = (row["id"], row["question"], row["answer"], mark)
        lines.append("| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |")
    return [*lines, ""]


def _needle_lines(results: Sequence[tuple[int, str, Measured]]) -> list[str]:
    lines = [
        "## One needle in real text",
        "",
        f"Single needle (RULER-style) in the Python language reference, seed {SEED}, depths spread evenly, chunks of "
        "1,024 tokens, budget 512 tokens. *Dense* reads the whole document at once; beyond the window it cannot. "
        "Seconds are engine seconds per 1,000 document tokens on one core (encode + answer); *peak* is the largest "
        "resident set of the process, two workers and weights included.",
        "",
        "| length | method | answered | accuracy | encode s/1k | answer s/1k | tokens/s, two workers | peak GiB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for tokens, method, run in results:
        encode = "" if method.startswith("dense") else f"{run.encode_s_per_1000:.2f}"
        rate = "" if method.startswith("dense") else f"{run.document_tokens / run.wall_s:,.0f}"
        lines.append(
            f"| {tokens:,} | {method} | {run.correct}/{run.items} | {run.accuracy:.0%} | {encode} | "
            f"{run.answer_s_per_1000:.2f} | {rate} | {run.peak_bytes / 2**30:.2f} |"
        )
    return [*lines, ""]


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
