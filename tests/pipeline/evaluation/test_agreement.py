"""Agreement with another implementation, without it: our side on the tiny model, and a side that answers at will."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.evaluation.agreement.comparing import KvpressProcess, Row, Theirs, compare
from pipeline.evaluation.agreement.exchange import Case, Said, read_said, write_cases
from pipeline.evaluation.agreement.kvpress_side import PRESSES, Watch, unmasked
from pipeline.evaluation.agreement.measures import agreement, rank_correlation
from pipeline.evaluation.agreement.methods import COMPARED, SINKS
from pipeline.evaluation.agreement.ours import OurSide
from pipeline.evaluation.agreement.page import Agreed, agreement_lines
from pipeline.evaluation.tasks.base import Item
from workers.attention.base import resolve
from workers.hf import LanguageModel, Tokenizer
from workers.loaded import LoadedModel
from workers.prompt import Frame
from workers.source import ModelSource

FRACTION = 0.25
OURS = [method for method in COMPARED if method.budget is not None]


@pytest.fixture(scope="module")
def ours(tiny_model: Path) -> OurSide:
    model = LanguageModel(tiny_model, dtype=torch.float32, device=torch.device("cpu"))
    frame = Frame.render(Tokenizer(tiny_model), None, "Read this.")
    return OurSide(
        LoadedModel(model, resolve("cpu", model.device), frame, ModelSource(tiny_model, "weights", "tokenizer"))
    )


@pytest.fixture(scope="module")
def case(ours: OurSide) -> Case:
    text = " ".join(f"Line {n} says {n * n}." for n in range(22))
    item = Item("item-0", "lines", 400, text, "What says line 7?", "It says", ("49",), "all", (), 3)
    return Case.of(item, ours.loaded.frame, FRACTION)


@pytest.fixture(scope="module")
def said(ours: OurSide, case: Case) -> dict[str, Said]:
    return dict(ours.said(case, OURS, 0))


@dataclass(frozen=True)
class Echo:
    """Another side that says what it was told to."""

    said: Mapping[str, Said]

    def answer(self, cases: Sequence[Case]) -> Theirs:
        return Theirs([self.said for _ in cases], {"echo": "1"})


def with_the_others(said: Mapping[str, Said], change: Callable[[Said], Said] = lambda one: one) -> dict[str, Said]:
    """What our side said, as another side with every method would say it."""
    return {method.name: change(said.get(method.name, said["reconstruct"])) for method in COMPARED}


def test_both_sides_have_the_same_methods() -> None:
    theirs = {*PRESSES, *(spec.evenly for spec in PRESSES.values() if spec.evenly is not None)}
    assert {method.name for method in COMPARED} == theirs


def test_our_side_keeps_the_budget_and_streaming_the_ends(case: Case, said: dict[str, Said]) -> None:
    total = len(case.context)
    for name, one in said.items():
        kept = total if name == "dense" else case.keep
        assert one.kept_LGN.shape[2] == total
        assert one.kept_LGN.sum(axis=2).mean() == kept, name
    streaming = [*range(SINKS), *range(total - case.keep + SINKS, total)]
    assert all(np.flatnonzero(head_N).tolist() == streaming for head_N in said["streaming"].kept_LGN.reshape(-1, total))


def test_what_is_pinned_is_kept_by_all_and_counts(ours: OurSide, case: Case) -> None:
    pinned = len(case.anchor)
    for name, one in ours.said(case, OURS, pinned):
        assert one.kept_LGN[..., :pinned].all()
        assert one.kept_LGN.sum(axis=2).mean() == (len(case.context) if name == "dense" else case.keep), name


def test_a_side_that_says_the_same_agrees(ours: OurSide, case: Case, said: dict[str, Said]) -> None:
    theirs = Echo(with_the_others(said)).answer([case])
    rows = list(compare(ours, [case], theirs.said, COMPARED))
    assert len(rows) == 2 * len(COMPARED), "as defined, and as run"
    for row in rows:
        if row.pinned == "nothing" and row.agreement is not None:
            assert row.agreement.overlap == row.agreement.least_jaccard == 1.0
            assert row.agreement.same_answer and row.own_score == row.other_score
            assert row.agreement.order is None or row.agreement.order == pytest.approx(1.0)
    assert [row.method for row in rows if row.agreement is None] == ["reconstruct, global"] * 2


def test_a_side_that_keeps_the_rest_does_not_agree(said: dict[str, Said]) -> None:
    own = said["keydiff"]
    assert own.scores_LGN is not None
    found = agreement(own, replace(own, kept_LGN=~own.kept_LGN, scores_LGN=-own.scores_LGN, moved="else"), 0)
    assert (found.overlap, found.jaccard, found.same_answer) == (0.0, 0.0, False)
    assert found.order == pytest.approx(-1.0)


def test_ranks_share_a_place_where_values_are_equal() -> None:
    one, other = np.array([1, 2, 2, 4], np.float32), np.array([1, 3, 2, 4], np.float32)
    assert rank_correlation(one, other) == pytest.approx(np.corrcoef([1, 2.5, 2.5, 4], [1, 3, 2, 4])[0, 1])
    assert rank_correlation(one, np.ones(4, np.float32)) == 0.0


@pytest.mark.parametrize("error", [None, "no room"])
def test_what_the_other_side_writes_is_read_back(tmp_path: Path, case: Case, error: str | None) -> None:
    write_cases(tmp_path, [case])
    kept = np.random.default_rng(0).random((3, 2, len(case.context))) < 0.3
    scores = np.random.default_rng(1).random(kept.shape, dtype=np.float32)
    parts: dict[str, Any] = {"window, adaptive/kept": np.packbits(kept, axis=-1), "window, adaptive/scores": scores}
    parts["window, adaptive/answer" if error is None else "window, adaptive/error"] = np.array(error or "ein Wort ß")
    np.savez_compressed(tmp_path / f"{case.item.id}.npz", **parts)
    [(name, found)] = read_said(tmp_path, case).items()
    assert (name, found.answer, found.moved, found.error) == (
        "window, adaptive", None if error else "ein Wort ß", None, error,
    )  # fmt: skip
    np.testing.assert_array_equal(found.kept_LGN, kept)
    assert found.scores_LGN is not None
    np.testing.assert_array_equal(found.scores_LGN, scores)


def test_a_side_that_fails_says_why(tmp_path: Path, tiny_model: Path, case: Case) -> None:
    """This environment's python has no kvpress."""
    with pytest.raises(RuntimeError, match="No module named 'kvpress'"):
        KvpressProcess(Path(sys.executable), tiny_model, tmp_path).answer([case])


