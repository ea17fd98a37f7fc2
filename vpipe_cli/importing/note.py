"""What is to be said of an import beside the file it makes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["left out", "changed", "not needed"]


@dataclass(frozen=True)
class Note:
    """One key of the old files that has no exact equal here.

    ``left out``: what it asked for is not in cluster.yml; ``changed``: it is, in another form; ``not needed``: the old
    program did not use it, or vpipe does without. ``where`` is file:line:column, or the file alone.
    """

    kind: Kind
    key: str
    where: str
    why: str

    def __str__(self) -> str:
        return f"{self.where}: {self.key}: {self.why}"
