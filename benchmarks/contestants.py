"""Who is measured: vpipe, its peers, and the limit, each as something a rank runs again and again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed import pipelining
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from benchmarks.layers import Workload
from worker import compiling, models, optimizer
from worker.build import Builder
from worker.communication import Address, Communicator, Expected
from worker.data.base import TensorSpec
from worker.feed import Feeder
from worker.process import cache_folder
from worker.schedule import Kind
from worker.schedule.job import minibatches_per_step, prove, rank_actions
from worker.spec.cluster import ClusterSpec, OptimizerSpec, PipelineSpec, RunSpec
from worker.spec.job import Job, Placement, Plan
from worker.spec.records import StepMetrics
from worker.trace import Stopwatch
from worker.update_rules import FusedAdam

CPU = torch.device("cpu")
CHUNKS = 2
"""Stages per rank of schedules that want several."""
OPTIMIZER = OptimizerSpec(name="adamw", lr=1e-4)
SEED = 1
TORCH_SCHEDULES: dict[str, Any] = {
    "gpipe": pipelining.ScheduleGPipe,
    "1f1b": pipelining.Schedule1F1B,
    "interleaved": pipelining.ScheduleInterleaved1F1B,
    "interleaved-zb": pipelining.ScheduleInterleavedZeroBubble,
    "zb-v": pipelining.ScheduleZBVZeroBubble,
}
"""Those of torch.distributed.pipelining, by the name of vpipe's nearest."""


