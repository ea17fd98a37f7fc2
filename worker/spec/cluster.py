"""cluster.yml as typed values: one section per class, named after the module that obeys it.

Values are checked here; ``vpipe_cli.config`` adds the place of each mistake in the file. Numbers are strict: a string
is never taken for one. A field's description is the manual: ``vpipe config schema`` and ``vpipe init`` print it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, model_validator

Ratio = Annotated[float, Field(ge=0.0, le=1.0)]
Count = Annotated[int, Field(ge=1)]
Probability = Annotated[float, Field(ge=0.0, lt=1.0)]
Positive = Annotated[float, Field(gt=0.0)]


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


class BertSpec(Section):
    """BERT as a list of layers: embeddings, an attention and a feed-forward half per encoder layer, the head."""

    name: Literal["bert"] = Field("bert", description="the model family")
    hidden_size: Count = Field(128, description="width of the hidden state")
    num_layers: Count = Field(4, description="encoder layers; each is two layers of the pipeline")
    num_heads: Count = Field(4, description="attention heads; must divide hidden_size")
    intermediate_size: Count | None = Field(None, description="width of the feed-forward part; default 4 x hidden_size")
    dropout: Probability = Field(0.1, description="dropout of hidden states and of attention weights")
    sentence_order: bool = Field(False, description="also train to tell whether two passages stand in their own order")

    def misfits(self) -> Iterator[Misfit]:
        """Heads share the hidden state evenly."""
        if self.hidden_size % self.num_heads:
            message = f"is {self.num_heads} but must divide hidden_size {self.hidden_size}"
            yield Misfit(message, ("num_heads", "hidden_size"))

    @property
    def layer_count(self) -> int:
        """Number of layers a cut may fall between."""
        return 2 * self.num_layers + 2


class DataSpec(Section):
    """Where minibatches come from."""

    source: Literal["python-stdlib", "text"] = Field(
        "python-stdlib", description="python-stdlib: the interpreter's own .py files; text: your file or folder"
    )
    path: Annotated[str, Field(min_length=1)] | None = Field(None, description="the file or folder of `source: text`")
    sequence_length: Annotated[int, Field(ge=8)] = Field(128, description="tokens per sequence")
    minibatch_size: Count = Field(8, description="sequences per minibatch")
    vocab_size: Annotated[int, Field(ge=300)] = Field(
        8192, description="entries of the tokenizer trained on the corpus"
    )
    variable: bool = Field(
        False, description="cut each minibatch to its longest sequence; lengths then travel with the tensors"
    )
    mask_probability: Annotated[float, Field(gt=0.0, lt=1.0)] = Field(0.15, description="share of tokens to predict")

    def misfits(self) -> Iterator[Misfit]:
        """A path belongs to the source that reads one."""
        if self.source == "text" and self.path is None:
            yield Misfit("is text, which needs `path`: the file or folder to read", ("source", "path"))
        if self.source != "text" and self.path is not None:
            yield Misfit(f"belongs to source text, but source is {self.source}", ("path", "source"))


SYNC_MODES = {
    "1f1b": ("asp", "bsp"),
    "none": ("asp", "bsp"),
    "2bw": ("asp",),
    "accumulate": ("asp",),
    **dict.fromkeys(("gpipe", "interleaved", "zb-h1", "zb-h2", "zb-auto"), ("bsp",)),
}
"""The sync_modes of every schedule."""

REPLICATED = ("1f1b", "gpipe", "none")
"""Schedules whose stages may have several ranks."""


class PipelineSpec(Section):
    """How the model is cut and how minibatches flow through the cuts."""

    stages: Count | None = Field(None, description="number of stages; default: one per device in machines")
    partition: Literal["auto"] | list[Count] = Field(
        "auto", description="layers per stage, or auto to balance their cost"
    )
    recompute_ratio: Ratio | list[Ratio] = Field(
        0.0,
        description="share of a stage's layers, from its end, whose activations are recomputed; or one per stage",
    )
    sync_mode: Literal["asp", "bsp"] = Field(
        "asp", description="asp: update after every backward, with weight stashing; bsp: flush, then update"
    )
    schedule: Literal["1f1b", "gpipe", "interleaved", "zb-h1", "zb-h2", "zb-auto", "2bw", "accumulate", "none"] = Field(
        "1f1b",
        description="order of forwards and backwards; bsp: gpipe, 1f1b, interleaved (several stages per device), "
        "zb-h1, zb-h2, zb-auto; asp: 1f1b, 2bw, accumulate; none: one minibatch at a time",
    )
    minibatches_per_step: Count | None = Field(
        None, description="bsp, 2bw and accumulate: minibatches between two updates; default 8, or stages if more"
    )
    replicas: Count | Annotated[list[Count], Field(min_length=1)] = Field(
        1, description="ranks per stage that share its minibatches; or one number per stage"
    )
    in_flight: Literal["auto"] | Count = Field(
        "auto", description="minibatches admitted at once; auto: the schedule's own"
    )

    def misfits(self) -> Iterator[Misfit]:
        """Each sync_mode has its own keys; lists have one entry per stage."""
        if self.sync_mode not in SYNC_MODES[self.schedule]:
            needed = SYNC_MODES[self.schedule][0]
            yield Misfit(f"is {self.schedule}, which needs sync_mode {needed}", ("schedule", "sync_mode"))
        elif self.sync_mode == "asp" and self.schedule in ("1f1b", "none") and self.minibatches_per_step is not None:
            keys = ("minibatches_per_step", "sync_mode")
            yield Misfit(f"belongs to sync_mode bsp; asp with {self.schedule} updates after every minibatch", keys)
        if self.replicas != 1 and self.schedule not in REPLICATED:
            message = f"needs schedule {', '.join(REPLICATED)}; {self.schedule} runs one rank per stage"
            yield Misfit(message, ("replicas", "schedule"))
        ratios = self.recompute_ratio if isinstance(self.recompute_ratio, list) else [self.recompute_ratio]
        if self.schedule == "accumulate" and any(ratios):
            message = "needs another schedule: under accumulate a layer would be recomputed with newer weights"
            yield Misfit(message, ("recompute_ratio",))
        if self.in_flight != "auto" and self.schedule == "none":
            yield Misfit("must be left out: with schedule none one minibatch is in flight", ("in_flight", "schedule"))
        elif self.in_flight != "auto" and self.schedule == "1f1b" and self.replicas != 1:
            message = "must be left out: with replicas, 1f1b admits as many minibatches as there are ranks"
            yield Misfit(message, ("in_flight", "replicas"))
        for key in ("partition", "recompute_ratio", "replicas"):
            value = getattr(self, key)
            if self.stages is not None and isinstance(value, list) and len(value) != self.stages:
                message = f"has {_count(len(value), 'entry', 'entries')} for {_count(self.stages, 'stage')}"
                yield Misfit(message, (key, "stages"))


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


class RunSpec(Section):
    """How long to train, and the limits of waiting."""

    steps: Count = Field(200, description="optimizer updates; one per minibatch in asp")
    seed: Annotated[int, Field(ge=0, lt=2**63)] = Field(
        1, description="fixes initial weights, data order, masks and dropout"
    )
    threads: Literal["auto"] | Count = Field("auto", description="threads per rank; auto: cores divided by ranks")
    stall_timeout: Positive = Field(60.0, description="seconds a rank waits for another before it calls it stuck")
    start_timeout: Positive = Field(600.0, description="seconds for all ranks to be ready, data preparation included")


class ClusterSpec(Section):
    """One job: machines, model, data, pipeline, optimizer."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")] = Field(
        "job", description="names the runs: letters, digits, . _ and -, at most 64, the first a letter or digit"
    )
    machines: Annotated[list[str], Field(min_length=1)] = Field(
        description='devices in rank order: "cpu*2" is two CPU slots here, "localhost:0,1" two GPUs here'
    )
    engine: Literal["local"] = Field("local", description="where ranks run: local, as processes on this machine")
    model: BertSpec = Field(default_factory=BertSpec, description="what to train")
    data: DataSpec = Field(default_factory=DataSpec, description="what to train it on")
    pipeline: PipelineSpec = Field(default_factory=PipelineSpec, description="how it is cut and scheduled")
    optimizer: OptimizerSpec = Field(default_factory=OptimizerSpec, description="how it is updated")
    precision: Literal["fp32", "bf16", "fp16"] = Field(
        "fp32", description="fp32, or 16 bits in layers and between them with fp32 weights; fp16 scales its gradients"
    )
    run: RunSpec = Field(default_factory=RunSpec, description="how long, which seed, which limits")

    def misfits(self) -> Iterator[Misfit]:
        """Stages share the model's layers."""
        layers, stages, partition = self.model.layer_count, self.pipeline.stages, self.pipeline.partition
        if stages is not None and stages > layers:
            message = f"is {stages} but the model has {layers} layers; a stage needs at least one"
            yield Misfit(message, ("pipeline.stages", "model.num_layers"))
        if isinstance(partition, list) and sum(partition) != layers:
            message = f"adds up to {sum(partition)} but the model has {layers} layers"
            yield Misfit(message, ("pipeline.partition", "model.num_layers"))
        replicas = self.pipeline.replicas
        if self.pipeline.sync_mode == "asp" and isinstance(replicas, list) and replicas[0] != replicas[-1]:
            message = (
                f"is {replicas}: under asp the first and the last stage, which share the embedding, need equally many"
            )
            yield Misfit(message, ("pipeline.replicas", "pipeline.sync_mode"))
        for key, default in (("scale_lr_by_replicas", False), ("pipemare", None)):
            if self.pipeline.sync_mode == "bsp" and getattr(self.optimizer, key) != default:
                message = "belongs to sync_mode asp; under bsp all stages update at once, over the same minibatches"
                yield Misfit(message, (f"optimizer.{key}", "pipeline.sync_mode"))


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"
