"""Records that one part of vpipe writes and another reads: steps, exits, results, and the states of a run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from pydantic import ConfigDict, Field, TypeAdapter

from worker.spec.cluster import Section

State = Literal[
    "planning",
    "shipping",
    "pending",
    "starting",
    "running",
    "restarting",
    "succeeded",
    "failed",
    "stopped",
    "lost",
    "unknown",
]
FINAL: frozenset[State] = frozenset({"succeeded", "failed", "stopped", "lost"})
"""States that never change."""


@dataclass(slots=True)
class StepMetrics:
    """One line of metrics/rank-N.jsonl: what one rank did in one step. Seconds are of that step alone.

    Checked where it is read, not where it is made: a step may be over in a millisecond.
    """

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    step: int
    """Steps done, counted from 1; under asp every minibatch is a step."""
    time: float
    """Unix time at the step's end."""
    samples: int
    """Sequences in this step, on all replicas of the stage."""
    minibatches: int
    """Forwards that this rank ran in this step."""
    lr: float
    forward: float
    """Seconds in forwards."""
    backward: float
    """Seconds in backwards, recomputation included."""
    update: float
    """Seconds in clipping and the optimizer."""
    wait: float
    """Seconds waiting for another rank or for data."""
    seconds: float
    """Wall time since the previous step's end."""
    memory: int
    """Peak bytes: resident set on a CPU, allocated on a GPU."""
    loss: float | None = None
    """Mean loss of the step's targets; on the last stage only."""
    other_losses: list[float] = field(default_factory=list)
    """Further loss terms of the model."""
    grad_norm: float | None = None
    """Norm before clipping, where it was computed."""
    in_flight: int = 0
    """Most minibatches at once that were run forward and not yet wholly backward."""
    versions: int = 1
    """Most versions of its weights that the rank held at once."""

    @classmethod
    def read(cls, line: str | bytes) -> StepMetrics:
        """What ``line`` gave. Raises ValueError where the line is torn or another's."""
        return _STEP.validate_json(line)

    def line(self) -> str:
        """It as JSON on one line, without what is as by default."""
        return _STEP.dump_json(self, exclude_defaults=True).decode()


_STEP = TypeAdapter(StepMetrics)


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
    permanent: bool = Field(False, description="the rank itself says that a restart would end the same way")
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
    predicted_seconds: float | None = Field(None, description="what the planner expected of stage_seconds")
    predicted_memory_bytes: int | None = Field(None, description="what it expected of peak_memory_bytes")


class Evaluation(Section):
    """What one evaluation found; also an event of the run."""

    step: int = Field(description="steps done before it")
    minibatches: int
    targets: int = Field(description="what was to be predicted: tokens or pictures")
    loss: float = Field(description="mean over the targets, in nats; of the first loss term")
    losses: dict[str, float] = Field(description="all loss terms by name")
    perplexity: float | None = Field(None, description="of text: e to the loss")
    accuracy: float | None = Field(None, description="share of the targets that were the likeliest (top-1)")
    top5: float | None = Field(None, description="share of the targets that were among the five likeliest")
    bleu: float | None = Field(None, description="of translations, where they were asked for")
    held_out: str | None = Field(None, description="the data it is of; None: the training data")

    def __str__(self) -> str:
        """In one line for people."""
        parts = [f"loss {self.loss:.4f}"]
        parts += [f"perplexity {self.perplexity:.2f}"] if self.perplexity is not None else []
        parts += [f"accuracy {100 * self.accuracy:.2f} %"] if self.accuracy is not None else []
        parts += [f"top-5 {100 * self.top5:.2f} %"] if self.top5 is not None else []
        parts += [f"BLEU {self.bleu:.2f}"] if self.bleu is not None else []
        where = self.held_out or "the training data"
        return f"step {self.step}: {', '.join(parts)} ({self.targets} targets of {where})"


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
    step_seconds: float | None = Field(None, description="mean wall time of a step, the first left out")
    predicted_step_seconds: float | None = Field(None, description="what the planner expected of it")
    records_left_out: int = Field(
        0, description="by on_bad_record: skip, of this attempt; pictures and HDF5 each time that they came up"
    )
