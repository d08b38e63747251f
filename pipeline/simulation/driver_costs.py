"""``python -m pipeline.simulation.driver_costs --model SOURCE``: what a driver itself costs, as a table of Markdown.

Measured are the real reader with the model's tokenizer on the manual inside Python, and messages of Ray with an actor
of this machine. No weights are loaded. Every round does each piece once, so that a busy moment of the machine meets all
alike. Preparing and choosing are CPU time of one thread, which others on the machine hardly change; the rest needs a
machine that does nothing else. Look at the quartiles before the median.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial

from pipeline.document import Document
from pipeline.simulation.driver_bench import Bench, choosing, preparing
from pipeline.simulation.driver_messages import idler, looking_us, message_ms
from workers.errors import ModelError

Samples = Sequence[float]
Work = Callable[[], object]
_LOOKED_AT = (500, 2000, 4000)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print; None takes the arguments of the process."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.simulation.driver_costs", description=__doc__)
    parser.add_argument("--model", required=True, help="as model.source of a job")
    parser.add_argument("--rounds", type=int, default=24)
    parser.add_argument("--documents", type=int, default=8, help="documents that the manual is cut into")
    parser.add_argument("--chars", type=int, help="characters of the manual; all of it by default")
    parser.add_argument("--without-ray", action="store_true", help="leave out what messages cost")
    chosen = parser.parse_args(arguments)
    if chosen.rounds < 2 or chosen.documents < 2:
        parser.error("--rounds, --documents: allowed: 2 or more")
    try:
        bench = Bench.of(chosen.model, chosen.documents, chosen.chars)
    except ModelError as error:
        parser.error(str(error))
    print("| what a driver does | unit | median | quartiles |\n| --- | --- | --- | --- |", flush=True)
    for row in pieces(bench, chosen.rounds):
        print(row, flush=True)
    if not chosen.without_ray:
        for row in messages(bench, chosen.rounds):
            print(row, flush=True)
    for row in threads(chosen.model, bench, chosen.rounds):
        print(row, flush=True)


def pieces(bench: Bench, rounds: int) -> Iterator[str]:
    """A row for each piece of preparing and choosing."""
    found: dict[str, list[float]] = {}
    for number in range(rounds):
        document = bench.documents[number % len(bench.documents)]
        thousands = len(bench.reading.frame.tokenizer.encode(document.text)) / 1000
        for name, work in {**preparing(bench, document), **choosing(bench, document)}.items():
            per = 1.0 if name == "answer row" else thousands
            found.setdefault(name, []).append(timed(work, time.thread_time) * 1000 / per)
    for name, samples in found.items():
        yield row(name, "ms" if name == "answer row" else "ms / 1,000 tokens", samples)


def messages(bench: Bench, rounds: int) -> Iterator[str]:
    """Rows for tasks to an actor and results back, and for looking for results."""
    [task, *_] = bench.reader.prepare(bench.documents[0]).encodes
    tokens = sum(len(chunk.token_ids) for chunk in task.chunks)
    whole, empty = [], []
    with idler(bench.said_of(task)) as actor:
        for _ in range(rounds):
            whole.append(message_ms(actor, task, 80))
            empty.append(message_ms(actor, None, 80))
        looks = looking_us(actor, _LOOKED_AT, rounds)
    for name, found in ((f"a chunk of {tokens:,} tokens", whole), ("an empty message", empty)):
        yield row(f"hand over {name}", "ms", [ms for out_ms, _, _ in found for ms in out_ms])
        yield row("... take its result back", "ms", [ms for _, back_ms, _ in found for ms in back_ms])
        yield row("... there and back: CPU of the driver's process", "ms", [cpu_ms for _, _, cpu_ms in found])
    for number, samples in looks.items():
        yield row(f"look for results, {number:,} tasks in hand", "µs a task", samples)


def threads(model: str, bench: Bench, rounds: int) -> Iterator[str]:
    """Rows for two threads that prepare different documents at once, against one after another: 2 where nothing of it
    holds the interpreter's lock, 1 where all does. Each has a tokenizer of its own."""
    other = Bench.of(model, 2)
    half = len(bench.documents) // 2

    def prepare(own: Bench, documents: Sequence[Document]) -> Work:
        return lambda: [own.reader.prepare(document) for document in documents]

    def tokenize(own: Bench, documents: Sequence[Document]) -> Work:
        encode = own.reading.frame.tokenizer.encode_with_offsets
        return lambda: [encode(document.text) for document in documents]

    for name, of in (("prepare", prepare), ("... tokens and offsets", tokenize)):
        works = [of(bench, bench.documents[:half]), of(other, bench.documents[half:])]
        with ThreadPoolExecutor(len(works)) as pool:
            ratios = []
            for _ in range(rounds):
                apart_s = timed(partial(_in_turn, works), time.perf_counter)
                together_s = timed(partial(_at_once, works, pool), time.perf_counter)
                ratios.append(apart_s / together_s)
        yield row(f"{name}: two threads", "times as fast as one", ratios)


def timed(work: Work, clock: Callable[[], float]) -> float:
    """Seconds that it takes."""
    started_s = clock()
    work()
    return clock() - started_s


def _in_turn(works: Sequence[Work]) -> None:
    for work in works:
        work()


def _at_once(works: Sequence[Work], pool: Executor) -> None:
    for running in [pool.submit(work) for work in works]:
        running.result()


def row(name: str, unit: str, samples: Samples) -> str:
    """A row of the table."""
    low, median, high = statistics.quantiles(samples, n=4, method="inclusive")
    return f"| {name} | {unit} | {median:.3g} | {low:.3g} to {high:.3g} |"


if __name__ == "__main__":
    main()
