"""``foveate store``: what its commands take. Their work is in ``store`` and ``store_upkeep``, their words in
``store_screen``.

Invariants: what changes a store says so by its name or its option; torch is imported by the commands, not by this
module.
"""

from __future__ import annotations

import json
import os
import re
import time
from typing import Annotated

import typer
from rich.console import Console

from configs.errors import ConfigError

store_app = typer.Typer(
    help="Look into a store of what was read, verify it, clear it.", no_args_is_help=True, rich_markup_mode=None
)

Place = Annotated[str, typer.Argument(metavar="STORE", help="A store's directory or URL.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, sizes in bytes.")]

_UNITS = {"s": 1, "min": 60, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_AGE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(s|min|m|h|d|w)\s*")


@store_app.command()
def ls(
    store: Place,
    model: Annotated[str, typer.Option(metavar="DIGITS", help="Only of weights whose fingerprint begins so.")] = "",
    limit: Annotated[int, typer.Option(min=1, help="Show at most so many.")] = 100,
    as_json: AsJson = False,
) -> None:
    """List entries, newest use first."""
    from cache_store.archive import open_archive
    from pipeline.store import list_entries
    from pipeline.store_screen import listing_json, listing_lines

    listing = list_entries(open_archive(store), model, limit)
    _print([json.dumps(listing_json(listing), indent=2)] if as_json else listing_lines(listing, time.time()))


@store_app.command()
def stats(store: Place, as_json: AsJson = False) -> None:
    """Say what entries of each kind weigh."""
    from cache_store.archive import open_archive
    from pipeline.store import weigh
    from pipeline.store_screen import weighing_json, weighing_lines

    with Console(stderr=True).status("reading headers") as status:
        weighing = weigh(
            open_archive(store), lambda done, total: status.update(f"reading headers: {done:,} of {total:,}")
        )
    _print([json.dumps(weighing_json(weighing), indent=2)] if as_json else weighing_lines(weighing))


@store_app.command()
def verify(
    store: Place,
    jobs: Annotated[int, typer.Option(min=1, help="Entries read at once.")] = min(4, os.cpu_count() or 1),
    quarantine: Annotated[bool, typer.Option("--quarantine", help="Move what is damaged to quarantine/.")] = False,
) -> None:
    """Read every entry whole; exit with 1 if one is damaged or cannot be read."""
    from cache_store.archive import open_archive
    from pipeline import store_upkeep
    from pipeline.quantities import count
    from pipeline.store_screen import verification_lines

    archive = open_archive(store)
    done = bad = 0
    with Console(stderr=True).status("reading") as status:

        def heard(finding: store_upkeep.Finding, total: int) -> None:
            nonlocal done, bad
            done += 1
            bad += finding.verdict in store_upkeep.BAD
            status.update(f"read {done:,} of {total:,}; {bad:,} bad")

        verification = store_upkeep.verify(archive, jobs, heard)
    _print(verification_lines(verification))
    if quarantine:
        _print([f"moved {count(store_upkeep.set_aside(archive, verification.bad), 'file')} to quarantine/"])
    raise typer.Exit(1 if verification.bad else 0)


@store_app.command()
def gc(
    store: Place,
    max_bytes: Annotated[str | None, typer.Option(metavar="SIZE", help="Keep entries up to this, as 5GiB.")] = None,
    older_than: Annotated[str | None, typer.Option(metavar="AGE", help="Not used for so long, as 30d.")] = None,
    quarantine: Annotated[bool, typer.Option("--quarantine", help="Quarantined files, dead writers' too.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go; remove nothing.")] = False,
) -> None:
    """Remove what the options name and nothing else, least recently used first."""
    from cache_store.archive import open_archive
    from pipeline.store_screen import cleared_lines
    from pipeline.store_upkeep import Wish, named_by

    wish = Wish(_size(max_bytes), _age_s(older_than), quarantine)
    if wish.is_empty:
        raise ConfigError("gc: nothing is named; allowed: --max-bytes SIZE, --older-than AGE, --quarantine, or several")
    archive = open_archive(store)
    inventory, now_s = archive.inventory(), time.time()
    files = named_by(wish, inventory, now_s)
    if not dry_run:
        archive.remove(files)
    _print(cleared_lines(files, inventory, not dry_run, now_s))


def _size(text: str | None) -> int | None:
    if text is None:
        return None
    from pydantic import TypeAdapter, ValidationError

    from configs.schema import Bytes

    try:
        return int(TypeAdapter(Bytes).validate_python(text))
    except ValidationError as error:
        raise ConfigError(f"--max-bytes: {text!r}; allowed: bytes, or a size such as 512MiB or 5GiB") from error


def _age_s(text: str | None) -> float | None:
    if text is None:
        return None
    match = _AGE.fullmatch(text)
    if match is None:
        raise ConfigError(f"--older-than: {text!r}; allowed: a number with {', '.join(_UNITS)}, such as 12h or 30d")
    return float(match[1]) * _UNITS[match[2]]


def _print(lines: list[str]) -> None:
    for line in lines:
        print(line)