class Half:
    """A press as kvpress has them: scores, and a cache cut down to the better half."""

    def score(self, module: Any, hidden: Any, keys: Tensor, values: Tensor, attentions: Any, kwargs: Any) -> Tensor:
        return values[..., 0]

    def compress(
        self, module: Any, hidden: Any, keys: Tensor, values: Tensor, attentions: Any, kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        scores = self.score(module, hidden, keys, values, attentions, kwargs)
        best = scores.topk(keys.shape[2] // 2, dim=-1).indices[..., None].expand(-1, -1, -1, keys.shape[3])
        return keys.gather(2, best), values.gather(2, best)


def test_what_a_press_leaves_is_seen_without_changing_it() -> None:
    keys, values = torch.randn(2, 1, 3, 10, 4, generator=torch.Generator().manual_seed(0))
    press, alone = Half(), Half()
    watch = Watch(press)
    module = SimpleNamespace(masked_key_indices=None)
    found = press.compress(module, None, keys, values, None, {})
    for seen, plain in zip(found, alone.compress(module, None, keys, values, None, {}), strict=True):
        torch.testing.assert_close(seen, plain, rtol=0, atol=0)
    model = SimpleNamespace(model=SimpleNamespace(layers=[module]), config=SimpleNamespace(num_key_value_heads=3))
    best = values[0, :, :, 0] >= values[0, :, :, 0].median(dim=-1, keepdim=True).values
    best &= values[0, :, :, 0] > values[0, :, :, 0].sort(dim=-1).values[:, 4:5]
    assert torch.equal(watch.mask(model, 10)[0], best)
    assert torch.equal(watch.best(5)[0], best)
    assert len(watch.scores) == 1, "asked again, a press scores only once"


def test_what_a_press_masks_is_gone() -> None:
    masked = (torch.zeros(3, dtype=torch.long), torch.tensor([0, 1, 1]), torch.tensor([2, 0, 3]))
    assert unmasked(masked, (2, 4)).tolist() == [[True, True, False, True], [False, True, True, False]]


def test_the_page_explains_or_calls_it_unexplained(said: dict[str, Said]) -> None:
    whole = agreement(said["window"], said["window"], 0)
    rows = []
    for method in COMPARED:
        less = replace(whole, overlap=0.6) if method.name in ("window", "random") else whole
        for pinned in (method.pinned, "anchor"):
            rows.append(Row(method.name, pinned, less, 1.0, 0.0 if method.name == "keydiff" else None, None))
    methods = [replace(method, difference="Drawn by chance." if method.name == "random" else "") for method in COMPARED]
    page = agreement_lines(Agreed(rows, methods))
    assert "* `window`: **Unexplained**: they agree on 60% of what is kept." in page
    assert "* `random`: Drawn by chance." in page
    assert "| `window` | SnapKVPress | nothing | 0.600 | 1.000 [1.000] | 1.000 | 1 of 1 |" in page
    assert any(
        line.startswith("| `keydiff` | 1.000 | 100%") and line.endswith("| **+100 [+100, +100]** |") for line in page
    )
    assert sum("Unexplained" in line for line in page) == 1
    assert any(line.startswith("| `window` | 0.600 |") and "no answer" in line for line in page)


def test_a_reason_for_no_answer_is_on_the_page(said: dict[str, Said]) -> None:
    whole = agreement(said["dense"], said["dense"], 0)
    rows = [Row("dense", pinned, whole, 1.0, None, "tensors differ") for pinned in ("nothing", "anchor")]
    assert "* `dense`: kvpress gives no answer: `tensors differ`." in agreement_lines(Agreed(rows, COMPARED[:1]))
