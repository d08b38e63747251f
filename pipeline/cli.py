"""The command line: what each command takes, and which exit code it ends with. All else is elsewhere.

    0    every question ended as an outcome            2    usage, job file, corpus, model, directory
    1    anything else; a run can be resumed           3    --strict, and a question failed
    130  stopped by Ctrl-C or SIGTERM

Invariants: errors that a user can mend are printed as their message alone, on stderr; what is not our user's
fault keeps its traceback; torch, ray and transformers are imported by the commands that need them.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from enum import StrEnum
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from rich.console import Console

from cache_store.errors import StoreError
from configs.errors import ConfigError
from pipeline.errors import IncompleteRun, Interrupted, JobError, TooManyFailures, WorkersUnavailable
from pipeline.render_cli import render_app
from pipeline.store_cli import store_app
from workers import logs
from workers.errors import BackendUnavailable, ModelError

if TYPE_CHECKING:
    from configs.schema import Job
    from pipeline.driver import StopRequest

app = typer.Typer(
    name="foveate",
    help="Answer questions over documents far longer than a model's window, and say on which words each answer rests.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(store_app, name="store")
app.add_typer(render_app, name="render")


class PoolKind(StrEnum):
    """Who runs engines."""

    LOCAL = "local"
    RAY = "ray"


JobFile = Annotated[Path, typer.Argument(metavar="JOB.yaml", help="The job file.")]
Directory = Annotated[str, typer.Argument(metavar="DIR", help="A run's output directory, or its URL.")]
Settings = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a key of the job.")]
Strict = Annotated[bool, typer.Option("--strict", help="Exit with 3 if any question failed.")]
_WATCH_S = 3.0


@app.command()
def run(
    job_file: JobFile,
    settings: Settings = None,
    output: Annotated[str | None, typer.Option(metavar="DIR", help="Same as --set output.path=DIR.")] = None,
    pool: Annotated[PoolKind | None, typer.Option(help="Run on this pool, with the job's workers.")] = None,
    share: Annotated[str, typer.Option(metavar="N/OF", help="Which of several drivers of one run this is.")] = "1/1",
    strict: Strict = False,
) -> None:
    """Run a job, or resume it where it stopped."""
    job = _load(job_file, [*(settings or ()), *_as_settings(output)], pool)
    from pipeline import driver, finale
    from pipeline.errands import Share
    from pipeline.progress import shown_on

    try:
        own = Share.parse(share)
    except ValueError as error:
        raise ConfigError(f"--share: {error}") from None
    with _stoppable() as stop, shown_on(Console(stderr=True), time.monotonic) as view:
        summary = driver.run(job, progress=view, stop=stop, share=own)
    finale.show(Console(), summary, view.pace.tokens_per_s)
    raise typer.Exit(3 if strict and summary.totals.failed else 0)


@app.command()
def plan(
    job_file: JobFile,
    settings: Settings = None,
    measure: Annotated[bool, typer.Option(help="Load the weights and time one chunk.")] = True,
) -> None:
    """Say what a job would do: documents, tokens, bytes, time. Nothing is answered or written."""
    job = _load(job_file, settings or ())
    from pipeline.estimate import estimate
    from pipeline.screen import print_estimate

    with Console(stderr=True).status("reading the corpus") as status:

        def tick(done: int, total: int) -> None:
            status.update(f"reading the corpus: {done:,} of {total:,} documents")

        found = estimate(job, measure=measure, tick=tick)
    print_estimate(Console(), found)


@app.command()
def status(
    directory: Directory,
    as_json: Annotated[bool, typer.Option("--json", help="Print one line of JSON instead.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Look again every few seconds, until it is finished.")] = False,
) -> None:
    """Say how far a run is, how fast it goes, what failed and what took longest."""
    from pipeline.directory import existing_directory
    from pipeline.status import StatusReader
    from pipeline.status_screen import print_status, status_json

    console, reader = Console(), StatusReader(existing_directory(directory))
    with suppress(KeyboardInterrupt):
        while True:
            found = reader.read()
            if as_json:
                print(status_json(found), flush=True)
            else:
                if watch:
                    console.clear()  # of a terminal; a pipe gets one status below the other
                print_status(console, found)
            if not watch or found.is_finished:
                return
            time.sleep(_WATCH_S)
    raise typer.Exit(130)


@app.command()
def retry_failed(directory: Directory, strict: Strict = False) -> None:
    """Ask the failed questions again that a retry may help."""
    from pipeline import driver, finale
    from pipeline.progress import shown_on

    with _stoppable() as stop, shown_on(Console(stderr=True), time.monotonic) as view:
        summary = driver.retry_failed(directory, progress=view, stop=stop)
    finale.show(Console(), summary, view.pace.tokens_per_s)
    raise typer.Exit(3 if strict and summary.totals.failed else 0)


@app.command()
def report(directory: Directory) -> None:
    """Make a run's report again."""
    from pipeline.directory import existing_directory
    from pipeline.report.write import make_report

    print(make_report(existing_directory(directory)))


