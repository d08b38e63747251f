"""Laws of what an evaluation remembers: nothing twice, nothing stale, nothing lost."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from configs.evaluation import Evaluation
from configs.load import load_evaluation
from pipeline.errors import DirectoryError
from pipeline.evaluation import runner
from pipeline.evaluation.checkpoint import Checkpoint, file_name
from pipeline.evaluation.results import Result, read_results
from pipeline.evaluation.runner import MAX_LOSSES, Evaluated
from pipeline.evaluation.trial import Bench, Trial, Tried
from pipeline.loop import StopRequest
from pipeline.pool import Finished, LocalPool, WorkerLost
from workers.selection.profile import Profile
from workers.source import locate

DEFAULT: dict[str, Any] = {"name": "default"}
TRUNCATE = {"name": "truncate", "baseline": "truncate"}


@pytest.fixture
def settings(tmp_path: Path, tiny_model: Path) -> dict[str, Any]:
    """An evaluation of two items, as its file says it."""
    save_profile(tmp_path / "profile.json", tiny_model, ((1, 0), (2, 1)))
    model = {"source": str(tiny_model), "profile": str(tmp_path / "profile.json"), "attention": "cpu", "device": "cpu"}
    return {
        "base": {"model": model, "read": {"chunk_tokens": 256}, "keep": {"block_tokens": 16}},
        "tasks": [{"kind": "single_needle"}],
        "lengths": [600],
        "items": 2,
        "budgets": [128],
        "methods": [DEFAULT, TRUNCATE],
        "output": {"path": str(tmp_path / "out")},
    }


def save_profile(path: Path, model: Path, heads: tuple[tuple[int, int], ...]) -> None:
    Profile(locate(str(model)).weights, heads).save(path)


def load(settings: dict[str, Any], **changes: Any) -> Evaluation:
    path = Path(settings["output"]["path"]).with_suffix(".yaml")
    path.write_text(yaml.safe_dump(settings | changes))
    return load_evaluation(path)


class Tries:
    """What was really tried: (item, methods) of every trial."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: list[tuple[str, tuple[str, ...]]] = []
        work = Bench.work

        def counting(bench: Bench, trial: Trial) -> Tried:
            self.seen.append((trial.item.id, tuple(name for name, _ in trial.contenders)))
            return work(bench, trial)

        monkeypatch.setattr(Bench, "work", counting)

    def of(self, evaluation: Evaluation, *, stop: StopRequest | None = None, tries: bool = True) -> Evaluated:
        self.seen.clear()
        return runner.evaluate(evaluation, stop, tries=tries)

    @property
    def methods(self) -> set[str]:
        return {name for _, names in self.seen for name in names}


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> Tries:
    return Tries(monkeypatch)


def test_the_same_command_tries_nothing_again(settings: dict[str, Any], tried: Tries) -> None:
    first = tried.of(load(settings))
    assert len(tried.seen) == 2 and first.left == 0 and len(first.rows) == 4
    assert tried.of(load(settings)) == first and not tried.seen


