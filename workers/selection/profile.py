"""A model's retrieval heads, found by calibration and kept beside its weights.

A question that stands behind a chunk has read it, one that meets a chunk's index has not: other heads serve it best, so
a profile has a choice for each.

Invariants: a profile belongs to one fingerprint of weights and is refused for any other; its digest is
part of every store key, so that another profile never reads this one's scores.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from blake3 import blake3

from workers.errors import ModelError
from workers.source import cache_directory

_SHIPPED = Path(__file__).parent / "profiles"


@dataclass(frozen=True)
class Profile:
    """``heads``: (layer, head) of the retrieval heads. ``rows``: which probe tokens score: the question's
    ``words``, only its ``last`` word, or ``all`` of the probe. ``measured``: what calibration saw. ``index``: what
    serves questions that have not read the chunk; None where nobody looked for it."""

    weights: str
    heads: tuple[tuple[int, int], ...]
    rows: str = "words"
    measured: dict[str, Any] = field(default_factory=dict)
    index: Profile | None = None

    @property
    def digest(self) -> str:
        """Hex digest of what decides scores; ``index`` has its own."""
        return blake3(json.dumps([self.weights, sorted(self.heads), self.rows]).encode()).hexdigest()

    def scored_rows(self, scored: tuple[int, int], num_tokens: int) -> range:
        """The rows of a probe of ``num_tokens`` whose queries score; ``scored`` is its words' range."""
        return {
            "words": range(*scored),
            "last": range(scored[1] - 1, scored[1]),
            "all": range(num_tokens),
        }[self.rows]

    def save(self, path: Path) -> None:
        """Write as JSON, complete or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        staged = path.with_suffix(".staged")
        staged.write_text(json.dumps(asdict(self), indent=1) + "\n")
        staged.replace(path)

    @classmethod
    def load(cls, path: Path) -> Profile:
        """Read a profile file. Raises ``ModelError`` naming the file and what is wrong in it."""
        try:
            profile = cls._of(json.loads(path.read_text()))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ModelError(f"model.profile: {path}: not a profile: {error!r}") from error
        for choice in (profile, profile.index):
            if choice is not None and (not choice.heads or choice.rows not in ("words", "last", "all")):
                raise ModelError(f"model.profile: {path}: needs at least one head, and rows: words, last or all")
        return profile

    @classmethod
    def _of(cls, record: dict[str, Any]) -> Profile:
        heads = tuple(sorted((int(layer), int(head)) for layer, head in record["heads"]))
        index = record.get("index")
        return cls(
            str(record["weights"]),
            heads,
            str(record["rows"]),
            dict(record.get("measured", {})),
            None if index is None else cls._of(index),
        )


def profile_path(weights: str) -> Path:
    """Where calibration of this machine keeps the profile of these weights."""
    return cache_directory() / "profiles" / f"{weights[:16]}.json"


def find_profile(setting: str, weights: str) -> Profile | None:
    """The profile for ``model.profile``: a file by name, or for ``auto`` the cached or the shipped one (None: there
    is none yet). Raises ``ModelError`` for a profile of other weights."""
    candidates = [Path(setting)] if setting != "auto" else [profile_path(weights), _SHIPPED / f"{weights[:16]}.json"]
    for path in candidates:
        if setting != "auto" or path.is_file():
            profile = Profile.load(path)
            if profile.weights != weights:
                raise ModelError(
                    f"model.profile: {path} belongs to weights {profile.weights[:16]}, but model.source has "
                    f"{weights[:16]}; run `foveate calibrate` for this model"
                )
            return profile
    return None
