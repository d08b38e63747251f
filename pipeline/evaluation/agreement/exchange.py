"""What the two sides tell each other, through a directory: cases one way, what was kept and answered the other.

Invariants: what is written reads back equal; the files are plain JSON and npz without pickled objects, so that each
side reads them with its own environment; a file that has its name is complete.

Shapes: L layers, G kv heads, N context tokens.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation.tasks.base import Item
from workers.prompt import Frame

ITEMS, VERSIONS = "items.json", "versions.json"


@dataclass(frozen=True)
class Case:
    """An item as token ids. ``keep``: how many of the context's tokens (anchor and document) a layer and head may keep,
    on average."""

    item: Item
    anchor: tuple[int, ...]
    document: tuple[int, ...]
    question: tuple[int, ...]
    keep: int

    @classmethod
    def of(cls, item: Item, frame: Frame, fraction: float) -> Case:
        """As the product reads the item; ``fraction`` of its context may be kept."""
        document = tuple(frame.tokenizer.encode(item.context))
        probe = frame.probe(item.id, item.question, item.answer_prefix)
        return cls(item, frame.anchor, document, probe.token_ids, round(fraction * (len(frame.anchor) + len(document))))

    @property
    def context(self) -> tuple[int, ...]:
        """Everything before the question: what kvpress compresses."""
        return self.anchor + self.document


@dataclass(frozen=True)
class Said:
    """What a side made of a case with one method. ``kept_LGN``: bool; ``scores_LGN``: None where the method has none;
    ``moved``: the answer where what stays moves together, None where a side cannot; ``error``: why there is no
    ``answer``."""

    kept_LGN: NDArray[np.bool_]
    scores_LGN: NDArray[np.float32] | None = None
    answer: str | None = None
    moved: str | None = None
    error: str | None = None


def cases_text(cases: Sequence[Case]) -> str:
    """What the other side is asked, as JSON."""
    return json.dumps(
        [
            {
                "id": case.item.id,
                "context_ids": case.context,
                "question_ids": case.question,
                "keep": case.keep,
                "max_new_tokens": case.item.max_new_tokens,
            }
            for case in cases
        ]
    )


def write_cases(directory: Path, cases: Sequence[Case]) -> None:
    """Write what the other side is asked."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / ITEMS).write_text(cases_text(cases))


def read_versions(directory: Path) -> dict[str, str]:
    """What the other side ran on, by package."""
    versions: dict[str, str] = json.loads((directory / VERSIONS).read_text())
    return versions


def read_said(directory: Path, case: Case) -> dict[str, Said]:
    """What the other side made of a case, by method. Raises ``FileNotFoundError`` where it made nothing."""
    found: dict[str, dict[str, NDArray[np.generic]]] = {}
    with np.load(directory / f"{case.item.id}.npz") as arrays:
        for name in arrays.files:
            method, _, part = name.rpartition("/")
            found.setdefault(method, {})[part] = arrays[name]
    return {method: _said(parts, len(case.context)) for method, parts in found.items()}


def _said(parts: Mapping[str, NDArray[np.generic]], num_tokens: int) -> Said:
    answer, moved, error = (str(parts[name]) if name in parts else None for name in ("answer", "moved", "error"))
    kept = np.unpackbits(parts["kept"].astype(np.uint8), axis=-1, count=num_tokens).astype(bool)
    scores = parts["scores"].astype(np.float32) if "scores" in parts else None
    return Said(kept, scores, answer, moved, error)
