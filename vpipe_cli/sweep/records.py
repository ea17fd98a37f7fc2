"""What a sweep's folder holds, as values: the definition that was typed, and a row for every trial that ended."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from worker.spec.records import State
from worker.spec.section import Section

TrialState = Literal[State, "waiting", "oom"]
"""That of its run; before it has one ``waiting``; ``oom`` where memory was not enough, which is a result."""


class AxisRecord(Section):
    """One key that is swept: as typed, and its dotted path."""

    name: str
    key: str


class Prediction(Section):
    """What the planner expects of a trial before it runs."""

    step_seconds: float | None = None
    memory_bytes: list[float] = Field(default_factory=list, description="per stage")
    fits: bool | None = Field(None, description="whether it fits the devices; None where nobody knows")
    why: str = ""


class Trial(Section):
    """One point of the grid."""

    number: int = Field(description="counted from 1 in the order of the grid")
    identity: str = Field(description="hash of the resolved config, the code and the image")
    values: list[str] = Field(description="of each axis, as YAML text")
    overrides: list[str] = Field(description="all key=value texts that make this trial of cluster.yml")
    slots: list[str] = Field(description="the devices it takes, host:device")
    partition: list[int]
    recompute_ratio: list[float]
    prediction: Prediction = Field(default_factory=Prediction)


class Definition(Section):
    """sweep.json: all that the controller needs to know."""

    version: int = 1
    sweep: str
    name: str
    created: float
    cwd: str
    path: str = Field(description="cluster.yml as named to `vpipe launch`")
    folder: str = Field(description="where relative paths in it begin")
    command: str = Field(description="what was typed")
    axes: list[AxisRecord]
    trials: list[Trial]
    order: list[str] = Field(description="identities in the order in which they run")
    choice: str | None = Field(None, description="identity of the trial that the planner would have chosen")
    parallel: int = 1
    lanes: list[list[str]] = Field(default_factory=list, description="parallel > 1: the machines of each lane")
    array: bool = Field(False, description="all trials are tasks of one array of Slurm")
    warmup: int | None = Field(None, description="first steps left out of throughput; None: a tenth, at least 1")
    fail_fast: bool = False
    seed: int = 1
    optimize: str | None = Field(None, description="the number by which Optuna chooses trials of the grid")
    budget: int | None = Field(None, description="with optimize: how many trials to run")


class Row(Section):
    """How a trial ended, or how it stands. Throughput leaves the warm-up out."""

    number: int
    identity: str
    run: str = ""
    state: TrialState = "waiting"
    step: int = 0
    steps: int = 0
    measured_steps: int = Field(0, description="steps that throughput is taken from")
    samples_per_second: float | None = None
    step_seconds: float | None = Field(None, description="the median")
    memory_bytes: list[int] = Field(default_factory=list, description="peak of each stage")
    idle: list[float] = Field(default_factory=list, description="share of the wall time, of each stage")
    loss: float | None = None
    seconds: float | None = Field(None, description="from the run's start to its end")
    cause: str = Field("", description="how it failed")
    stage: int | None = Field(None, description="which stage failed, or ran out of memory")
    permanent: bool = Field(False, description="it would fail the same way again")
    reused: str = Field("", description="the sweep that it was run in, if another")

    @property
    def peak(self) -> int | None:
        """Peak bytes of the worst stage."""
        return max(self.memory_bytes, default=None)

    @property
    def idle_share(self) -> float | None:
        """Mean over the stages."""
        return sum(self.idle) / len(self.idle) if self.idle else None

    @property
    def is_settled(self) -> bool:
        """Whether typing the same command again leaves it as it is."""
        return self.state in ("succeeded", "oom") or (self.state == "failed" and self.permanent)
