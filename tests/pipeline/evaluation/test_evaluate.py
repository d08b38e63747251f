"""Laws of the evaluation: what it measures is the product, sharing changes nothing, it goes on where it stopped."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from configs.evaluation import Evaluation
from configs.load import load_evaluation
from pipeline import driver
from pipeline.directory import existing_directory
from pipeline.evaluation import runner
from pipeline.evaluation.pages import write_pages
from pipeline.evaluation.results import Result
from pipeline.evaluation.runner import load_bench
from pipeline.evaluation.tasks.parquet import write_items
from pipeline.evaluation.tasks.sizer import Sizer
from pipeline.evaluation.tasks.table import make_items
from pipeline.evaluation.trial import Trial
from pipeline.status import read_answers
from workers.encoder import ChunkReading, Encoder
from workers.engine import Engine
from workers.messages import Answered, Ask
from workers.selection.profile import Profile
from workers.source import locate

METHODS: list[dict[str, Any]] = [
    {"name": "default"},
    {"name": "pairs", "answer": {"over": "kept"}},
    {"name": "snapkv", "keep": {"scorer": {"kind": "window", "window_tokens": 8}}, "answer": {"over": "kept"}},
    {"name": "h2o", "keep": {"scorer": {"kind": "accumulated"}, "question": "unknown"}, "answer": {"over": "kept"}},
    {"name": "narrow", "answer": {"over": "narrow", "narrow_budgets": 2}},
    {"name": "two-round", "answer": {"over": "two_round"}},
    {"name": "carried", "read": {"context": "carried"}},
    {"name": "sliding", "read": {"pattern": {"kind": "sliding_window", "block_tokens": 32, "window_tokens": 32}}},
    {"name": "dense", "baseline": "dense"},
    {"name": "truncate", "baseline": "truncate"},
    {"name": "bm25", "baseline": "bm25"},
    {"name": "map-reduce", "baseline": "map_reduce"},
    {"name": "index", "keep": {"scorer": {"kind": "index"}, "question": "unknown"}},
]


@pytest.fixture
def settings(tmp_path: Path, tiny_model: Path) -> dict[str, Any]:
    """An evaluation of two items of two tasks, as its file says it."""
    profile = tmp_path / "profile.json"
    weights = locate(str(tiny_model)).weights
    Profile(weights, ((1, 0), (2, 1)), index=Profile(weights, ((1, 2),), "last")).save(profile)
    model = {"source": str(tiny_model), "profile": str(profile), "attention": "cpu", "device": "cpu"}
    return {
        "base": {
            "model": model,
            "read": {"chunk_tokens": 256},
            "keep": {"block_tokens": 16, "widen_tokens": 4},
        },
        "tasks": [{"kind": "single_needle"}, {"kind": "multi_key", "keys": 2}],
        "lengths": [1000],
        "items": 2,
        "budgets": [128],
        "methods": METHODS,
        "output": {"path": str(tmp_path / "out")},
    }


def load(settings: dict[str, Any], **changes: Any) -> Evaluation:
    path = Path(settings["output"]["path"]).with_suffix(".yaml")
    path.write_text(yaml.safe_dump(settings | changes))
    return load_evaluation(path)


def evaluate(evaluation: Evaluation) -> list[Result]:
    """All rows of an evaluation that runs to its end."""
    done = runner.evaluate(evaluation)
    assert not done.left and not done.failures
    return list(done.rows)


def untimed(rows: list[Result]) -> list[Result]:
    return [replace(row, seconds_read=None, seconds_answer=None, settings="") for row in rows]


def test_sharing_a_reading_changes_no_result(settings: dict[str, Any], tmp_path: Path) -> None:
    together = evaluate(load(settings, fidelity_items=1))
    output = {"path": str(tmp_path / "alone")}
    alone = evaluate(load(settings, fidelity_items=1, share_reading=False, output=output))
    assert untimed(together) == untimed(alone)
    assert not any(row.error for row in together)
    assert all(row.seconds_read is not None and row.seconds_answer is not None for row in alone)
    assert {row.method for row in together} == {method["name"] for method in METHODS}


def test_a_chunk_is_read_once_whether_the_question_is_known_or_not(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As deep as the deepest of its scorers looks: the same rows come of an index and a probe as of each alone."""
    known, unknown = METHODS[0], METHODS[-1]
    chunks: list[Sequence[int]] = []
    read = Encoder.read

    def noted(encoder: Encoder, token_ids: Sequence[int], *rest: Any) -> ChunkReading:
        chunks.append(token_ids)
        return read(encoder, token_ids, *rest)

    monkeypatch.setattr(Encoder, "read", noted)
    rows = evaluate(load(settings, methods=[known, unknown], items=1))
    together, chunks = chunks, []
    alone = []
    for method in (known, unknown):
        output = {"path": str(Path(settings["output"]["path"]) / method["name"])}
        alone += evaluate(load(settings, methods=[method], items=1, output=output))
    assert len(together) * 2 == len(chunks)
    assert sorted(untimed(rows), key=str) == sorted(untimed(alone), key=str)


