"""cluster.yml as typed values: one section per class, named after the module that obeys it; models and data next door.

Values are checked here; ``vpipe_cli.config`` adds the place of each mistake in the file. Numbers are strict: a string
is never taken for one. A field's description is the manual: ``vpipe config schema`` and ``vpipe init`` print it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field, model_validator

from worker.spec.checkpoint import CheckpointSpec
from worker.spec.container import ContainerSpec
from worker.spec.data import AnyData, EntryDataSpec, ParallelSpec
from worker.spec.data import DataSpec as DataSpec
from worker.spec.evaluate import EvaluateSpec
from worker.spec.model import BertSpec as BertSpec
from worker.spec.model import HfSpec, ModelSpec, Task
from worker.spec.pipeline import PipelineSpec as PipelineSpec
from worker.spec.planner import PlannerSpec
from worker.spec.section import Count, Misfit, Positive, Probability, listed
from worker.spec.section import Misfits as Misfits
from worker.spec.section import Section as Section
from worker.spec.slurm import SlurmSpec
from worker.spec.ssh import SshSpec

ADAPTIVE = ("adamw", "adam", "nadam", "lamb", "muon")
BELONGS = {
    "betas": ("name", ADAPTIVE),
    "eps": ("name", ADAPTIVE),
    "momentum": ("name", ("muon", "sgd")),
    "nesterov": ("name", ("sgd",)),
    "power": ("schedule", ("polynomial",)),
    "decay": ("schedule", ("step", "exponential")),
    "decay_every": ("schedule", ("step", "exponential")),
}
"""Keys of the optimizer that only some update rules or courses of the rate have."""


class OptimizerSpec(Section):
    """The update rule, its learning rate over time, and clipping."""

    name: Literal["adamw", "adam", "nadam", "lamb", "muon", "sgd"] = Field(
        "adamw", description="the update rule; muon is for hidden matrices and leaves all other parameters to adamw"
    )
    lr: Positive = Field(1e-3, description="the highest learning rate")
    betas: tuple[Probability, Probability] = Field((0.9, 0.999), description="all but sgd")
    eps: Positive = Field(1e-8, description="all but sgd")
    momentum: Probability | None = Field(None, description="sgd: default 0; muon: default 0.95")
    nesterov: bool = Field(False, description="sgd with momentum: look ahead along it")
    weight_decay: Annotated[float, Field(ge=0.0)] = Field(
        0.01, description="decay of weights; biases and norms excepted"
    )
    schedule: Literal["constant", "step", "linear", "polynomial", "cosine", "exponential", "inverse_sqrt"] = Field(
        "constant",
        description="course of the rate after warmup; linear, polynomial and cosine reach 0 at the end of the run",
    )
    warmup_steps: Annotated[int, Field(ge=0)] = Field(0, description="updates over which the rate rises from 0 to lr")
    power: Positive = Field(2.0, description="polynomial: exponent of the share of the run that is left")
    decay: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        0.1, description="step and exponential: factor by which the rate falls over decay_every updates"
    )
    decay_every: Count | None = Field(
        None, description="step: updates between two falls; exponential: default all updates after warmup"
    )
    clip_grad_norm: Positive | None = Field(
        None, description="limit of the gradient's norm: over all stages in bsp, per stage in asp"
    )
    scale_lr_by_replicas: bool = Field(
        False, description="asp: a stage's rate times its replicas, divided by those of the first stage"
    )
    pipemare: Count | None = Field(
        None,
        description="asp: steps until a stage has its full rate, which at first is divided by its delay in updates",
    )

    def misfits(self) -> Iterator[Misfit]:
        """Each update rule and each course has its own keys."""
        for key, (choice, users) in BELONGS.items():
            chosen = getattr(self, choice)
            if getattr(self, key) != type(self).model_fields[key].default and chosen not in users:
                yield Misfit(f"belongs to {choice} {' or '.join(users)}, but {choice} is {chosen}", (key, choice))
        if self.schedule == "step" and self.decay_every is None:
            yield Misfit("is step, which needs `decay_every`: updates between two falls", ("schedule", "decay_every"))
        if self.nesterov and self.name == "sgd" and not self.momentum:
            yield Misfit("needs a `momentum` above 0 to look along", ("nesterov", "momentum"))

    @model_validator(mode="before")
    @classmethod
    def _betas_as_list(cls, value: object) -> object:
        """YAML has lists, not tuples; strict mode would refuse them."""
        if isinstance(value, dict) and isinstance(value.get("betas"), list):
            return {**value, "betas": tuple(value["betas"])}
        return value


class TraceSpec(Section):
    """Which steps are recorded span by span, for ``vpipe trace`` and ``vpipe report``."""

    window: Literal["auto"] | Annotated[int, Field(ge=0)] = Field(
        "auto",
        description="steps recorded at a time; auto: 2, or 8 times the stages where a step is one minibatch; 0: none",
    )
    interval: Literal["auto"] | Count = Field(
        "auto", description="steps from one recording to the next; auto: a twentieth of the run, at least 100"
    )
    torch: bool = Field(
        False, description="also let torch profile its operators in the first steps recorded, which slows those down"
    )


class RunSpec(Section):
    """How long to train, and the limits of waiting."""

    steps: Count = Field(200, description="optimizer updates; one per minibatch in asp")
    seed: Annotated[int, Field(ge=0, lt=2**63)] = Field(
        1, description="fixes initial weights, data order, masks and dropout"
    )
    threads: Literal["auto"] | Count = Field("auto", description="threads per rank; auto: cores divided by ranks")
    stall_timeout: Positive = Field(60.0, description="seconds without progress of any rank until the run is stuck")
    first_step_timeout: Positive | None = Field(
        None, description="the same for the first step of an attempt, where it is longer; null: stall_timeout"
    )
    stall_floor: Positive | None = Field(
        60.0,
        description="stall_timeout falls to 20 times the slowest of recent steps, not below these seconds; null: never",
    )
    start_timeout: Positive = Field(600.0, description="seconds for all ranks to be ready, data preparation included")
    on_nan: Literal["stop", "skip"] = Field(
        "stop", description="a loss or gradient that is not finite: stop ends the run, skip leaves the update out"
    )
    compare_replicas: Count | None = Field(
        100, description="updates between two comparisons of a stage's weights over its replicas; null: never"
    )
    max_restarts: Annotated[int, Field(ge=0, le=1000)] = Field(
        0, description="new attempts after one that failed, each from the newest checkpoint"
    )
    min_ranks: Count | None = Field(
        None,
        description="resumed while machines are gone and no spare is left: the fewest ranks to go on with, in a "
        "new plan; null: only with all of them",
    )
    log_limit: Annotated[int, Field(ge=0, le=2**20)] = Field(
        1024, description="MiB of a rank's log that are kept, its first half and its newest part; 0: all of it"
    )

    @property
    def wait_limit(self) -> float:
        """Seconds a rank itself waits for another: longer than stall_timeout, so that hostd, who sees all, is first."""
        return 1.25 * max(self.stall_timeout, self.first_step_timeout or 0.0) + 5.0


class ClusterSpec(Section):
    """One job: machines, model, data, pipeline, optimizer."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")] = Field(
        "job", description="names the runs: letters, digits, . _ and -, at most 64, the first a letter or digit"
    )
    machines: Annotated[list[str], Field(min_length=1)] = Field(
        description='devices in rank order: "cpu*2" is two CPU slots here, "localhost:0,1" two GPUs here, '
        '"gpu[1-2]:0-3" four GPUs on each of two machines that SSH reaches'
    )
    spares: list[str] = Field(
        default_factory=list,
        description="more machines that SSH reaches; `vpipe resume` puts them in the place of those that are gone",
    )
    engine: Literal["local", "ssh", "slurm"] = Field(
        "local",
        description="where ranks run: local, as processes on this machine; ssh, on machines that SSH reaches; slurm, "
        "as a job of Slurm; default: ssh where machines names another machine",
    )
    ssh: SshSpec = Field(default_factory=SshSpec, description="how other machines are reached; default: as ssh does")
    slurm: SlurmSpec = Field(default_factory=SlurmSpec, description="what the job asks Slurm for")
    python: Annotated[str, Field(min_length=1)] = Field(
        "python3", description="ssh and slurm without container: the interpreter of the ranks, one that has torch"
    )
    container: ContainerSpec | None = Field(
        None, description="the image that ranks run in; default: none, they run in the Python of each machine"
    )
    model: ModelSpec = Field(default_factory=BertSpec, description="what to train")
    data: AnyData = Field(default_factory=DataSpec, description="what to train it on")
    pipeline: PipelineSpec = Field(default_factory=PipelineSpec, description="how it is cut and scheduled")
    planner: PlannerSpec = Field(default_factory=PlannerSpec, description="what `auto` in pipeline is worked out from")
    optimizer: OptimizerSpec = Field(default_factory=OptimizerSpec, description="how it is updated")
    precision: Literal["fp32", "bf16", "fp16"] = Field(
        "fp32", description="fp32, or 16 bits in layers and between them with fp32 weights; fp16 scales its gradients"
    )
    checkpoint: CheckpointSpec = Field(
        default_factory=CheckpointSpec, description="when the run is saved, and how much of it is kept"
    )
    trace: TraceSpec = Field(default_factory=TraceSpec, description="which steps are recorded span by span")
    evaluate: EvaluateSpec = Field(default_factory=EvaluateSpec, description="when it is measured, and on what")
    run: RunSpec = Field(default_factory=RunSpec, description="how long, which seed, which limits")

    def misfits(self) -> Iterator[Misfit]:
        """Stages share the model's layers."""
        yield from self._strangers()
        if self.spares and self.engine != "ssh":
            yield Misfit(f"belongs to engine ssh, but engine is {self.engine}", ("spares", "engine"))
        layers, stages, partition = self.model.layer_count, self.pipeline.stages, self.pipeline.partition
        if layers is not None and stages is not None and stages > layers:
            message = f"is {stages} but the model has {layers} layers; a stage needs at least one"
            yield Misfit(message, ("pipeline.stages", "model.num_layers"))
        if layers is not None and isinstance(partition, list) and sum(partition) != layers:
            message = f"adds up to {sum(partition)} but the model has {layers} layers"
            yield Misfit(message, ("pipeline.partition", "model.num_layers"))
        replicas = self.pipeline.replicas
        ends_differ = isinstance(replicas, list) and replicas[0] != replicas[-1]
        if self.pipeline.sync_mode == "asp" and self.model.ties_ends and ends_differ:
            message = (
                f"is {replicas}: under asp the first and the last stage, which share the embedding, need equally many"
            )
            yield Misfit(message, ("pipeline.replicas", "pipeline.sync_mode"))
        for key, default in (("scale_lr_by_replicas", False), ("pipemare", None)):
            if self.pipeline.sync_mode == "bsp" and getattr(self.optimizer, key) != default:
                message = "belongs to sync_mode asp; under bsp all stages update at once, over the same minibatches"
                yield Misfit(message, (f"optimizer.{key}", "pipeline.sync_mode"))

    @property
    def task(self) -> Task | None:
        """What the minibatches hold: as the model takes it, else as the data gives it; None where only code knows."""
        return self.model.task or next(iter(self.data.gives), None)

    def _strangers(self) -> Iterator[Misfit]:
        """A model that cannot learn from the data."""
        task, gives = self.model.task, self.data.gives
        if task is not None and gives and task not in gives:
            named = getattr(self.model, "name", "the model")
            source = getattr(self.data, "source", "it")
            message = f"is {source}, which gives {listed(gives)}, but {named} learns from {task}; {_SOURCES[task]}"
            yield Misfit(message, ("data.source", "model.name"))
        if self.evaluate.bleu and not isinstance(self.data, ParallelSpec | EntryDataSpec):
            source = getattr(self.data, "source", "it")
            yield Misfit(
                f"compares sentences, and data.source is {source}; parallel has some", ("evaluate.bleu", "data.source")
            )
        if isinstance(self.model, HfSpec) and self.data.varies:
            yield Misfit(
                "must be false: hf models are cut for sequences of one length", ("data.variable", "model.name")
            )


_SOURCES: dict[Task, str] = {
    **dict.fromkeys(("causal-lm", "masked-lm", "masked-lm-pairs"), "sources of that: python-stdlib, text, jsonl, hf"),
    "translation": "sources of that: parallel, synthetic",
    "images": "sources of that: images, synthetic",
}
