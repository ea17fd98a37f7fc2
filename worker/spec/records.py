"""Records that one part of vpipe writes and another reads: steps, exits, results, and the states of a run."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

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
    in_flight: int = Field(0, description="most minibatches at once that were run forward and not yet wholly backward")
    versions: int = Field(1, description="most versions of its weights that the rank held at once")


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
