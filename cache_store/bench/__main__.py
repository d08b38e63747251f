"""``python -m cache_store.bench NAME ...``: measures one part of the store and prints a Markdown table.

``page`` prints all of them, as docs/results/tiers.md has them.
"""

from __future__ import annotations

import argparse
import pkgutil
from collections.abc import Callable, Mapping, Sequence

# Names, not functions: what a benchmark needs is imported when it is asked for.
_BENCHMARKS: Mapping[str, str] = {
    "eviction": "cache_store.bench.eviction:main",
    "tiers": "cache_store.bench.tiers:main",
    "entries": "cache_store.bench.entries:main",
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark that the first argument names with the others; None takes those of the process."""
    parser = argparse.ArgumentParser(prog="python -m cache_store.bench", description=__doc__)
    parser.add_argument("benchmark", choices=[*_BENCHMARKS, "page"])
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="NAME --help lists them; page has none")
    chosen = parser.parse_args(arguments)
    if chosen.benchmark != "page":
        _main_of(chosen.benchmark)(chosen.arguments)
        return
    if chosen.arguments:
        parser.error(f"page: {chosen.arguments}; allowed: nothing")
    print("# The store's parts, measured\n\nMade by `python -m cache_store.bench page`.")
    print("What is measured, and against what, is said in [cache_store/bench](../../cache_store/bench/).")
    for name in _BENCHMARKS:
        print(f"\n## {name.capitalize()}\n")
        _main_of(name)([])


def _main_of(name: str) -> Callable[[Sequence[str]], None]:
    found: Callable[[Sequence[str]], None] = pkgutil.resolve_name(_BENCHMARKS[name])
    return found


if __name__ == "__main__":
    main()
