"""From a job to one rank's Executor: only the rank's own stages ever get storage."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from itertools import chain

import torch
from torch import nn

from worker import models, schedule
from worker.communication import Communicator
from worker.data.base import Signature, TensorSpec
from worker.executor import Executor, UpdateRule
from worker.flow import Flow, trace
from worker.metrics import StepClock, Stopwatch
from worker.models.base import Model
from worker.runtime import LOSS_WEIGHTS, Feed, StageRuntime
from worker.schedule import Action
from worker.spec.cluster import ClusterSpec
from worker.spec.job import Job
from worker.spec.records import StepMetrics
from worker.stage import Stage
from worker.stash import WeightStash
from worker.topology import Tie, Topology


def actions(spec: ClusterSpec, stage: int, stages: int) -> Iterator[Action]:
    """All Actions of one stage over the whole run."""
    pipeline = spec.pipeline
    in_flight = None if pipeline.in_flight == "auto" else pipeline.in_flight

    def over(minibatches: range) -> Iterator[Action]:
        return schedule.actions(pipeline.schedule, pipeline.sync_mode, stage, stages, minibatches, in_flight)

    if pipeline.sync_mode == "asp":
        return over(range(spec.run.steps))
    per_step = minibatches_per_step(spec)
    return chain.from_iterable(over(range(n * per_step, (n + 1) * per_step)) for n in range(spec.run.steps))


def minibatches_per_step(spec: ClusterSpec) -> int:
    """Minibatches between two updates: 1 under ASP."""
    return spec.pipeline.minibatches_per_step or 1


class Builder:
    """Everything about a job that does not depend on the rank, and the parts of one rank built from it.

    Raises ModelError when the model cannot be walked on the meta device.
    """

    def __init__(self, job: Job, model: Model, signature: Signature, rank: int, device: torch.device) -> None:
        self.job = job
        self.model = model
        self.signature = signature
        self.rank = rank
        self.flow = trace(model, signature)
        self.device = device
        stages = range(rank, job.plan.stages, len(job.ranks))
        self.topologies = [_topology(job, self.flow, signature, len(model.losses), stage) for stage in stages]

    def digest(self) -> str:
        """SHA-256 over job, code, and the shapes of everything that travels: what all ranks must agree on."""
        cuts = [sorted(cut.specs.items()) for cut in self.flow.cuts]
        return hashlib.sha256(f"{self.job.digest()} {cuts} {self.topologies[0].names()}".encode()).hexdigest()

    def actions(self) -> Iterator[Action]:
        """All Actions of this rank over the whole run."""
        return actions(self.job.spec, self.rank, self.job.plan.stages)

    def executor(
        self, feed: Callable[[int], Feed] | None, waiting: Stopwatch, report: Callable[[StepMetrics], None]
    ) -> Executor:
        """The rank, ready to run: its stages materialised and initialised, nobody else's."""
        spec = self.job.spec
        communicator = Communicator(self.topologies[0].names(), self.device, spec.run.stall_timeout, waiting)
        everywhere = self.flow.parameters if spec.pipeline.sync_mode == "bsp" else None
        return Executor(
            {topology.stage: self._runtime(topology, communicator, feed) for topology in self.topologies},
            communicator,
            UpdateRule(spec.optimizer, spec.run.steps, everywhere),
            StepClock(waiting, spec.data.minibatch_size, self.device, report),
        )

    def _runtime(
        self, topology: Topology, communicator: Communicator, feed: Callable[[int], Feed] | None
    ) -> StageRuntime:
        spec = self.job.spec
        owners = {tie.owner_stage for tie in topology.borrowed}
        return StageRuntime(
            topology,
            self._stage(topology),
            communicator,
            spec.optimizer,
            feed,
            {owner: actions(spec, owner, topology.stages) for owner in owners},
        )

    def _stage(self, topology: Topology) -> Stage:
        indices = self.job.plan.layers_of(topology.stage)
        layers = [self.model.layers[index] for index in indices]
        modules = [self._materialised(index) for index in indices]
        named = {layer.name: module for layer, module in zip(layers, modules, strict=True)}
        return Stage(
            indices.start,
            layers,
            modules,
            WeightStash(named, self.flow.tied),
            topology.incoming,
            topology.outgoing,
            self.job.plan.recompute_ratio[topology.stage],
            False,
            self.job.spec.run.seed,
            self.device,
        )

    def _materialised(self, index: int) -> nn.Module:
        module = self.flow.modules[index].to_empty(device=self.device)
        models.initialise(self.model.layers[index].name, module, self.job.spec.run.seed)
        return module.train()


def _topology(job: Job, flow: Flow, signature: Signature, terms: int, stage: int) -> Topology:
    starts = [job.plan.layers_of(index).start for index in range(job.plan.stages)]

    def stage_of(parameter: str) -> int:
        return max(index for index, start in enumerate(starts) if start <= flow.holders[parameter])

    ties = [Tie(b, owner, stage_of(b), stage_of(owner), flow.spec(owner)) for b, owner in flow.tied.items()]
    return Topology(
        stage=stage,
        ranks=len(job.ranks),
        cuts=tuple(flow.cuts[start] for start in starts),
        targets={**signature.targets, LOSS_WEIGHTS: TensorSpec((terms,), torch.float32)},
        ties=tuple(tie for tie in ties if tie.borrower_stage != tie.owner_stage),
    )