@pytest.mark.parametrize(
    "changes",
    [
        {"pool": {"kind": "local", "workers": 2}},
        {"items": 1},
        {"budgets": [128, 64]},
        {"tasks": [{"kind": "kv_pairs"}]},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_what_decides_no_row_makes_no_row_stale(settings: dict[str, Any], tried: Tries, changes: Any) -> None:
    """Other workers, fewer items, more budgets, other tasks in between: what was tried stands."""
    first = tried.of(load(settings))
    tried.of(load(settings, **changes))
    assert all(item not in {row.item for row in first.rows} or "budgets" in changes for item, _ in tried.seen)
    assert tried.of(load(settings)).rows == first.rows and not tried.seen


def test_a_checkpoint_may_be_moved(settings: dict[str, Any], tried: Tries, tmp_path: Path) -> None:
    first = tried.of(load(settings))
    (tmp_path / "out").rename(tmp_path / "elsewhere")
    assert tried.of(load(settings, output={"path": str(tmp_path / "elsewhere")})) == first and not tried.seen


@pytest.mark.parametrize("change", [{"keep": {"widen_tokens": 0}}, {"answer": {"over": "kept"}}, {"baseline": "bm25"}])
def test_a_changed_method_is_tried_anew_and_no_other(settings: dict[str, Any], tried: Tries, change: Any) -> None:
    first = tried.of(load(settings, methods=[TRUNCATE, DEFAULT]))
    second = tried.of(load(settings, methods=[TRUNCATE, DEFAULT | change]))
    assert tried.methods == {"default"}
    assert {row for row in first.rows if row.method == "truncate"} < set(second.rows)
    assert tried.of(load(settings, methods=[TRUNCATE, DEFAULT])) == first and not tried.seen, "and back for nothing"


def test_other_heads_make_the_methods_stale_that_use_them(
    settings: dict[str, Any], tried: Tries, tiny_model: Path, tmp_path: Path
) -> None:
    tried.of(load(settings))
    save_profile(tmp_path / "profile.json", tiny_model, ((0, 0),))
    tried.of(load(settings))
    assert tried.methods == {"default"}


def test_another_prompt_or_dtype_makes_everything_stale(settings: dict[str, Any], tried: Tries) -> None:
    base, model = settings["base"], settings["base"]["model"]
    changes: list[dict[str, Any]] = [{"model": model | {"dtype": dtype}} for dtype in ("float32", "bfloat16")]
    for change in (*changes, changes[1] | {"prompt": {"instruction": "Read."}}):
        tried.of(load(settings, base=base | change))
        assert tried.methods == {"default", "truncate"}


def test_a_refusal_stands_until_its_reason_is_gone(
    settings: dict[str, Any], tried: Tries, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FOVEATE_CACHE", str(tmp_path / "cache"))
    gate = {"name": "gate", "keep": {"scorer": {"kind": "gate"}, "question": "unknown"}, "answer": {"over": "kept"}}
    evaluation = load(settings, methods=[DEFAULT, gate])
    refused = [row for row in tried.of(evaluation).rows if row.error]
    assert {row.method for row in refused} == {"gate"}
    assert set(refused) < set(tried.of(evaluation).rows) and not tried.seen
    (tmp_path / "cache" / "gates").mkdir(parents=True)
    (tmp_path / "cache" / "gates" / f"{locate(settings['base']['model']['source']).weights[:16]}.safetensors").touch()
    tried.of(evaluation)
    assert tried.methods == {"gate"}, "another reason now"


def test_results_alone_are_a_checkpoint_and_lose_nothing(
    settings: dict[str, Any], tried: Tries, tmp_path: Path
) -> None:
    """Rows that another evaluation in the directory does not ask for leave its tables, and stay in trials."""
    first = tried.of(load(settings))
    for path in (tmp_path / "out" / "trials").iterdir():
        path.unlink()
    assert tried.of(load(settings)) == first and not tried.seen
    assert not list((tmp_path / "out" / "trials").iterdir())
    other = tried.of(load(settings, tasks=[{"kind": "kv_pairs"}]))
    assert {row.task for row in read_results(tmp_path / "out" / "results.parquet")} == {"kv_pairs"}
    assert {row.task for row in other.rows} == {"kv_pairs"}
    assert tried.of(load(settings)) == first and not tried.seen


def test_rows_of_an_older_version_lack_a_column_and_are_read(settings: dict[str, Any], tried: Tries) -> None:
    tried.of(load(settings))
    for path in (Path(settings["output"]["path"]) / "trials").iterdir():
        rows = json.loads(path.read_text())
        path.write_text(json.dumps([{name: row[name] for name in row if name != "machine"} for row in rows]))
    (Path(settings["output"]["path"]) / "results.parquet").unlink()
    assert {row.machine for row in tried.of(load(settings)).rows} == {""} and not tried.seen


def test_pages_alone_try_nothing(settings: dict[str, Any], tried: Tries) -> None:
    nothing = tried.of(load(settings), tries=False)
    assert (nothing.rows, nothing.left, tried.seen) == ((), 2, [])
    tried.of(load(settings, items=1))
    half = tried.of(load(settings), tries=False)
    assert (len(half.rows), half.left, half.items, tried.seen) == (2, 1, 2, [])


def test_a_stop_ends_between_trials_and_loses_none(
    settings: dict[str, Any], tried: Tries, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop = StopRequest()
    work = Bench.work

    def working(bench: Bench, trial: Trial) -> Tried:
        stop.set()
        return work(bench, trial)

    monkeypatch.setattr(Bench, "work", working)
    stopped = tried.of(load(settings, items=4), stop=stop)
    assert (len(tried.seen), len(stopped.rows), stopped.left, stopped.failures) == (1, 2, 3, ())
    assert len(tried.of(load(settings, items=4)).rows) == 8 and len(tried.seen) == 3


def test_an_item_that_fails_is_named_and_the_others_stay(
    settings: dict[str, Any], tried: Tries, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = Bench.work

    def failing(bench: Bench, trial: Trial) -> Tried:
        if trial.item.id.endswith("000"):
            raise MemoryError("no room")
        return work(bench, trial)

    with monkeypatch.context() as patched:
        patched.setattr(Bench, "work", failing)
        done = tried.of(load(settings))
    assert done.failures == ("single_needle-600-000: OutOfMemoryError: no room",)
    assert done.left == 1 and {row.item for row in done.rows} == {"single_needle-600-001"}
    assert tried.of(load(settings)).left == 0 and len(tried.seen) == 1


class Losing(LocalPool[Trial, Tried]):
    """Loses the worker of the first trial it runs ``times`` times, and waiting ones for ever before that."""

    times = 0
    started = True

    def wait(self, timeout_s: float) -> list[Finished[Tried]]:
        finished = super().wait(timeout_s)
        for index, each in enumerate(finished):
            if each.task_id == 0 and Losing.times > 0:
                Losing.times -= 1
                finished[index] = Finished(0, WorkerLost(self.started))
        return finished


@pytest.mark.parametrize(
    ("times", "started", "left"), [(MAX_LOSSES - 1, True, 0), (MAX_LOSSES, True, 1), (MAX_LOSSES + 2, False, 0)]
)
def test_a_lost_worker_costs_a_try_and_an_item_that_kills_three_is_left(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch, times: int, started: bool, left: int
) -> None:
    monkeypatch.setattr(runner, "LocalPool", Losing)
    monkeypatch.setattr(Losing, "times", times)
    monkeypatch.setattr(Losing, "started", started)
    done = runner.evaluate(load(settings, methods=[TRUNCATE]))
    assert (done.left, len(done.failures)) == (left, left)
    assert all("3 workers were lost" in failure for failure in done.failures)


@pytest.mark.parametrize("place", ["s3://bucket/there", "a-file", "a-file/below", "/proc/nowhere"])
def test_a_directory_that_cannot_be_used_is_refused_at_once(place: str, tmp_path: Path) -> None:
    (tmp_path / "a-file").write_text("x")
    path = place if place.startswith(("s3", "/")) else str(tmp_path / place)
    with pytest.raises(DirectoryError, match=f"output.path: {path}: "):
        Checkpoint(path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["a-file"]


@pytest.mark.parametrize("text", ["", "{", "[1]", '[{"task": "x"}]'])
def test_a_file_of_something_else_is_named(tmp_path: Path, text: str) -> None:
    checkpoint = Checkpoint(str(tmp_path))
    (tmp_path / "trials" / "x.json").write_text(text)
    with pytest.raises(DirectoryError, match=r"x\.json"):
        list(checkpoint.rows())


@pytest.mark.parametrize("items", [["a/b", "a:b", "../up", ".", "a b"], ["x" * 400, "x" * 401], ["café", "cafe"]])
def test_any_id_is_a_file_of_its_own(tmp_path: Path, items: Sequence[str]) -> None:
    checkpoint = Checkpoint(str(tmp_path))
    rows = [Result("task", 64, item, "m", None, "said", 1.0) for item in items]
    for row in rows:
        checkpoint.add(row.item, [row])
    assert len(list((tmp_path / "trials").iterdir())) == len(items) and len(list(tmp_path.iterdir())) == 1
    assert sorted(checkpoint.rows(), key=lambda row: items.index(row.item)) == rows
    assert file_name("single_needle-8192-003") == "single_needle-8192-003"
