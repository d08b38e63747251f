"""What was found or trained for a model, as a page: retrieval heads, gate, roles of kv heads.

Makes ``docs/results/calibrated.md`` from what the files themselves recorded when ``foveate calibrate`` made them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.evaluation.tables import table
from workers.errors import ModelError
from workers.hf import model_shape
from workers.selection.calibrate import BUDGETS
from workers.selection.gate import find_gate
from workers.selection.headmap import ROLES, find_head_map
from workers.selection.profile import Profile, find_profile
from workers.source import locate

_RECALLS = {
    "recall": "chosen heads, with words",
    "recall_of_heads_alone": "chosen heads alone",
    "recall_of_words_alone": "words alone (BM25, heard by neighbours)",
    "recall_of_all_heads": "mean over all heads",
}


def write_calibrated(model: str, out: Path) -> None:
    """Write the page for the model that ``model`` names; what was not made for it is said to be missing."""
    source = locate(model)
    shape = model_shape(source.directory)
    lines = ["# Found once per model", "", f"Made by `python -m pipeline.evaluation calibrated --model {model}`.", ""]
    profile = find_profile("auto", source.weights)
    lines += ["## Retrieval heads", ""]
    lines += _profile_lines(profile) if profile else ["None are known.", ""]
    if profile and profile.index:
        lines += ["## Retrieval heads of an index", "", "For questions that meet a chunk's keys and never read it."]
        lines += _profile_lines(profile.index)
    lines += ["## Gate", ""]
    try:
        lines += _gate_lines(find_gate("auto", source.weights).measured)
    except ModelError as error:
        lines += [str(error), ""]
    lines += ["## Roles of kv heads", ""]
    try:
        kv_heads = (shape.num_layers, shape.num_kv_heads)
        lines += _head_lines(find_head_map("auto", source.weights, kv_heads).measured)
    except ModelError as error:
        lines += [str(error), ""]
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text("\n".join(lines))


def _profile_lines(profile: Profile) -> Iterator[str]:
    yield f"{len(profile.heads)} of them, as (layer, head): {', '.join(map(str, profile.heads))}."
    yield "Share of questions whose whole gold passage is kept; the heads were chosen on `calibrate`."
    yield ""
    for split, found in profile.measured.items():
        yield f"`{split}`: {found['questions']} questions over {found['tokens']:,} tokens."
        yield ""
        rows = [
            [text, *(f"{found[f'{name}_at_{budget}']:.0%}" for budget in BUDGETS)]
            for name, text in _RECALLS.items()
            if f"{name}_at_{BUDGETS[0]}" in found
        ]
        yield from table(["scored by", *(f"{budget:,} tokens kept" for budget in BUDGETS)], rows)
        yield ""


def _gate_lines(measured: Mapping[str, Any]) -> list[str]:
    """Correlation with what the gate is to predict, and what it would keep."""
    kept, target = measured["kept_fraction"], measured["kept_fraction_of_target"]
    rows = [[threshold, f"{kept[threshold]:.1%}", f"{target[threshold]:.1%}"] for threshold in kept]
    return [
        f"Trained on {measured['text_tokens']:,} tokens of text; measured on {measured['held_out_tokens']:,} tokens "
        "that it never saw. Correlation with the `reconstruct` score over tokens, mean over layers and kv heads: "
        f"Pearson (of logarithms) {measured['pearson']:.2f}, Spearman {measured['spearman']:.2f}.",
        "",
        *table(["threshold", "kept by the gate", "kept by its target"], rows),
        "",
    ]


def _head_lines(measured: Mapping[str, Any]) -> list[str]:
    """The map's cost, and what pruning more and more heads costs."""
    found = measured["map"]
    roles = ", ".join(f"{found[role]:.0%} {role}" for role in ROLES)
    columns = [name for name in measured["pruning"][0] if name != "pruned"]
    rows = [[f"{row['pruned']:.0%}", *(f"{row[name]:.3f}" for name in columns)] for row in measured["pruning"]]
    costs = ", ".join(f"{name.replace('_', ' ')} {found[name]:.3f}" for name in columns)
    return [
        f"The map: {roles}. With it: {costs}.",
        "",
        "Pruning the heads that are needed least, all others left as they are:",
        "",
        *table(["kv heads pruned", *(name.replace("_", " ") for name in columns)], rows),
        "",
    ]
