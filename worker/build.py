"""From a job to one rank's Executor: only the rank's own stages ever get storage."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import nn

from worker import alike, models, optimizer, schedule
from worker.communication import Communicator
from worker.compiling import compile_layers
from worker.data.base import Signature, TensorSpec
from worker.errors import ModelError
from worker.executor import Executor, UpdateRule
from worker.flow import Cut, Flow, trace
from worker.metrics import StepClock
from worker.models.base import Model
from worker.precision import DTYPES, LOSS_SCALE, LossScaler
from worker.replicas import ReplicaGroup
from worker.runtime import LOSS_WEIGHTS, LOSSES, Feed, StageRuntime
from worker.schedule import Action
from worker.schedule.job import delay, drain_periods, minibatches_per_step, rank_actions, stage_versions, window
from worker.spec.job import Job
from worker.spec.records import StepMetrics
from worker.stage import Stage
from worker.stash import WeightStash
from worker.topology import Tie, Topology
from worker.trace import Stopwatch


class Builder:
    """Everything about a job that does not depend on the rank, and the parts of one rank built from it.

    Raises ModelError when the model cannot be walked on the meta device.
    """

    def __init__(self, job: Job, model: Model, signature: Signature, rank: int, device: torch.device) -> None:
        self.job = job
        self.model = model
        self.signature = signature
        self.rank = rank
        self.flow = trace(model, signature, DTYPES[job.spec.precision])
        self.device = device
        _check_fit(job, self.flow)
        stages = job.plan.stages_of(rank)
        self.topologies = [_topology(job, self.flow, signature, len(model.losses), s, rank) for s in stages]

    def digest(self) -> str:
        """SHA-256 over job, code, parameters and what travels: what all ranks must agree on."""
        cuts = [sorted(cut.specs.items()) for cut in self.flow.cuts]
        parameters = [(name, self.flow.spec(name), self.flow.tied.get(name)) for name in self.flow.holders]
        agreed = f"{self.job.digest()} {cuts} {parameters} {self.topologies[0].names()}"
        return hashlib.sha256(agreed.encode()).hexdigest()

    def actions(self, start: int = 0) -> Iterator[Action]:
        """All Actions of this rank from step ``start`` to the end of the run."""
        return rank_actions(self.job.spec, self.job.plan, self.rank, start)

    def executor(
        self,
        feed: Callable[[int], Feed] | None,
        waiting: Stopwatch,
        report: Callable[[StepMetrics], None],
        start: int = 0,
    ) -> Executor:
        """The rank, ready to run from step ``start`` on: its stages materialised and initialised, nobody else's."""
        spec = self.job.spec
        names, varying = self.topologies[0].names(), self.topologies[0].varying() if self.signature.varies else []
        communicator = Communicator(
            names, self.device, spec.run.wait_limit, waiting, window(spec, self.job.plan), varying
        )
        ranks = self.job.plan.ranks_of(self.topologies[0].stage)
        rule = UpdateRule(
            spec.optimizer,
            spec.run.steps,
            minibatches_per_step(spec),
            len(ranks),
            spec.pipeline.sync_mode == "bsp",
            self.flow.parameters,
            self.rank == ranks[0],
            len(ranks) / len(self.job.plan.ranks_of(0)),
            delay(spec, self.job.plan, self.topologies[0].stage) if spec.optimizer.pipemare else 0,
            start,
            drain_periods(spec),
            spec.run.on_nan == "skip",
        )
        scaler = LossScaler() if spec.precision == "fp16" else None
        return Executor(
            {each.stage: self._runtime(each, communicator, feed, scaler, start) for each in self.topologies},
            communicator,
            rule,
            StepClock(waiting, spec.data.minibatch_size, self.device, report),
            scaler,
        )

    def _runtime(
        self,
        topology: Topology,
        communicator: Communicator,
        feed: Callable[[int], Feed] | None,
        scaler: LossScaler | None,
        start: int,
    ) -> StageRuntime:
        stage, ranks = self._stage(topology), self.job.plan.ranks_of(topology.stage)
        if self.job.spec.pipeline.compile:
            compile_layers(stage, LOSS_WEIGHTS, topology.targets)
        group = None
        if len(ranks) > 1:
            specs = {name: self.flow.spec(name) for name in stage.stash.current.leaves}
            specs |= {name: self.flow.spec(name) for name in stage.stash.borrowed}
            losses = {LOSSES: TensorSpec((len(self.model.losses) if topology.is_last else 0,), torch.float32)}
            more = losses | {alike.CHECKSUMS: alike.table_spec(len(ranks))}
            group = ReplicaGroup(communicator, topology.stage, ranks, self.rank, more | specs, self.device)
        versions_of = partial(stage_versions, self.job.spec, self.job.plan, start=start)
        rule = optimizer.build(self.job.spec.optimizer, stage.stash.parameters, optimizer.outer(self.flow))
        runtime = StageRuntime(topology, stage, communicator, rule, feed, scaler, group, versions_of)
        runtime.compares_every = self.job.spec.run.compare_replicas
        runtime.skips_nan = self.job.spec.run.on_nan == "skip"
        return runtime

    def _stage(self, topology: Topology) -> Stage:
        entry = schedule.SCHEDULES[self.job.spec.pipeline.schedule]
        indices = self.job.plan.layers_of(topology.stage)
        layers = [self.model.layers[index] for index in indices]
        modules = [self._materialised(index) for index in indices]
        named = {layer.name: module for layer, module in zip(layers, modules, strict=True)}
        return Stage(
            indices.start,
            layers,
            modules,
            WeightStash(named, self.flow.tied, entry.stashes, entry.keeps),
            topology.incoming,
            topology.outgoing,
            self.job.plan.recompute_ratio[topology.stage],
            self.job.spec.pipeline.offload_ratio,
            entry.splits_backward,
            DTYPES[self.job.spec.precision],
            self.job.spec.run.seed,
            self.device,
        )

    def _materialised(self, index: int) -> nn.Module:
        module = self.flow.modules[index].to_empty(device=self.device)
        models.initialise(self.model.layers[index].name, module, self.job.spec.run.seed)
        return module.train()


