"""Profiles: whose they are, where they are found, what a broken one says."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from workers.errors import ModelError
from workers.selection.profile import Profile, find_profile, profile_path

WEIGHTS = "ab" * 32


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOVEATE_CACHE", str(tmp_path / "cache"))


def test_a_saved_profile_comes_back(tmp_path: Path) -> None:
    profile = Profile(WEIGHTS, ((1, 2), (3, 0)), "last", {"held_out": {"recall_at_512": 0.5}})
    profile = replace(profile, index=Profile(WEIGHTS, ((2, 2),), "words", {"held_out": {"recall_at_512": 0.4}}))
    profile.save(tmp_path / "p.json")
    assert Profile.load(tmp_path / "p.json") == profile


def test_auto_finds_the_cached_one_and_a_model_without_one_has_none() -> None:
    assert find_profile("auto", WEIGHTS) is None
    profile = Profile(WEIGHTS, ((1, 2),))
    profile.save(profile_path(WEIGHTS))
    assert find_profile("auto", WEIGHTS) == profile


SHIPPED = {"SmolLM2-135M-Instruct.Q4_1": "581604d518d716d4", "gemma-3-270m-q4_k_m": "99afe96185bd720d"}


def test_no_other_profile_ships() -> None:
    paths = (Path("workers") / "selection" / "profiles").glob("*.json")
    assert {path.stem for path in paths} == {*SHIPPED.values()}


@pytest.mark.parametrize("name", SHIPPED.values(), ids=SHIPPED.keys())
def test_the_profiles_of_two_small_models_ship(name: str) -> None:
    shipped = Profile.load(Path("workers") / "selection" / "profiles" / f"{name}.json")
    assert shipped.weights.startswith(name)
    assert find_profile("auto", shipped.weights) == shipped
    assert shipped.index is not None and shipped.index.heads != shipped.heads
    for choice in (shipped, shipped.index):
        held_out = choice.measured["held_out"]
        assert held_out["recall_at_1024"] > held_out["recall_of_all_heads_at_1024"]


def test_a_profile_of_other_weights_is_refused(tmp_path: Path) -> None:
    Profile(WEIGHTS, ((1, 2),)).save(tmp_path / "p.json")
    with pytest.raises(ModelError, match=r"belongs to weights abab.*foveate calibrate"):
        find_profile(str(tmp_path / "p.json"), "cd" * 32)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{}",
        "[]",
        '{"weights": "x", "heads": [], "rows": "words"}',
        '{"weights": "x", "heads": [[1, 2]], "rows": "some"}',
        '{"weights": "x", "heads": [1, 2], "rows": "words"}',
        '{"weights": "x", "heads": [[1, 2]], "rows": "words", "index": {"weights": "x", "heads": [], "rows": "words"}}',
        '{"weights": "x", "heads": [[1, 2]], "rows": "words", "index": {"weights": "x"}}',
    ],
)
def test_a_broken_profile_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "p.json").write_text(content)
    with pytest.raises(ModelError, match=r"model\.profile: .*p\.json"):
        find_profile(str(tmp_path / "p.json"), WEIGHTS)


def test_a_missing_profile_is_named() -> None:
    with pytest.raises(ModelError, match=r"model\.profile: /nowhere\.json"):
        find_profile("/nowhere.json", WEIGHTS)


@pytest.mark.parametrize("change", [{"weights": "x"}, {"heads": ((0, 0),)}, {"rows": "all"}])
def test_whatever_decides_scores_changes_the_digest(change: dict[str, object]) -> None:
    profile = Profile(WEIGHTS, ((1, 2),))
    record = json.loads(json.dumps({"weights": WEIGHTS, "rows": "words"})) | {"heads": ((1, 2),)} | change
    assert Profile(**record).digest != profile.digest


@pytest.mark.parametrize(("rows", "expected"), [("words", [2, 3, 4]), ("last", [4]), ("all", list(range(8)))])
def test_which_rows_score(rows: str, expected: list[int]) -> None:
    assert list(Profile("w", ((0, 0),), rows).scored_rows((2, 5), 8)) == expected
