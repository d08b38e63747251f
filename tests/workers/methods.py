"""Every method of ``configs.methods`` once, small enough for the tiny model: what laws over methods are asked of.

``METHODS``: the keys of a job, as ``Workbench.method`` takes them. ``GATE`` and ``HEAD_MAP`` stand for files that
``write_files`` makes. ``REFUSED``: which of them a model with windowed layers refuses, and the key that says so.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from workers.hf import ModelShape
from workers.selection.gate import Gate, GateHead
from workers.selection.headmap import HeadMap

GATE, HEAD_MAP = "GATE", "HEAD_MAP"

PATTERNS: dict[str, dict[str, Any]] = {
    "dense": {"kind": "dense"},
    "sliding_window": {"kind": "sliding_window", "block_tokens": 16, "window_tokens": 16},
    "longformer": {"kind": "longformer", "block_tokens": 16, "window_tokens": 16, "global_tokens": 16},
    "bigbird": {"kind": "bigbird", "block_tokens": 16, "window_blocks": 1, "random_blocks": 1, "global_blocks": 1},
    "tri_shape": {
        "kind": "tri_shape", "block_tokens": 16, "sink_tokens": 16, "window_tokens": 16, "last_tokens": 16,
    },
    "routing": {"kind": "routing", "block_tokens": 16, "clusters": 2},
    "top_blocks": {"kind": "top_blocks", "block_tokens": 16, "mass": 0.5, "min_blocks": 2},
}  # fmt: skip
SCORERS: dict[str, dict[str, Any]] = {
    "probe": {"kind": "probe"},
    "index": {"kind": "index"},
    "window": {"kind": "window", "window_tokens": 8},
    "accumulated": {"kind": "accumulated"},
    "streaming": {"kind": "streaming"},
    "expected": {"kind": "expected", "future_tokens": 32},
    "reconstruct": {"kind": "reconstruct"},
    "keydiff": {"kind": "keydiff"},
    "gate": {"kind": "gate", "file": GATE},
    "random": {"kind": "random"},
}
_AT_ONCE = {name: scorer for name, scorer in SCORERS.items() if name != "index"}
"""All but the one that only text can be kept with, and no question known."""
BUDGETS: dict[str, dict[str, Any]] = {
    "uniform": {"kind": "uniform"},
    "pyramid": {"kind": "pyramid"},
    "adaptive": {"kind": "adaptive"},
    "heads": {"kind": "heads", "map": HEAD_MAP, "sink_tokens": 4, "window_tokens": 8},
    "threshold": {"kind": "threshold", "times_mean": 1.0},
    "min_p": {"kind": "min_p", "p": 0.3},
}
PRUNINGS: dict[str, dict[str, Any]] = {
    "depth": {"kind": "depth", "layers": [1], "keep": [0.5]},
    "gate": {"kind": "gate", "threshold": 0.05, "delay_tokens": 16, "file": GATE},
}

METHODS: dict[str, dict[str, Any]] = (
    {f"pattern {name}": {"read": {"pattern": pattern}} for name, pattern in PATTERNS.items()}
    | {
        f"carried {name}": {"read": {"pattern": pattern, "context": "carried"}, "over": "kept"}
        for name, pattern in PATTERNS.items()
    }
    | {f"scorer {name}": {"keep": {"scorer": scorer}, "over": "kept"} for name, scorer in _AT_ONCE.items()}
    | {f"scorer {name}, text": {"keep": {"scorer": scorer}} for name, scorer in _AT_ONCE.items()}
    | {"scorer index": {"keep": {"scorer": SCORERS["index"], "question": "unknown"}}}
    | {
        f"scorer {name}, question unknown": {"keep": {"scorer": scorer, "question": "unknown"}, "over": "kept"}
        for name, scorer in SCORERS.items()
        if name not in ("probe", "index")
    }
    | {
        f"budget {name}, {scorer}": {"keep": {"budget": budget, "scorer": SCORERS[scorer]}, "over": "kept"}
        for name, budget in BUDGETS.items()
        for scorer in ("probe", "window")
    }
    | {f"pruning {name}": {"read": {"pruning": pruning}} for name, pruning in PRUNINGS.items()}
    | {
        f"carried {name}": {"read": {"context": "carried"}, "keep": {"scorer": SCORERS[name]}, "over": "kept"}
        for name in ("streaming", "window", "accumulated")
    }
    | {"positions original": {"over": "kept", "positions": "original"}}
)  # fmt: skip

REFUSED: dict[str, str] = {
    "pruning depth": "read.pruning.kind",
    "positions original": "answer.positions",
}


def write_files(directory: Path, shape: ModelShape, width: int, weights: str) -> dict[str, Path]:
    """A gate and a head map for a model, by the name that stands for each."""
    torch.manual_seed(0)
    heads = tuple(
        GateHead(
            mean_E=torch.zeros(width),
            std_E=torch.ones(width),
            linear_EG=torch.randn(width, shape.num_kv_heads) / width**0.5,
            bias_G=torch.full((shape.num_kv_heads,), -3.0),
            inner_EW=torch.zeros(width, 0),
            inner_bias_W=torch.zeros(0),
            outer_WG=torch.zeros(0, shape.num_kv_heads),
        )
        for _ in range(shape.num_layers)
    )
    scores = torch.rand(shape.num_layers, shape.num_kv_heads)
    files = {GATE: directory / "gate.safetensors", HEAD_MAP: directory / "heads.json"}
    Gate(weights, heads).save(files[GATE])
    HeadMap.from_scores(weights, scores.numpy(), 0.5).giving("pruned", {(0, 0)}).save(files[HEAD_MAP])
    return files


def with_files(keys: Any, files: dict[str, Path]) -> Any:
    """The same keys with the files' paths."""
    if isinstance(keys, dict):
        return {name: with_files(value, files) for name, value in keys.items()}
    return str(files[keys]) if isinstance(keys, str) and keys in files else keys
