"""What each key-value head of a model is for: found by measurement and kept beside the model's weights.

Invariants: a map belongs to one fingerprint of weights and is refused for any other; every kv head has exactly one
role; its digest is part of every store key that it decides.

Shapes: L layers, G key-value heads.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from blake3 import blake3
from numpy.typing import ArrayLike

from workers.errors import ModelError
from workers.source import cache_directory

Role = Literal["retrieval", "streaming", "pruned"]

ROLES: tuple[Role, ...] = get_args(Role)
_SHIPPED = Path(__file__).parent / "headmaps"


@dataclass(frozen=True)
class HeadMap:
    """``roles_LG``: per layer, the role of each kv head: ``retrieval`` heads need what was kept of the document,
    ``streaming`` heads its first and last tokens (Xiao et al. 2024, DuoAttention), ``pruned`` heads nothing of it.
    ``weights``: the model's fingerprint. ``measured``: what each role costs, as ``headprobe`` saw it."""

    weights: str
    roles_LG: tuple[tuple[Role, ...], ...]
    measured: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_scores(cls, weights: str, retrieval_LG: ArrayLike, fraction: float) -> HeadMap:
        """The ``fraction`` of all kv heads with the highest scores retrieve (rounded up; ties fall to the earlier
        head), the others stream."""
        scores_LG = np.asarray(retrieval_LG, dtype=np.float64)
        order = np.argsort(-scores_LG, axis=None, kind="stable")
        retrieves = np.zeros(scores_LG.size, dtype=bool)
        retrieves[order[: int(np.ceil(fraction * scores_LG.size - 1e-9))]] = True
        rows = retrieves.reshape(scores_LG.shape)
        return cls(weights, tuple(tuple("retrieval" if yes else "streaming" for yes in row) for row in rows))

    def giving(self, role: Role, heads: Collection[tuple[int, int]]) -> HeadMap:
        """The same map with this role for these (layer, kv head)."""
        roles = tuple(
            tuple(role if (layer, head) in heads else own for head, own in enumerate(row))
            for layer, row in enumerate(self.roles_LG)
        )
        return replace(self, roles_LG=roles)

    @property
    def shape(self) -> tuple[int, int]:
        """Layers and kv heads."""
        return len(self.roles_LG), len(self.roles_LG[0])

    def fraction_of(self, role: Role) -> float:
        """Share of all kv heads that have this role."""
        return sum(row.count(role) for row in self.roles_LG) / (self.shape[0] * self.shape[1])

    @property
    def digest(self) -> str:
        """Hex digest of what decides what is kept."""
        return blake3(json.dumps([self.weights, self.roles_LG]).encode()).hexdigest()

    def save(self, path: Path) -> None:
        """Write as JSON, complete or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        staged = path.with_suffix(".staged")
        staged.write_text(json.dumps(asdict(self), indent=1) + "\n")
        staged.replace(path)

    @classmethod
    def load(cls, path: Path) -> HeadMap:
        """Read a head map. Raises ``ModelError`` naming the file and what is wrong in it."""
        try:
            record = json.loads(path.read_text())
            roles = tuple(tuple(row) for row in record["roles_LG"])
            head_map = cls(str(record["weights"]), roles, dict(record.get("measured", {})))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ModelError(f"keep.budget.map: {path}: not a head map: {error}") from error
        unknown = sorted({str(role) for row in roles for role in row if role not in ROLES})
        if unknown or not roles or not roles[0] or len({len(row) for row in roles}) > 1:
            raise ModelError(
                f"keep.budget.map: {path}: roles_LG needs one row per layer, as many roles in each, each role one of "
                f"{', '.join(ROLES)}" + (f"; it has {', '.join(unknown)}" if unknown else "")
            )
        return head_map


def head_map_path(weights: str) -> Path:
    """Where `foveate calibrate --heads` on this machine keeps the map of these weights."""
    return cache_directory() / "headmaps" / f"{weights[:16]}.json"


def find_head_map(setting: str, weights: str, shape: tuple[int, int]) -> HeadMap:
    """The map for ``keep.budget.map``: a file by name, or for ``auto`` the cached or the shipped one. ``shape``: the
    model's layers and kv heads. Raises ``ModelError`` where there is none, or for a map of another model."""
    candidates = [Path(setting)] if setting != "auto" else [head_map_path(weights), _SHIPPED / f"{weights[:16]}.json"]
    path = next((path for path in candidates if setting != "auto" or path.is_file()), None)
    if path is None:
        raise ModelError(
            f"keep.budget.map: auto: no head map of weights {weights[:16]} is cached or shipped; "
            "run `foveate calibrate --heads` for this model, or name a file"
        )
    head_map = HeadMap.load(path)
    if head_map.weights != weights:
        raise ModelError(
            f"keep.budget.map: {path} belongs to weights {head_map.weights[:16]}, but model.source has "
            f"{weights[:16]}; run `foveate calibrate --heads` for this model"
        )
    if head_map.shape != shape:
        raise ModelError(f"keep.budget.map: {path} has {head_map.shape} layers and kv heads, but the model has {shape}")
    return head_map