def _check_fit(job: Job, flow: Flow) -> None:
    """What only the model's own code tells, and so nobody could refuse before."""
    plan = job.plan
    if sum(plan.partition) != len(flow.names):
        raise ModelError(
            f"the partition {plan.partition} has {sum(plan.partition)} layers; the model has {len(flow.names)}",
            "give as many layers as the model has in pipeline.partition, or `auto`",
        )
    if job.spec.pipeline.sync_mode == "bsp":
        return
    for borrower, owner in flow.tied.items():
        counts = [
            plan.replicas[next(s for s in range(plan.stages) if flow.holders[name] in plan.layers_of(s))]
            for name in (borrower, owner)
        ]
        if counts[0] != counts[1]:
            raise ModelError(
                f"{borrower} borrows {owner} from a stage of {counts[1]} ranks into one of {counts[0]}",
                "under asp such stages need equally many replicas; or use sync_mode bsp",
            )


def _topology(job: Job, flow: Flow, signature: Signature, terms: int, stage: int, rank: int) -> Topology:
    plan = job.plan
    starts = [plan.layers_of(index).start for index in range(plan.stages)]

    def stage_of(parameter: str) -> int:
        return max(index for index, start in enumerate(starts) if start <= flow.holders[parameter])

    ties = [Tie(b, owner, stage_of(b), stage_of(owner), flow.spec(owner)) for b, owner in flow.tied.items()]
    return Topology(
        plan=plan,
        stage=stage,
        rank=rank,
        cuts=tuple(
            _with_scale(flow.cuts[start]) if job.spec.precision == "fp16" else flow.cuts[start] for start in starts
        ),
        targets={**signature.targets, LOSS_WEIGHTS: TensorSpec((terms,), torch.float32)},
        ties=tuple(tie for tie in ties if tie.borrower_stage != tie.owner_stage),
    )


def _with_scale(cut: Cut) -> Cut:
    return replace(cut, specs={**cut.specs, LOSS_SCALE: TensorSpec((1,), torch.float32)})
