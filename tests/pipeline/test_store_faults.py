"""Whatever happens to a store, rows are those of a run without one, and its counters say what happened.

Every run here is a whole one, from corpus to answers, over a store that it shares with the runs before it.
"""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from cache_store.codec import decode
from cache_store.identity import BlockKey
from cache_store.store import StoreCounters
from cache_store.tiers import cooloff
from configs.schema import Job
from tests.cache_store.endpoint import Endpoint, endpoint
from tests.pipeline import drivers, struck
from tests.pipeline.faults import ALL, FAULTS, NONE, ONE, SOME, Ground, entries, told
from tests.pipeline.jobs import Bench
from tests.pipeline.struck import Moment

__all__ = ["endpoint"]

LENGTHS = [300, 0, 40]
"""Of documents: four chunks, asked two questions each."""
[ENTRIES] = ALL
Rows = list[dict[str, Any]]
KEPT = {"answer": {"over": "kept", "batch_size": 3}}


class Way(NamedTuple):
    """How a job answers, and the tiers that it has: ``place`` gives the last one's."""

    changes: Mapping[str, Any]
    in_front: tuple[Mapping[str, Any], ...]
    place: Callable[[Path], Mapping[str, Any]]

    def store(self, store: Path) -> dict[str, Any]:
        """A job's store in this directory."""
        return {"keep": True, "tiers": [*self.in_front, self.place(store)]}


def directory(store: Path) -> Mapping[str, Any]:
    return {"kind": "files", "path": str(store)}


def directory_behind(store: Path) -> Mapping[str, Any]:
    return {"kind": "files", "path": str(store), "pending_bytes": "1MiB"}


def bucket(store: Path) -> Mapping[str, Any]:
    return {"kind": "objects", "url": store.as_uri()}


WAYS = {
    "kept": Way(KEPT, (), directory),
    "text": Way({}, ({"kind": "memory"},), directory_behind),
    "bucket": Way(KEPT, (), bucket),
}


class Site:
    """Where runs are driven, each into an output of its own."""

    def __init__(self, bench: Bench) -> None:
        self._bench, self._names = bench, count()
        self._clean: dict[str, Rows] = {}
        self._full_buckets: set[str] = set()

    def job(self, changes: Mapping[str, Any]) -> tuple[str, Job]:
        """A job, and the name of its output."""
        name = f"out-{next(self._names)}"
        return name, self._bench.job(name, **changes)

    def drive(self, changes: Mapping[str, Any], midway: Callable[[], None] = lambda: None) -> StoreCounters:
        """Run a job in this process: its rows are those of a run without a store."""
        name, job = self.job(changes)
        counters = struck.drive(job, midway)
        assert self.rows(name) == self.clean(changes)
        return counters

    def rows(self, name: str) -> Rows:
        return self._bench.rows(name)

    def clean(self, changes: Mapping[str, Any]) -> Rows:
        """The rows of a run without a store."""
        storeless = {**changes, "store": {"tiers": []}}
        if (key := json.dumps(storeless)) not in self._clean:
            name, job = self.job(storeless)
            struck.drive(job)
            self._clean[key] = self.rows(name)
        return self._clean[key]

    def filled(self, way: str) -> Path:
        """A directory that a run filled; nobody else may write to it."""
        store = self._bench.root / f"full-{way}"
        if not store.exists():
            self.drive({**WAYS[way].changes, "store": WAYS[way].store(store)})
        assert_whole(store)
        return store

    def filled_bucket(self, url: str) -> Mapping[str, Any]:
        """The tier of a bucket that a run filled."""
        tier = {"kind": "objects", "url": url}
        if url not in self._full_buckets:
            self.drive({**KEPT, "store": {"keep": True, "tiers": [tier]}})
            self._full_buckets.add(url)
        return tier


class Far(NamedTuple):
    """A bucket behind an endpoint that can fail, filled by a run."""

    endpoint: Endpoint
    tier: Mapping[str, Any]