def test_who_keeps_the_same_text_is_asked_once(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    twins = [{"name": "default"}, {"name": "twin"}]
    asked: list[int] = []
    answer = Engine.answer

    def noted(engine: Engine, task: Ask) -> Answered:
        asked.append(len(task.queries))
        return answer(engine, task)

    monkeypatch.setattr(Engine, "answer", noted)
    rows = evaluate(load(settings, methods=[*twins, METHODS[9]], items=1))
    assert asked == [2] * len(settings["tasks"])
    by_name = {
        name: [replace(row, method="") for row in untimed(rows) if row.method == name] for name in ("default", "twin")
    }
    assert by_name["default"] == by_name["twin"] != []


@pytest.mark.parametrize("name", [m["name"] for m in METHODS if "baseline" not in m])
def test_what_is_measured_is_the_product(settings: dict[str, Any], tmp_path: Path, name: str) -> None:
    """The evaluation and ``foveate run`` answer the same items alike, and keep as much."""
    [method] = [method for method in METHODS if method["name"] == name]
    tasks = [task | {"instruction": "Find it."} for task in settings["tasks"]]
    evaluation = load(settings, methods=[method], tasks=tasks)
    measured = {row.item: row for row in evaluate(evaluation)}
    items = make_items(evaluation.tasks, Sizer.of(evaluation.base), evaluation.counts, evaluation.seed)
    write_items(tmp_path / "items.parquet", items)
    job = evaluation.job(evaluation.methods[0], 128, str(tmp_path / "items.parquet"), instruction="Find it.")
    job = job.model_copy(update={"output": job.output.model_copy(update={"path": str(tmp_path / "run")})})
    driver.run(job)
    for row in read_answers(existing_directory(str(tmp_path / "run"))).to_pylist():
        assert row["answer"] == measured[row["id"]].answer.strip()
        assert row["kept_tokens"] == round(measured[row["id"]].kept_tokens or 0)
        assert row["relevance_kept"] == pytest.approx(measured[row["id"]].relevance_kept)


def test_a_method_that_cannot_run_is_a_row_with_its_reason(settings: dict[str, Any], monkeypatch: Any) -> None:
    monkeypatch.setenv("FOVEATE_CACHE", str(Path(settings["output"]["path"]).parent / "cache"))
    gate = {"name": "gate", "keep": {"scorer": {"kind": "gate"}, "question": "unknown"}}
    long = {"name": "too-long", "read": {"chunk_tokens": 4096}}
    rows = evaluate(load(settings, methods=[METHODS[0], gate, long], items=1))
    reasons = {row.method: row.error for row in rows}
    assert reasons["default"] is None
    assert "keep.scorer.file" in str(reasons["gate"]) and "calibrate --gate" in str(reasons["gate"])
    assert "read.chunk_tokens" in str(reasons["too-long"])
    assert all(row.score == 0 for row in rows if row.error)


def test_methods_may_be_tried_on_fewer_items_and_other_lengths(settings: dict[str, Any]) -> None:
    bounds = {"dense": {"max_items": 1}, "short": {"max_length": 900}, "long": {"min_length": 1000}}
    methods = [METHODS[9], *({"name": name, "baseline": "dense"} | bound for name, bound in bounds.items())]
    rows = evaluate(load(settings, methods=methods, lengths=[600, 1000]))
    counts = {(name, n): sum(r.method == name and r.length == n for r in rows) for name in bounds for n in (600, 1000)}
    assert counts == {
        ("dense", 600): 2, ("dense", 1000): 2, ("short", 600): 4, ("short", 1000): 0,
        ("long", 600): 0, ("long", 1000): 4,
    }  # fmt: skip


def test_a_budget_beyond_the_window_is_refused_and_one_beyond_the_document_keeps_it(settings: dict[str, Any]) -> None:
    """The window is asked about no budget where a method has none."""
    base = settings["base"] | {"keep": {"block_tokens": 16, "budget": {"kind": "uniform", "tokens": 9000}}}
    methods = [METHODS[0], METHODS[8], METHODS[9], METHODS[10]]
    rows = evaluate(load(settings, base=base, methods=methods, items=1, budgets=[1200, 3000]))
    reasons = {(row.method, row.budget): row.error for row in rows if row.task == "single_needle"}
    assert [key for key, reason in reasons.items() if reason] == [(m, 3000) for m in ("default", "truncate", "bm25")]
    assert all("window is 2048" in reason for reason in reasons.values() if reason)
    assert {row.recall for row in rows if not row.error} == {1.0}


def test_baselines_read_what_they_say(settings: dict[str, Any]) -> None:
    methods = [*METHODS[:10], METHODS[10] | {"keep": {"block_tokens": 64}}, METHODS[11]]
    evaluation = load(settings, methods=methods, budgets=[320])
    bench = load_bench(evaluation, None)
    items = make_items(evaluation.tasks, Sizer.of(evaluation.base), evaluation.counts, evaluation.seed)
    item = next(iter(items))
    names = (("dense", None), ("truncate", 320), ("bm25", 320), ("map-reduce", None))
    rows = {row.method: row for row in bench.work(Trial(item, names)).results}
    assert rows["dense"].recall == 1.0 and rows["dense"].kept_tokens == len(item.context.encode())
    assert rows["truncate"].kept_tokens == 320
    assert 0 < (rows["bm25"].kept_tokens or 0) <= 320
    assert rows["bm25"].recall == 1.0, "the needle has the question's own words"
    assert rows["map-reduce"].kept_tokens is None is rows["map-reduce"].recall, "answers are no part of the document"
    assert all(row.error is None and row.machine for row in rows.values())


def test_dense_agrees_with_itself(settings: dict[str, Any]) -> None:
    rows = evaluate(load(settings, methods=[METHODS[8], METHODS[9]], fidelity_items=2, items=2))
    for row in rows:
        assert row.kl is not None and row.top1 is not None
        if row.method == "dense":
            assert row.kl == pytest.approx(0, abs=1e-6) and row.top1 == 1.0
    assert any((row.kl or 0) > 1e-6 for row in rows if row.method == "truncate")


def test_a_task_may_have_words_of_its_own_before_the_document(settings: dict[str, Any]) -> None:
    """The same item told differently is another item: sized anew, and measured anew."""
    told = [{"kind": "single_needle", "instruction": text} for text in ("Find it.", "Find the number in this text.")]
    rows = [evaluate(load(settings, tasks=[task], methods=METHODS[:1], items=1)) for task in told]
    [short], [long] = rows
    assert short.settings != long.settings and short.relevance_kept != long.relevance_kept
    evaluation = load(settings, tasks=[told[0]])
    [item, _] = make_items(evaluation.tasks, Sizer.of(evaluation.base), evaluation.counts, evaluation.seed)
    assert item.instruction == "Find it."


def test_pages_are_written_for_people(settings: dict[str, Any]) -> None:
    evaluation = load(settings, methods=[METHODS[0], METHODS[9]])
    rows = evaluate(evaluation)
    written = write_pages(evaluation, rows, "A title", "foveate evaluate some.yaml --set items=2")
    assert {path.name for path in written} >= {"results.parquet", "results.md", "accuracy-by-method.svg"}
    page = (Path(settings["output"]["path"]) / "results.md").read_text()
    assert page.startswith("# A title\n\nMade by `foveate evaluate some.yaml --set items=2`; do not edit.")
    assert "![accuracy by method](accuracy-by-method.svg)" in page
    for fact in (evaluation.base.model.source, "window 2,048", "2 at 1,000 tokens", "4 items in all; seed 0", "torch "):
        assert fact in page.split("## Scores")[0]
    assert "| `truncate` | `baseline: truncate` |" in page and "`read: {chunk_tokens: 256}" in page


def test_no_page_is_written_before_the_first_method_has_a_row(settings: dict[str, Any]) -> None:
    assert write_pages(load(settings), (), "Results", "foveate evaluate") == []


@pytest.mark.cluster
def test_a_ray_pool_finds_the_same(settings: dict[str, Any], tmp_path: Path) -> None:
    few = [METHODS[0], METHODS[1]]
    local = evaluate(load(settings, methods=few))
    pool = {"kind": "ray", "workers": 1, "address": "local"}
    there = evaluate(load(settings, methods=few, pool=pool, output={"path": str(tmp_path / "ray")}))
    assert untimed(local) == untimed(there)


def test_trials_are_written_whole(settings: dict[str, Any], tmp_path: Path) -> None:
    evaluate(load(settings, methods=[METHODS[9]], items=1))
    for path in (tmp_path / "out" / "trials").iterdir():
        assert path.suffix == ".json"
        assert {row["method"] for row in json.loads(path.read_text())} == {"truncate"}