@app.command()
def doctor() -> None:
    """Say what this machine can do, and what `auto` means on it."""
    from pipeline.doctor import examine
    from pipeline.screen import print_sections

    print_sections(Console(), examine())


@app.command()
def calibrate(
    model: Annotated[str, typer.Option(metavar="SOURCE", help="The model, as model.source names it.")],
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Where to write; default: the cache.")] = None,
    gate: Annotated[bool, typer.Option("--gate", help="Train a gate on --text instead.")] = False,
    heads: Annotated[bool, typer.Option("--heads", help="Find roles of kv heads on --text instead.")] = False,
    text: Annotated[list[Path] | None, typer.Option(metavar="FILE", help="UTF-8 text, as often as needed.")] = None,
    device: Annotated[str, typer.Option(help="As model.device.")] = "auto",
    dtype: Annotated[str, typer.Option(help="As model.dtype.")] = "auto",
    attention: Annotated[str, typer.Option(help="As model.attention.")] = "auto",
    held_out: Annotated[bool, typer.Option(help="Measure recall on held-out questions: twice the time.")] = True,
    max_chars: Annotated[int | None, typer.Option(min=1, help="Shorten the exam: quicker and less certain.")] = None,
    max_free: Annotated[float, typer.Option(min=0, max=1, help="Most kv heads that stream or are pruned.")] = 0.5,
) -> None:
    """Find a model's retrieval heads, train its gate, or find what its kv heads are for: minutes on a CPU."""
    from pipeline import calibration
    from pipeline.screen import print_gate, print_head_map, print_profile

    if gate and heads:
        raise ConfigError("--gate, --heads: both given; allowed: one of them, or none for retrieval heads")
    if (gate or heads) != bool(text):
        raise ConfigError("--text: goes with --gate or --heads, which need it; without them it has no use")
    calibration.check_out(out)
    chosen = calibration.model_from(source=model, device=device, dtype=dtype, attention=attention)
    console, page = Console(stderr=True), Console()
    with console.status("calibrating") as status:
        say = status.update if console.is_terminal else console.print
        if gate:
            print_gate(page, *calibration.train_gate(chosen, out, texts=text or (), report=say))
        elif heads:
            print_head_map(page, *calibration.map_heads(chosen, out, texts=text or (), max_free=max_free, report=say))
        else:
            found = calibration.calibrate_model(chosen, out, held_out=held_out, max_chars=max_chars, report=say)
            print_profile(page, *found)


@app.command()
def evaluate(
    file: Annotated[Path, typer.Argument(metavar="EVAL.yaml", help="The evaluation file.")],
    settings: Settings = None,
    output: Annotated[str | None, typer.Option(metavar="DIR", help="Same as --set output.path=DIR.")] = None,
    title: Annotated[str, typer.Option(help="Heading of the page of tables.")] = "Results",
    pages_only: Annotated[bool, typer.Option("--pages-only", help="Try nothing: pages from what is known.")] = False,
) -> None:
    """Compare methods on tasks, lengths and budgets, or go on where it stopped."""
    from configs.load import load_evaluation

    evaluation = load_evaluation(file, [*(settings or ()), *_as_settings(output)])
    from pipeline.evaluation.pages import write_pages
    from pipeline.evaluation.runner import evaluate as run_evaluation

    with _stoppable() as stop:
        done = run_evaluation(evaluation, stop, tries=not pages_only)
    changes = [word for setting in settings or () for word in ("--set", setting)]
    for path in write_pages(evaluation, done.rows, title, shlex.join(["foveate", "evaluate", str(file), *changes])):
        print(path)
    left = f"{done.left:,} of {done.items:,} items are not finished; the same command goes on with them"
    if stop.is_set:
        raise Interrupted(f"stopped: {left}")
    if done.failures:
        raise IncompleteRun(f"{left}; {len(done.failures):,} failed, the first: {done.failures[0]}")
    if done.left:
        print(left, file=sys.stderr)