@pytest.fixture
def far(site: Site, s3_bucket: str, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> Far:
    # However slow this machine is, a run is over before a store that did not answer would be asked again.
    monkeypatch.setattr(cooloff, "FIRST_S", cooloff.LONGEST_S)
    return Far(endpoint, site.filled_bucket(f"{s3_bucket}/faults"))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Site:
    return Site(Bench(tmp_path_factory.mktemp("faults"), tiny_model, LENGTHS))


def assert_shows(counters: StoreCounters, shows: Mapping[str, range]) -> None:
    wrong = {name: number for name, number in told(counters).items() if number not in shows.get(name, NONE)}
    assert not wrong, f"expected {dict(shows)}"


def assert_whole(store: Path) -> None:
    """Every entry is there, and each of its bytes is what was written."""
    assert len(entries(store)) == ENTRIES
    for path in entries(store):
        decode(path.read_bytes(), BlockKey.from_hex(path.stem))


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("way", WAYS)
def test_whatever_happens_to_a_directory_rows_stay_and_counters_tell(
    site: Site, way: str, fault: str, tmp_path: Path
) -> None:
    plant, shows, mends = FAULTS[fault]
    store = tmp_path / "store"
    shutil.copytree(site.filled(way), store)
    changes = {**WAYS[way].changes, "store": WAYS[way].store(store)}
    with ExitStack() as undo:
        ground = Ground(store, undo)
        plant(ground)
        assert_shows(site.drive(changes, ground.midway), shows)
        aside = {path.name[:64]: path.read_bytes() for path in (store / "quarantine").glob("*.*")}
        assert aside == ground.set_aside
        assert {path: path.read_bytes() for path in ground.untouched} == ground.untouched
    assert_shows(site.drive(changes), {"misses": NONE if mends else range(ENTRIES + 1)})
    assert len(set(entries(store)) - ground.untouched.keys()) == ENTRIES


def falls_silent(endpoint: Endpoint) -> None:
    """The kernel goes on to accept connections; nobody answers them."""
    endpoint.shutdown()


def dies(endpoint: Endpoint) -> None:
    """The port is closed."""
    endpoint.shutdown()
    endpoint.server_close()


def is_overloaded(endpoint: Endpoint) -> None:
    endpoint.status = 503


@pytest.mark.parametrize("outage", [falls_silent, dies, is_overloaded])
@pytest.mark.parametrize("when", ["before", "midway"])
@pytest.mark.parametrize("pending", [{"pending_bytes": 0}, {}], ids=["waited for", "behind"])
def test_an_object_store_that_goes_away_is_asked_once_more_and_the_run_goes_on(
    site: Site, outage: Callable[[Endpoint], None], when: str, pending: dict[str, int], far: Far
) -> None:
    changes = {**KEPT, "store": {"keep": True, "tiers": [{**far.tier, **pending, "timeout_seconds": 0.3}]}}
    if when == "before":
        outage(far.endpoint)
        counters = site.drive(changes)
    else:
        counters = site.drive(changes, lambda: outage(far.endpoint))
    assert_shows(counters, {"misses": SOME, "read_errors": ONE, "skipped": SOME})


LITTLE_IS_KEPT = {
    "read": {"chunk_tokens": 512},
    "keep": {"block_tokens": 1, "budget": {"kind": "uniform", "tokens": 96}},
}
"""Of blocks that small, the scores of the longer document are longer than the limit below."""


@pytest.mark.parametrize(("changes", "fit"), [(KEPT, 0), (LITTLE_IS_KEPT, 2)], ids=["kept", "text"])
def test_a_full_disk_is_counted_and_nothing_half_written_stays(
    site: Site, changes: dict[str, Any], fit: int, tmp_path: Path
) -> None:
    """Full for the store, most of whose files are longer than any of the run's: the kernel lets none grow beyond."""
    store, report = tmp_path / "store", tmp_path / "report.json"
    stored = {**changes, "store": {"keep": True, "tiers": [directory(store)]}}
    name, job = site.job(stored)
    assert drivers.finish(drivers.start(struck.drive_with_small_files, job, 8000, report)) == 0
    assert site.rows(name) == site.clean(stored)
    assert_shows(StoreCounters(**json.loads(report.read_text())), {"misses": SOME, "write_errors": SOME})
    assert len(entries(store)) == fit and not list((store / "staging").iterdir())
    assert_shows(site.drive(stored), {"misses": SOME})


MOMENTS = {
    "the store is being opened": (directory, Moment("os.utime", "staging/*", 1, whole=0)),
    "an entry is staged": (directory_behind, Moment("os.utime", "staging/*", 2, whole=0)),
    "an entry has no name yet": (directory, Moment("os.rename", "staging/*", 1, whole=0)),
    "its name is not durable yet": (directory_behind, Moment("open", "??/??", 1, whole=1)),
    "one of a chunk's entries is missing": (directory, Moment("os.rename", "staging/*", 4, whole=3)),
    "the last one is missing": (directory_behind, Moment("os.rename", "staging/*", ENTRIES, whole=ENTRIES - 1)),
}


@pytest.mark.parametrize("when", MOMENTS)
def test_kill_9_while_entries_are_written_and_the_same_command_again(site: Site, when: str, tmp_path: Path) -> None:
    place, moment = MOMENTS[when]
    store = tmp_path / "store"
    changes = {**KEPT, "store": {"keep": True, "tiers": [place(store)]}}
    name, job = site.job(changes)
    assert drivers.finish(drivers.start(struck.drive_and_die, job, store, moment)) == -signal.SIGKILL
    assert len(entries(store)) == moment.whole
    missing = ENTRIES - moment.whole
    assert_shows(struck.drive(job), {"misses": range(missing, missing + 1)})
    assert site.rows(name) == site.clean(changes)
    assert_whole(store)


def test_a_kill_in_the_middle_of_a_write_and_the_same_command_again(site: Site, tmp_path: Path) -> None:
    store = tmp_path / "store"
    changes = {**KEPT, "store": {"keep": True, "tiers": [directory(store)]}}
    name, job = site.job(changes)
    assert drivers.finish(drivers.start(struck.drive_and_die_in_a_write, job, 8000)) == -signal.SIGXFSZ
    [half] = (store / "staging").iterdir()
    assert half.stat().st_size == 8000 and not entries(store)
    assert_shows(struck.drive(job), {"misses": ALL})
    assert site.rows(name) == site.clean(changes)
    assert_whole(store)


@pytest.mark.parametrize("way", WAYS)
def test_two_runs_at_once_over_one_store(site: Site, way: str, tmp_path: Path) -> None:
    store = tmp_path / "store"
    changes = {**WAYS[way].changes, "store": WAYS[way].store(store)}
    barrier = drivers.SERVER.Barrier(2)
    jobs = [site.job(changes) for _ in range(2)]
    processes = [drivers.start(drivers.drive_together, job, barrier) for _, job in jobs]
    assert [drivers.finish(process) for process in processes] == [0, 0]
    assert [site.rows(name) for name, _ in jobs] == [site.clean(changes)] * 2
    assert_whole(store)
    assert_shows(site.drive(changes), {})
