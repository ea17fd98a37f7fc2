"""Setting: everything a schedule depends on besides its name, and the depth of a pipeline's warmup."""

from __future__ import annotations

from dataclasses import dataclass

from worker.errors import ScheduleError


@dataclass(frozen=True)
class Times:
    """Seconds (or any unit) a stage needs per minibatch. A backward in one piece takes input_grad + weight_grad."""

    forward: float = 1.0
    input_grad: float = 1.0
    weight_grad: float = 1.0
    update: float = 0.0


@dataclass(frozen=True)
class Setting:
    """What a generator may know.

    Args:
        stages: stages in a row, virtual ones not counted.
        minibatches: those of one rank, over one step under BSP, over the whole stream under ASP.
        in_flight: minibatches admitted at once; None: the schedule's own depth.
        replicas: ranks of each stage in the row; None: one each.
        chunks: virtual stages per rank; rank r holds stages r, r + stages, r + 2 stages ...; under
            zb-v, which turns back, r and 2 stages - 1 - r.
        per_update: under ASP, a rank's minibatches between two updates where the schedule accumulates; None: stages.
        times: per stage, for a schedule that is searched; None: all equal.
        hop: time a tensor needs from one rank to the next, in the unit of ``times``.
        updates: updates before the first of ``minibatches``, for schedules that say which weights a forward uses.
        weight_share: share of a minibatch's activations that only its WEIGHT_GRAD sets free.
    Raises:
        ScheduleError: if a count is less than 1.
    """

    stages: int
    minibatches: range
    in_flight: int | None = None
    replicas: tuple[int, ...] | None = None
    chunks: int = 1
    per_update: int | None = None
    times: tuple[Times, ...] | None = None
    hop: float = 0.0
    weight_share: float = 1.0
    updates: int = 0

    def __post_init__(self) -> None:
        for name in ("stages", "in_flight", "chunks", "per_update"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ScheduleError(f"{name} is {value}; it must be at least 1")

    def warmup_of(self, stage: int) -> int:
        """Forwards of ``stage`` before its first backward in 1F1B order."""
        if self.replicas is None:
            return num_warmup(stage, self.stages, self.in_flight)
        return self.ranks_from(stage) // self.replicas[stage]

    def ranks_from(self, stage: int) -> int:
        """Ranks of ``stage`` and of all behind it, but one: of which each has a minibatch before its own returns."""
        return sum((self.replicas or (1,) * self.stages)[stage:]) - 1


def num_warmup(stage: int, stages: int, in_flight: int | None = None) -> int:
    """Forwards of a stage before its first backward, one rank per stage (PipeDream, Narayanan et al. 2019).

    ``in_flight`` minibatches are admitted by the first stage; the number of stages when None. More than that spreads
    the surplus evenly over the cuts, which hides the time a tensor needs to cross them.
    """
    behind = stages - 1 - stage
    if in_flight is None or stages == 1:
        return behind
    if in_flight <= stages:
        return min(in_flight - 1, behind)
    return -(-(in_flight - 1) * behind // (stages - 1))
