"""What sections of cluster.yml are made of: strict immutable groups of values that say what does not fit together."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, model_validator

Ratio = Annotated[float, Field(ge=0.0, le=1.0)]
Count = Annotated[int, Field(ge=1)]
Probability = Annotated[float, Field(ge=0.0, lt=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
PathText = Annotated[str, Field(min_length=1)]


class Misfit(NamedTuple):
    """Values that are right alone and wrong together: the message, and their keys, the one to change first."""

    message: str
    keys: tuple[str, ...]


class Misfits(ValueError):
    """All that does not fit together in one section."""

    def __init__(self, found: list[Misfit]) -> None:
        super().__init__("; ".join(f"{misfit.keys[0]} {misfit.message}" for misfit in found))
        self.found = found


class Section(BaseModel):
    """A strict, immutable group of settings: unknown keys and wrong types are errors."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    def misfits(self) -> Iterator[Misfit]:
        """What does not fit together in this section; keys are dotted paths below it."""
        yield from ()

    @model_validator(mode="after")
    def _fits(self) -> Section:
        if found := list(self.misfits()):
            raise Misfits(found)
        return self


def listed(words: tuple[str, ...]) -> str:
    """``a, b or c``."""
    return f"{', '.join(words[:-1])} or {words[-1]}" if len(words) > 1 else words[0]
