"""job.json and plan.json: a run as resolved values that every rank reads, and the digest they agree on."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from worker.spec.cluster import ClusterSpec, Section

SCHEMA = 1


class Predicted(Section):
    """What the planner expects of a plan, from measured layers: seconds of a step, and of each stage its numbers."""

    step_seconds: float
    lower_bound_seconds: float = Field(description="no plan could be below")
    stage_seconds: list[float] = Field(description="busy seconds per minibatch of a rank, updates included")
    memory_bytes: list[int] = Field(description="of a rank at its peak")


class StageTimes(Section):
    """Measured seconds of a stage's actions for one minibatch."""

    forward: float
    input_grad: float
    weight_grad: float


def home(stage: int, row: int, folds: bool) -> int:
    """The place in a row of a stage where each place holds several: row after row, or every second one backwards."""
    turn, place = divmod(stage, row)
    return row - 1 - place if folds and turn % 2 else place


class Plan(Section):
    """Which layers run where, and how much of each stage is recomputed."""

    partition: list[int] = Field(description="layers per stage")
    recompute_ratio: list[float] = Field(description="share of recomputed layers per stage")
    reason: str = Field(description="who chose the partition, and by which cost")
    replicas: list[int] = Field(description="ranks per stage; default one each")
    chunks: int = Field(1, description="stages per rank; over 1, stage s shares its ranks with s + stages / chunks ...")
    folds: bool = Field(False, description="the way back: stage s shares its ranks with stage stages - 1 - s (zb-v)")
    predicted: Predicted | None = Field(None, description="where layers were measured")
    times: list[StageTimes] | None = Field(
        None, description="of every stage, where layers were measured and the schedule is searched for their times"
    )

    @model_validator(mode="before")
    @classmethod
    def _one_rank_per_stage(cls, value: dict[str, Any]) -> dict[str, Any]:
        return {"replicas": [1] * len(value["partition"]), **value}

    @property
    def stages(self) -> int:
        """Number of stages."""
        return len(self.partition)

    @property
    def ranks(self) -> int:
        """Number of ranks."""
        return sum(self.replicas[: self.row])

    @property
    def row(self) -> int:
        """Stages in a row, each on ranks of its own; where ranks hold several, the next one begins with the first."""
        return self.stages // self.chunks

    def ranks_of(self, stage: int) -> range:
        """The ranks that hold a stage, one for each replica."""
        place = home(stage, self.row, self.folds)
        first = sum(self.replicas[:place])
        return range(first, first + self.replicas[place])

    def stages_of(self, rank: int) -> list[int]:
        """The stages that a rank holds, in order."""
        return [stage for stage in range(self.stages) if rank in self.ranks_of(stage)]

    def rank_of(self, stage: int, minibatch: int) -> int:
        """The rank that runs ``minibatch`` in ``stage``: replicas take turns."""
        ranks = self.ranks_of(stage)
        return ranks[minibatch % len(ranks)]

    def layers_of(self, stage: int) -> range:
        """Indices of the layers of a stage."""
        start = sum(self.partition[:stage])
        return range(start, start + self.partition[stage])


class Placement(Section):
    """One rank: the stage it runs and the device it runs on."""

    rank: int
    stage: int
    host: str
    device: str = Field(description='"cpu" or "cuda:N"')
    threads: int


class Job(Section):
    """Everything a rank needs to know, written once to job.json."""

    version: int = SCHEMA
    run: str
    spec: ClusterSpec
    plan: Plan
    ranks: list[Placement]

    @property
    def loss_rank(self) -> int:
        """The first rank of the last stage, which measures the loss."""
        return self.plan.ranks_of(self.plan.stages - 1)[0]

    def digest(self) -> str:
        """SHA-256 over everything that must be equal on all ranks, as hex."""
        text = self.model_dump_json(exclude={"run"}) + code_digest()
        return hashlib.sha256(text.encode()).hexdigest()


@cache
def code_digest() -> str:
    """SHA-256 over the worker's source files, as hex: two ranks with other code must not train together."""
    root = Path(__file__).resolve().parent.parent
    total = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        total.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes() + b"\0")
    return total.hexdigest()
