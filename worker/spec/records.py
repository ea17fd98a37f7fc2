"""Records that one part of vpipe writes and another reads: steps, exits, results, and the states of a run."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from worker.spec.cluster import Section

State = Literal[
    "planning", "shipping", "starting", "running", "restarting", "succeeded", "failed", "stopped", "lost", "unknown"
]
FINAL: frozenset[State] = frozenset({"succeeded", "failed", "stopped", "lost"})
"""States that never change."""


class StepMetrics(Section):
    """One line of metrics/rank-N.jsonl: what one rank did in one step. Seconds are of that step alone."""

    step: int = Field(description="steps done, counted from 1; under asp every minibatch is a step")
    time: float = Field(description="Unix time at the step's end")
    samples: int = Field(description="sequences in this step, on all replicas of the stage")
    minibatches: int = Field(description="forwards that this rank ran in this step")
    loss: float | None = Field(None, description="mean loss of the step's targets; on the last stage only")
    other_losses: list[float] = Field(default_factory=list, description="further loss terms of the model")
    lr: float
    forward: float = Field(description="seconds in forwards")
    backward: float = Field(description="seconds in backwards, recomputation included")
    update: float = Field(description="seconds in clipping and the optimizer")
    wait: float = Field(description="seconds waiting for another rank or for data")
    seconds: float = Field(description="wall time since the previous step's end")
    memory: int = Field(description="peak bytes: resident set on a CPU, allocated on a GPU")
    grad_norm: float | None = Field(None, description="norm before clipping, where it was computed")


class RankExit(Section):
    """attempt-K/rank-N.exit.json: how a rank ended, written by hostd after its log is complete."""

    rank: int
    stage: int
    host: str
    device: str
    pid: int
    code: int | None = Field(description="exit status; None when a signal ended it")
    signal: int | None
    started: float
    ended: float
    ended_by_us: bool = Field(description="hostd ended it because the run was over")
    cause: str = Field(description="one line for the user")
    consequence: bool = Field(False, description="the rank itself says another rank's end was the reason")
    step: int | None = None
    last_lines: list[str] = Field(default_factory=list)


class StageResult(Section):
    """What one stage did over the whole run."""

    stage: int
    rank: int
    layers: int
    stage_seconds: float = Field(description="mean busy seconds per minibatch: forward, backward, update")
    idle_share: float = Field(description="share of the wall time after the first step in which the stage was not busy")
    peak_memory_bytes: int


class Result(Section):
    """result.json: the numbers a finished run ends with."""

    version: int = 1
    loss: float = Field(description="mean loss of the last steps (a twentieth of the run, at least 10)")
    baseline_loss: float = Field(description="loss of always guessing by how frequent each token is")
    samples_per_second: float
    steps: int
    seconds: float
    stages: list[StageResult]
    weights_sha256: str = Field(description="one digest over all parameters by full name, whatever the partition")