@app.command()
def ask(
    questions: Annotated[list[str], typer.Argument(metavar="QUESTION...", help="What to ask of every document.")],
    corpus: Annotated[list[str] | None, typer.Option(metavar="PATH", help="As corpus.path, or a text file.")] = None,
    store: Annotated[str | None, typer.Option(metavar="URL", help="Where what was read is kept.")] = None,
    model: Annotated[str | None, typer.Option(metavar="SOURCE", help="The model, as model.source names it.")] = None,
    config: Annotated[Path | None, typer.Option(metavar="JOB.yaml", help="A job file to start from.")] = None,
    settings: Settings = None,
    output: Annotated[str | None, typer.Option(metavar="DIR", help="Keep answers there, as a run does.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a line of JSON for each answer.")] = False,
    strict: Strict = False,
) -> None:
    """Ask documents that were read before; those that were not are read first, once."""
    from pipeline.ask import Request, asked
    from pipeline.ask_screen import print_asked, reply_json
    from pipeline.progress import shown_on

    request = Request(tuple(questions), tuple(corpus or ()), store, model, config, tuple(settings or ()))
    with _stoppable() as stop, ExitStack() as scope:
        with shown_on(Console(stderr=True), time.monotonic) as view:
            answers = scope.enter_context(asked(request, output, progress=view, stop=stop))
        if as_json:
            for reply in answers.replies():
                print(reply_json(reply))
        else:
            print_asked(Console(), answers)
    raise typer.Exit(3 if strict and answers.summary.totals.failed else 0)


@app.command()
def submit(
    job_file: JobFile,
    address: Annotated[str, typer.Option(metavar="URL", help="Ray's dashboard, such as http://head:8265.")],
    settings: Settings = None,
    cpus: Annotated[float, typer.Option(min=0, help="Ray CPUs for the driver, beside those of its workers.")] = 1.0,
) -> None:
    """Send a job to a Ray cluster, with this directory."""
    _load(job_file, settings or ())
    from pipeline.submit import submit as submit_job

    raise typer.Exit(submit_job(job_file, address, settings or (), entrypoint_num_cpus=cpus))


def _load(job_file: Path, settings: Sequence[str], pool: PoolKind | None = None) -> Job:
    """The job; ``pool`` replaces one of another kind, with as many workers."""
    from configs.load import load_job

    job = load_job(job_file, settings)
    if pool is None or job.pool.kind == pool:
        return job
    return load_job(job_file, [*settings, f"pool={{kind: {pool}, workers: {job.pool.workers}}}"])


def _as_settings(output: str | None) -> list[str]:
    return [] if output is None else [f"output.path={json.dumps(output, ensure_ascii=False)}"]


@contextmanager
def _stoppable() -> Iterator[StopRequest]:
    """A stop request that the first Ctrl-C or SIGTERM sets; the second ends the process there and then, which is
    safe, as is the SIGKILL of a Kubernetes or a Ray that waits no longer: a run survives it at any step."""
    from pipeline.driver import StopRequest

    stop = StopRequest()

    def interrupted(number: int, frame: FrameType | None) -> None:
        if not stop.is_watched:
            raise KeyboardInterrupt  # nothing is begun yet
        if stop.is_set:
            os._exit(130)
        stop.set()
        again = "; Ctrl-C again stops at once" if number == signal.SIGINT else ""
        os.write(2, f"\nStopping cleanly; what is committed stays{again}.\n".encode())

    before = {number: signal.signal(number, interrupted) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def main(arguments: Sequence[str] | None = None) -> None:
    """The console entry: runs a command and exits with its code. What is nobody's fault but ours is raised."""
    logs.speak()
    try:
        app(arguments)
    except (ConfigError, JobError, ModelError, StoreError) as error:
        _end(error, 2)
    except (TooManyFailures, IncompleteRun, WorkersUnavailable, OSError) as error:
        _end(error, 1)
    except Interrupted as error:
        _end(error, 130)
    except BackendUnavailable as error:
        _end(f"model.attention: {error}", 2)


def _end(error: Exception | str, code: int) -> NoReturn:
    """Exit with the message alone."""
    print(logs.as_line(f"foveate: {error}"), file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
