"""Head maps: whose they are, where they are found, what a broken one says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from workers.errors import ModelError
from workers.selection.headmap import HeadMap, find_head_map, head_map_path

WEIGHTS = "ab" * 32
MAP = HeadMap(WEIGHTS, (("retrieval", "streaming"), ("pruned", "streaming"), ("streaming", "retrieval")), {"seen": 1})
SHAPE = (3, 2)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOVEATE_CACHE", str(tmp_path / "cache"))


def test_a_saved_map_comes_back(tmp_path: Path) -> None:
    MAP.save(tmp_path / "m.json")
    assert HeadMap.load(tmp_path / "m.json") == MAP
    assert find_head_map(str(tmp_path / "m.json"), WEIGHTS, SHAPE) == MAP
    assert MAP.shape == SHAPE and MAP.fraction_of("streaming") == 0.5


def test_auto_finds_the_cached_one_and_says_how_to_make_one() -> None:
    with pytest.raises(ModelError, match=r"keep\.budget\.map: auto: .*abab.* run `foveate calibrate --heads`"):
        find_head_map("auto", WEIGHTS, SHAPE)
    MAP.save(head_map_path(WEIGHTS))
    assert find_head_map("auto", WEIGHTS, SHAPE) == MAP


def test_what_ships_can_be_loaded() -> None:
    for path in (Path("workers") / "selection" / "headmaps").glob("*.json"):
        shipped = HeadMap.load(path)
        assert find_head_map("auto", shipped.weights, shipped.shape) == shipped


def test_a_map_of_other_weights_or_of_another_shape_is_refused(tmp_path: Path) -> None:
    MAP.save(tmp_path / "m.json")
    with pytest.raises(ModelError, match=r"belongs to weights abab.*foveate calibrate --heads"):
        find_head_map(str(tmp_path / "m.json"), "cd" * 32, SHAPE)
    with pytest.raises(ModelError, match=r"has \(3, 2\) layers and kv heads, but the model has \(30, 3\)"):
        find_head_map(str(tmp_path / "m.json"), WEIGHTS, (30, 3))


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{}",
        "[]",
        '{"weights": "x", "roles_LG": []}',
        '{"weights": "x", "roles_LG": [[]]}',
        '{"weights": "x", "roles_LG": ["pruned"]}',
        '{"weights": "x", "roles_LG": [["pruned"], ["lost"]]}',
        '{"weights": "x", "roles_LG": [[["pruned"]]]}',
        '{"weights": "x", "roles_LG": [["pruned"], ["pruned", "streaming"]]}',
    ],
)
def test_a_broken_map_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "m.json").write_text(content)
    with pytest.raises(ModelError, match=r"keep\.budget\.map: .*m\.json"):
        find_head_map(str(tmp_path / "m.json"), "x", SHAPE)


def test_a_missing_map_is_named() -> None:
    with pytest.raises(ModelError, match=r"keep\.budget\.map: /nowhere\.json"):
        find_head_map("/nowhere.json", WEIGHTS, SHAPE)


def test_the_highest_scores_retrieve() -> None:
    scores_LG = np.array([[0.1, 0.9], [0.9, 0.3]])
    roles = {fraction: HeadMap.from_scores("w", scores_LG, fraction).roles_LG for fraction in (0.0, 0.25, 0.5, 0.6, 1)}
    assert roles[0.0] == (("streaming", "streaming"), ("streaming", "streaming"))
    assert roles[0.25] == (("streaming", "retrieval"), ("streaming", "streaming")), "ties fall to the earlier head"
    assert roles[0.5] == (("streaming", "retrieval"), ("retrieval", "streaming"))
    assert roles[0.6] == (("streaming", "retrieval"), ("retrieval", "retrieval")), "rounded up"
    assert roles[1] == (("retrieval", "retrieval"), ("retrieval", "retrieval"))


def test_roles_decide_the_digest_and_measurements_do_not() -> None:
    assert MAP.digest == HeadMap(WEIGHTS, MAP.roles_LG).digest
    assert MAP.digest != MAP.giving("pruned", [(0, 0)]).digest
    assert MAP.digest != HeadMap("other", MAP.roles_LG).digest
