"""What every model of a configuration shares: closed, frozen, and errors that name keys.

Invariants: unknown keys are refused and nothing can be changed after it was made.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

# A field's ``description`` is what an error message offers as allowed, where its type does not say it well.
Positive = Annotated[int, Field(ge=1)]
Natural = Annotated[int, Field(ge=0)]
Fraction = Annotated[float, Field(gt=0.0, le=1.0, description="a number above 0, at most 1")]


class Closed(BaseModel):
    """Base of every model of a configuration: frozen, no unknown keys, no silent conversions of strings to numbers."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False, allow_inf_nan=False)


class Conflict(NamedTuple):
    """Keys whose values cannot stand together, and a message that names them and what is allowed."""

    keys: tuple[str, ...]
    message: str


class Impossible(ValueError):
    """A configuration whose keys are all well-formed and that still cannot work: every ``Conflict`` in it."""

    def __init__(self, conflicts: Iterable[Conflict]) -> None:
        self.conflicts = tuple(conflicts)
        super().__init__("\n".join(conflict.message for conflict in self.conflicts))
