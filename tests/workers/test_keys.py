"""The law of names: whatever decides what an entry holds is part of its name, each setting of each method alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest

from cache_store.store import TieredStore
from cache_store.tiers.memory import MemoryTier
from configs import methods
from configs.shape import Slot
from configs.stages import Keep, Read
from tests.workers.engines import Workbench, chunked, encode, tokens
from tests.workers.methods import BUDGETS, GATE, HEAD_MAP, PATTERNS, PRUNINGS, SCORERS, with_files, write_files
from workers import prompt
from workers.messages import Encode
from workers.selection.gate import Gate
from workers.selection.headmap import HeadMap

Keys = dict[str, dict[str, Any]]

METHODS = {
    "read.pattern": (PATTERNS, methods.Pattern),
    "read.pruning": (PRUNINGS, methods.Pruning),
    "keep.scorer": (SCORERS, methods.Scorer),
    "keep.budget": (BUDGETS, methods.Budget),
}
STAGES: dict[str, tuple[Any, Any]] = {
    "read.context": ("isolated", "carried"),
    "keep.block_tokens": (16, 32),
    "keep.widen_tokens": (4, 5),
    "keep.question": ("known", "unknown"),
    "keep.codec": ("model", "int8"),
    "keep.chunk_fraction": (0.25, 0.5),
}
HARMLESS = {
    "read.chunk_tokens": "a chunk's tokens are in its name",
    "read.borders": "a chunk's tokens are in its name",
    "read.skim": "reading less deep changes no score, and pairs are kept of all layers",
}
"""Settings of a stage that need no place in a name."""


def another(value: Any, annotation: Any) -> Any:
    """Another value that a setting takes."""
    if isinstance(value, tuple):
        return tuple(another(part, None) for part in value)
    if isinstance(value, str):
        return next(choice for choice in get_args(annotation) if choice != value)
    if isinstance(value, bool):
        return not value
    return value + 1 if isinstance(value, int) else value / 2


def changes() -> Iterator[tuple[str, Keys, Keys]]:
    """Per setting its name, a method, and the same method with this setting changed."""
    for slot, (table, union) in METHODS.items():
        stage, part = slot.split(".")
        for model in Slot(union).models():
            kind = model.model_fields["kind"].default
            settings = table.get(kind, {"kind": kind})
            values = dict(model.model_validate(settings))
            for name, field in model.model_fields.items():
                # Files are asked about below; a message says how many tokens a document keeps.
                if name not in ("kind", "file", "map", *methods.Amount.model_fields):
                    changed = settings | {name: another(values[name], field.annotation)}
                    yield f"{slot}.{kind}.{name}", {stage: {part: settings}}, {stage: {part: changed}}
    for setting, (before, after) in STAGES.items():
        stage, name = setting.split(".")
        window: Keys = {"read": {}, "keep": {"scorer": SCORERS["window"]}}
        one, two = (window | {stage: window[stage] | {name: value}} for value in (before, after))
        yield setting, one, two


CHANGES = {name: (before, after) for name, before, after in changes()}


@pytest.fixture(scope="module")
def bench(tiny_model: Path) -> Workbench:
    return Workbench(tiny_model)


@pytest.fixture(scope="module")
def files(bench: Workbench, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_files(tmp_path_factory.mktemp("files"), bench.model.shape, bench.model.width, "weights")


def task_of(bench: Workbench) -> Encode:
    return encode(chunked(tokens(128), 64), bench.probes("Who signed it?"))


def names(bench: Workbench, keys: Keys, task: Encode | None = None) -> tuple[str, ...]:
    """What an engine of this method calls what it keeps of the second of two chunks."""
    over = "reread" if keys.get("read", {}).get("pruning", {}).get("kind") == "depth" else "kept"
    engine = bench.engine(TieredStore([MemoryTier(1)]), over=over, **keys)
    return tuple(key.hex for key in engine._keys(task or task_of(bench))[-1])


def test_every_setting_of_a_stage_is_asked_about_or_known_to_be_harmless() -> None:
    settings = {f"read.{name}" for name in Read.model_fields} | {f"keep.{name}" for name in Keep.model_fields}
    assert settings == {*METHODS, *STAGES, *HARMLESS}


@pytest.mark.parametrize("name", CHANGES)
def test_a_setting_that_decides_what_is_kept_is_part_of_its_name(
    bench: Workbench, files: dict[str, Path], name: str
) -> None:
    before, after = (with_files(keys, files) for keys in CHANGES[name])
    assert names(bench, before) == names(bench, before)
    assert set(names(bench, before)).isdisjoint(names(bench, after))


@pytest.mark.parametrize("slot", METHODS)
@pytest.mark.parametrize("context", ["isolated", "carried"])
def test_methods_of_different_kinds_share_no_name(
    bench: Workbench, files: dict[str, Path], slot: str, context: str
) -> None:
    (stage, part), (table, _) = slot.split("."), METHODS[slot]
    rest: Keys = {"read": {"context": context}, "keep": {"scorer": SCORERS["window"]}}
    if slot == "read.pruning":
        table = {"none": {"kind": "none"}, "gate": PRUNINGS["gate"]}
    found = [
        names(bench, with_files(rest | {stage: rest[stage] | {part: settings}}, files)) for settings in table.values()
    ]
    assert len({name for row in found for name in row}) == sum(map(len, found))


@pytest.mark.parametrize(
    "keys",
    [
        {"keep": {"scorer": SCORERS["gate"]}},
        {"read": {"pruning": PRUNINGS["gate"]}},
        {"keep": {"budget": BUDGETS["heads"]}},
    ],
    ids=["gate scorer", "gate dropping", "heads"],
)
def test_what_a_file_says_is_part_of_the_name_and_not_where_it_lies(
    bench: Workbench, files: dict[str, Path], tmp_path: Path, keys: Keys
) -> None:
    copies = {GATE: tmp_path / "gate.safetensors", HEAD_MAP: tmp_path / "heads.json"}
    gate, head_map = Gate.load(files[GATE]), HeadMap.load(files[HEAD_MAP])
    gate.save(copies[GATE])
    head_map.save(copies[HEAD_MAP])
    assert names(bench, with_files(keys, files)) == names(bench, with_files(keys, copies))
    first, *others = gate.heads
    replace(gate, heads=(replace(first, bias_G=first.bias_G + 1.0), *others)).save(copies[GATE])
    head_map.giving("pruned", {(1, 1)}).save(copies[HEAD_MAP])
    assert set(names(bench, with_files(keys, files))).isdisjoint(names(bench, with_files(keys, copies)))


@pytest.mark.parametrize("scorer", SCORERS)
@pytest.mark.parametrize("context", ["isolated", "carried"])
def test_what_a_message_asks_is_part_of_the_name(
    bench: Workbench, files: dict[str, Path], scorer: str, context: str
) -> None:
    keys = with_files({"read": {"context": context}, "keep": {"scorer": SCORERS[scorer]}}, files)
    task = task_of(bench)
    first, second = task.chunks
    changed = {
        "tokens": replace(task, chunks=(first, replace(second, token_ids=tokens(64, 1)))),
        "budget": replace(task, budget_tokens=task.budget_tokens + 1),
        "preface": replace(task, preface=(1, 2)),
    }
    if context == "carried":
        changed["earlier tokens"] = replace(task, chunks=(replace(first, token_ids=tokens(64, 1)), second))
    if bench.method(**keys).asks:
        changed["question"] = replace(task, probes=bench.probes("When?"))
    if bench.method(**keys).is_shaped_by_all:
        changed["all questions"] = replace(task, probes=bench.probes("Who signed it?", "When?"))
    found = [set(names(bench, keys, other)) for other in (task, *changed.values())]
    assert len(set().union(*found)) == sum(map(len, found)), list(changed)


@pytest.mark.parametrize("scorer", SCORERS)
def test_the_words_before_a_repetition_are_part_of_the_name_where_it_is_read(
    bench: Workbench, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch, scorer: str
) -> None:
    keys = with_files({"keep": {"scorer": SCORERS[scorer]}}, files)
    before = names(bench, keys)
    monkeypatch.setattr(prompt, "REPEAT", "\n\nAgain:\n\n")
    assert (names(bench, keys) != before) == (bench.method(**keys).scorer.observer == "repeat")


@pytest.mark.parametrize("context", ["isolated", "carried"])
@pytest.mark.parametrize("scorer", SCORERS)
def test_one_name_is_one_entry_wherever_in_its_document_the_chunk_stands(
    bench: Workbench, files: dict[str, Path], scorer: str, context: str
) -> None:
    keys = with_files({"read": {"context": context}, "keep": {"scorer": SCORERS[scorer], "widen_tokens": 0}}, files)
    task = replace(task_of(bench), budget_tokens=24)
    later = replace(task, chunks=tuple(replace(chunk, start=chunk.start + 640) for chunk in task.chunks))
    engine = bench.engine(TieredStore([MemoryTier(1)]), over="kept", **keys)
    here, there = ({block.key: block for row in engine._kept(asked)[1] for block in row} for asked in (task, later))
    for key in here.keys() & there.keys():
        for name, tensor in here[key].tensors.items():
            assert tensor.equal(there[key].tensors[name]), name
    assert (here.keys() == there.keys()) == (scorer not in ("random", "streaming"))
