"""Action: one thing one rank does. A schedule is a list of them per rank.

Printed, an action is its stage, its letter and its minibatch, as torch.distributed.pipelining writes it: ``0F1``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import Enum
from typing import NamedTuple


class Kind(str, Enum):
    """What a rank does. A backward is either one BACKWARD, or an INPUT_GRAD and later a WEIGHT_GRAD."""

    FORWARD = "F"
    BACKWARD = "B"
    INPUT_GRAD = "I"
    WEIGHT_GRAD = "W"
    UPDATE = "U"


class Action(NamedTuple):
    """What one (virtual) stage does with one minibatch; for an update, the last minibatch it covers.

    ``version`` is set on a forward that must not use the newest weights: the number of updates behind those it uses.
    """

    stage: int
    kind: Kind
    minibatch: int
    version: int | None = None

    def __str__(self) -> str:
        return f"{self.stage}{self.kind.value}{self.minibatch}"


def brief(actions: Iterable[Action]) -> str:
    """The actions of one rank on one line, without their stage: ``F0 F1 B0 U0``."""
    return " ".join(f"{action.kind.value}{action.minibatch}" for action in actions)


def picture(ranks: Sequence[Sequence[Action]]) -> str:
    """One line a rank, first stage first."""
    return "\n".join(brief(actions) for actions in ranks)