@dataclass(frozen=True)
class Entry:
    """One contestant of a case, as a value.

    Args:
        runtime: vpipe, torch, ddp, one-process, bare, or limit.
        minibatches: how many one run takes.
        per_update: minibatches between two updates; under BSP a run may be several steps.
        rule: the optimizer.
        compiles: with ``pipeline.compile``; vpipe only.
    """

    runtime: str
    sync_mode: str
    schedule: str
    minibatches: int
    per_update: int
    in_flight: int | None = None
    recompute_ratio: float = 0.0
    rule: OptimizerSpec = OPTIMIZER
    compiles: bool = False

    @property
    def peer(self) -> str:
        """The schedule of torch.distributed.pipelining it is compared with."""
        nearest = {"zb-h1": "interleaved-zb", "zb-h2": "interleaved-zb", "zb-auto": "interleaved-zb"}
        name = nearest.get(self.schedule, self.schedule)
        return name if name in TORCH_SCHEDULES else "1f1b"

    def plan(self, workload: Workload, ranks: int) -> Plan:
        """Which layers run where."""
        chunks = CHUNKS if self.schedule in ("interleaved", "interleaved-zb", "zb-v") else 1
        return Plan(
            partition=workload.partition(ranks * chunks),
            recompute_ratio=[self.recompute_ratio] * ranks * chunks,
            reason="a benchmark",
            replicas=[1] * ranks * chunks,
            chunks=chunks,
            folds=self.schedule == "zb-v",
        )

    def job(self, workload: Workload, ranks: int) -> Job:
        """vpipe's job. Raises ValidationError or ScheduleError where vpipe does not offer it."""
        accumulates = self.sync_mode == "bsp" or self.per_update > 1
        pipeline = PipelineSpec.model_validate(
            {
                "sync_mode": self.sync_mode,
                "schedule": self.schedule,
                "minibatches_per_step": self.per_update if accumulates else None,
                "in_flight": self.in_flight or "auto",
                "compile": self.compiles,
            }
        )
        run = RunSpec(steps=self.minibatches // self.per_update, seed=SEED, stall_timeout=60.0)
        spec = ClusterSpec(machines=["cpu"], pipeline=pipeline, optimizer=self.rule, run=run)
        plan = self.plan(workload, ranks)
        prove(spec, plan)
        places = [
            Placement(rank=rank, stage=plan.stages_of(rank)[0], host="localhost", device="cpu", threads=1)
            for rank in range(ranks)
        ]
        return Job(run="benchmark", spec=spec, plan=plan, ranks=places)


def contestant(entry: Entry, workload: Workload, ranks: int, rank: int) -> Callable[[], None]:
    """What this rank runs for ``entry``: all ranks at once, from a barrier to the last one's end."""
    if entry.runtime == "vpipe":
        return Vpipe(entry.job(workload, ranks), workload, rank)
    if entry.runtime == "torch":
        return Torch(entry, workload, ranks, rank)
    if entry.runtime == "ddp":
        return DataParallel(entry, workload, ranks)
    if entry.runtime == "bare":
        return Bare(entry, workload, ranks, rank)
    if entry.runtime == "one-process":
        return OneProcess(entry, workload, ranks) if rank == 0 else _nothing
    return Alone(entry, workload, entry.plan(workload, ranks), rank)


def _nothing() -> None:
    """Other ranks while one works."""


class Vpipe:
    """The runtime that ``vpipe launch`` runs, fed with the workload."""

    def __init__(self, job: Job, workload: Workload, rank: int) -> None:
        waiting = Stopwatch()
        if job.spec.pipeline.compile:
            compiling.prepare(cache_folder())
        builder = Builder(job, workload.model, workload.source.signature, rank, CPU)
        feed = Feeder(workload.source, minibatches_per_step(job.spec), CPU, waiting) if rank == 0 else None
        self._executor = builder.executor(feed, waiting, _ignore)
        self._job, self._rank = job, rank
        self._done = 0

    def __call__(self) -> None:
        """All steps of the job; numbers of minibatches and versions go on from the run before."""
        first, spec = self._done, self._job.spec
        self._done += spec.run.steps
        run = spec.run.model_copy(update={"steps": self._done})
        longer = spec.model_copy(update={"run": run})
        self._executor.run(rank_actions(longer, self._job.plan, self._rank, first))


def _ignore(step: StepMetrics) -> None:
    """Nobody reads a benchmark's metrics."""


class Part:
    """Some layers in a row as plain PyTorch: the same modules and the same optimizer as vpipe's."""

    def __init__(self, workload: Workload, layers: range) -> None:
        chosen = [(workload.model.layers[index].name, workload.model.layers[index].build()) for index in layers]
        for name, module in chosen:
            models.initialise(name, module, SEED)
        self.is_last = layers.stop == len(workload.model.layers)
        self._loss = chosen.pop()[1] if self.is_last else None
        self.body = nn.Sequential(*(module for _, module in chosen))

    def loss(self, output: Tensor, labels: Tensor) -> Tensor:
        """The sum over the targets."""
        assert self._loss is not None
        return cast(Tensor, self._loss(output, labels)).sum()


class Training:
    """What all contestants but vpipe share: the data, the loss weight, and the update."""

    def __init__(self, entry: Entry, workload: Workload, parts: list[Part]) -> None:
        self.inputs, self.labels = workload.source.whole(1)
        self.weight = 1 / (workload.source.minibatch(0).counts[0] * entry.per_update)
        self.entry = entry
        named = {f"{i}.{name}": p for i, part in enumerate(parts) for name, p in part.body.named_parameters()}
        self.optimizer = _torchs(optimizer.build(entry.rule, named))

    def update(self) -> None:
        """The optimizer's step."""
        if self.optimizer is not None:
            self.optimizer.step()
            self.optimizer.zero_grad()

    def updates_after(self) -> Iterator[bool]:
        """For each minibatch of a run, whether an update follows it."""
        for number in range(1, self.entry.minibatches + 1):
            yield number % self.entry.per_update == 0


def _torchs(rule: Optimizer | None) -> Optimizer | None:
    """torch's own in place of vpipe's Adam, for that is what anybody without vpipe has."""
    if not isinstance(rule, FusedAdam):
        return rule
    groups = [{key: group[key] for key in ("params", "weight_decay")} for group in rule.param_groups]
    return torch.optim.AdamW(groups, lr=rule.defaults["lr"], fused=True)


class Alone(Training):
    """The limit: a rank's own layers, on tensors that are there already, as if all others were infinitely fast."""

    def __init__(self, entry: Entry, workload: Workload, plan: Plan, rank: int) -> None:
        stage = plan.stages_of(rank)[0]
        self._part, self._is_first = Part(workload, plan.layers_of(stage)), stage == 0
        super().__init__(entry, workload, [self._part])
        self._gradient = torch.ones_like(self.inputs)

    def __call__(self) -> None:
        """Forward and backward of each minibatch in turn."""
        for update in self.updates_after():
            hidden = self.inputs.detach().requires_grad_(not self._is_first)
            output = self._part.body(hidden)
            if self._part.is_last:
                torch.autograd.backward(self._part.loss(output, self.labels) * self.weight)
            else:
                torch.autograd.backward(output, self._gradient)
            if update:
                self.update()


class Bare(Training):
    """vpipe's actions and its messages, with plain PyTorch between them: what a pipeline costs without any runtime.

    It has no weight stash, so its layers must be such as need no weights in their backward.
    """

    def __init__(self, entry: Entry, workload: Workload, ranks: int, rank: int) -> None:
        job = entry.job(workload, ranks)
        self._part, self._rank, self._is_first = Part(workload, job.plan.layers_of(rank)), rank, rank == 0
        super().__init__(entry, workload, [self._part])
        self._actions = list(Builder(job, workload.model, workload.source.signature, rank, CPU).actions())
        self._spec = TensorSpec(tuple(self.inputs.shape), self.inputs.dtype)
        self._wire = Communicator(["forward", "back"], CPU, 60.0, Stopwatch(), window=2 * ranks)
        self._graphs: dict[int, tuple[Tensor, Tensor]] = {}
        self._runs = 0

    def __call__(self) -> None:
        """All actions once; minibatches are numbered on, so that no message is taken for one of the run before."""
        self._wire.connect()
        first = self._runs * self.entry.minibatches
        self._runs += 1
        for action in self._actions:
            if action.kind is Kind.UPDATE:
                self.update()
            else:
                (self._forward if action.kind is Kind.FORWARD else self._backward)(first + action.minibatch)
        self._wire.finish()

    def _forward(self, number: int) -> None:
        given = self.inputs.detach() if self._is_first else self._receive("forward", self._rank - 1, number)
        hidden = given.requires_grad_(not self._is_first)
        output = self._part.body(hidden)
        if self._part.is_last:
            output = self._part.loss(output, self.labels) * self.weight
        else:
            self._wire.send(output, Address("forward", self._rank, self._rank + 1, number))
        self._graphs[number] = hidden, output

    def _backward(self, number: int) -> None:
        gradient = None if self._part.is_last else self._receive("back", self._rank + 1, number)
        hidden, output = self._graphs.pop(number)
        torch.autograd.backward(output, gradient)
        if hidden.grad is not None:
            self._wire.send(hidden.grad, Address("back", self._rank, self._rank - 1, number))

    def _receive(self, what: str, source: int, number: int) -> Tensor:
        return self._wire.post(Expected(Address(what, source, self._rank, number), self._spec))()


class OneProcess(Training):
    """The whole model in one process with all cores; the other ranks wait."""

    def __init__(self, entry: Entry, workload: Workload, threads: int) -> None:
        self._part, self._threads = Part(workload, range(len(workload.model.layers))), threads
        super().__init__(entry, workload, [self._part])

    def __call__(self) -> None:
        """Plain gradient accumulation."""
        torch.set_num_threads(self._threads)
        for update in self.updates_after():
            torch.autograd.backward(self._part.loss(self._part.body(self.inputs), self.labels) * self.weight)
            if update:
                self.update()
        torch.set_num_threads(1)


class DataParallel(Training):
    """The whole model on every rank, minibatches dealt out, gradients reduced once per update."""

    def __init__(self, entry: Entry, workload: Workload, ranks: int) -> None:
        self._part, self._ranks = Part(workload, range(len(workload.model.layers))), ranks
        super().__init__(entry, workload, [self._part])
        self._module = DistributedDataParallel(self._part.body)

    def __call__(self) -> None:
        """This rank's share of each update's minibatches; only the last of them communicates."""
        share = self.entry.per_update // self._ranks
        for _ in range(self.entry.minibatches // self.entry.per_update):
            for number in range(share):
                with nullcontext() if number == share - 1 else self._module.no_sync():
                    # DDP takes the mean over ranks; the weight makes it the mean over targets all the same.
                    loss = self._part.loss(self._module(self.inputs), self.labels)
                    torch.autograd.backward(loss * self.weight * self._ranks)
            self.update()


class Torch(Training):
    """torch.distributed.pipelining: a flush every ``per_update`` minibatches."""

    def __init__(self, entry: Entry, workload: Workload, ranks: int, rank: int) -> None:
        plan = entry.plan(workload, ranks)
        own = plan.stages_of(rank)
        parts = [Part(workload, plan.layers_of(stage)) for stage in own]
        super().__init__(entry, workload, parts)
        stages: Any = [
            pipelining.PipelineStage(part.body, stage, plan.stages, CPU) for stage, part in zip(own, parts, strict=True)
        ]
        build = TORCH_SCHEDULES[entry.schedule]
        single = issubclass(build, pipelining.schedules.PipelineScheduleSingle)
        self._last = parts[-1]
        self._schedule = build(
            stages[0] if single else stages, n_microbatches=entry.per_update, loss_fn=self._weighted, scale_grads=False
        )
        inputs, labels = workload.source.whole(entry.per_update)
        self._arguments = (inputs,) if rank == 0 else ()
        self._target = labels if self._last.is_last else None

    def __call__(self) -> None:
        """All steps, an update after each."""
        for _ in range(self.entry.minibatches // self.entry.per_update):
            self._schedule.step(*self._arguments, target=self._target, return_outputs=False)
            self.update()

    def _weighted(self, output: Tensor, labels: Tensor) -> Tensor:
        return self._last.loss(output, labels) * self.weight
