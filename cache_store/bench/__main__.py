"""``python -m cache_store.bench NAME ...``: measures one part of the store and prints a Markdown table."""

from __future__ import annotations

import argparse
import pkgutil
from collections.abc import Mapping, Sequence

# Names, not functions: what a benchmark needs is imported when it is asked for.
_BENCHMARKS: Mapping[str, str] = {
    "eviction": "cache_store.bench.eviction:main",
    "tiers": "cache_store.bench.tiers:main",
    "entries": "cache_store.bench.entries:main",
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark that the first argument names with the others; None takes those of the process."""
    parser = argparse.ArgumentParser(prog="python -m cache_store.bench", description=__doc__)
    parser.add_argument("benchmark", choices=_BENCHMARKS)
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="NAME --help lists them")
    chosen = parser.parse_args(arguments)
    pkgutil.resolve_name(_BENCHMARKS[chosen.benchmark])(chosen.arguments)


if __name__ == "__main__":
    main()
