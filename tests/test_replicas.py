"""Sums over replicas: in their order whatever the buckets, of what any of them has, and none of what all lack."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from tests import harness, ranks, reference, toy
from worker import alike, replicas
from worker.communication import Communicator
from worker.data.base import TensorSpec
from worker.models.base import Layer, Model
from worker.replicas import ReplicaGroup
from worker.runtime import LOSSES, StageRuntime
from worker.spec.cluster import ClusterSpec, OptimizerSpec, PipelineSpec, RunSpec
from worker.trace import Stopwatch

CPU = torch.device("cpu")
SHAPES = {"a": (3, 5), "b": (7,), "empty": (0,), "c": (2, 2), "scalar": (), "nobody": (4,)}
SPECS = {name: TensorSpec(shape, torch.float32) for name, shape in SHAPES.items()}


def of(rank: int, update: int = 0) -> dict[str, Tensor]:
    """What one replica has: the second lacks ``b``, and all lack ``nobody``."""
    generator = torch.Generator().manual_seed(100 * update + rank)
    tensors = {name: torch.randn(spec.shape, generator=generator) * 10.0**rank for name, spec in SPECS.items()}
    return {name: tensor for name, tensor in tensors.items() if name != "nobody" and (name, rank) != ("b", 1)}


def in_order(count: int, update: int = 0) -> dict[str, Tensor]:
    given = [of(rank, update) for rank in range(count)]
    return {name: sum(each[name] for each in given if name in each) for name in SHAPES if name != "nobody"}


def on_replicas(
    count: int, folder: Path, body: Callable[[ReplicaGroup, int], dict[str, Tensor]], elements: int = 2**20
) -> list[dict[str, Tensor]]:
    def joined(rank: int) -> dict[str, Tensor]:
        ranks.join(rank, count, folder)
        replicas.BUCKET_ELEMENTS = elements
        communicator = Communicator(replicas.names(1), CPU, 10.0, Stopwatch(), 4)
        result = body(ReplicaGroup(communicator, 1, range(count), rank, SPECS, CPU), rank)
        communicator.finish()
        return result

    return ranks.run(count, folder, joined)


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert [name for name in found if not torch.equal(found[name], torch.as_tensor(expected[name]))] == []


@pytest.mark.parametrize("elements", [1, 6, 2**20])
@pytest.mark.parametrize("count", [2, 3])
def test_all_replicas_get_the_sums_in_their_order(count: int, elements: int, tmp_path: Path) -> None:
    for found in on_replicas(count, tmp_path, lambda group, rank: group.sum(of(rank), 5), elements):
        assert_same(found, in_order(count))


def test_tensors_may_be_given_ahead_and_one_replica_may_have_none(tmp_path: Path) -> None:
    """In the order of a backward on one, in another on the other, not at all on the third; twice in a row."""

    def body(group: ReplicaGroup, rank: int) -> dict[str, Tensor]:
        for update in range(2):
            tensors = of(rank, update) if rank < 2 else {}
            for name in reversed(tensors) if rank == 0 else tensors:
                group.give(name, tensors[name], update)
            sums = group.sum(tensors, update)
        return sums

    for found in on_replicas(3, tmp_path, body, elements=4):
        assert_same(found, in_order(2, update=1))


def require_all_given() -> None:
    """Let a sum fail that has to take a gradient which could have left during the backward."""
    give, total = ReplicaGroup.give, ReplicaGroup.sum
    given: set[str] = set()

    def giving(self: ReplicaGroup, name: str, tensor: Tensor, minibatch: int) -> None:
        assert name not in given
        given.add(name)
        give(self, name, tensor, minibatch)

    def summing(self: ReplicaGroup, tensors: dict[str, Tensor], minibatch: int) -> dict[str, Tensor]:
        assert given == tensors.keys() - {LOSSES, alike.CHECKSUMS}
        given.clear()
        return total(self, tensors, minibatch)

    ReplicaGroup.give, ReplicaGroup.sum = giving, summing  # type: ignore[method-assign]


@pytest.mark.parametrize(("sync_mode", "schedule"), [("bsp", "1f1b"), ("bsp", "zb-h1"), ("asp", "1f1b")])
def test_every_gradient_leaves_before_the_update(sync_mode: str, schedule: str, tmp_path: Path) -> None:
    per_step = 4 if sync_mode == "bsp" else None
    spec = ClusterSpec(
        machines=["cpu"],
        pipeline=PipelineSpec(sync_mode=sync_mode, schedule=schedule, minibatches_per_step=per_step),
        run=RunSpec(steps=4, stall_timeout=20.0),
    )
    harness.train(harness.job_of(spec, [2, 4], replicas=[2, 2]), toy.model(), toy.Data(), tmp_path, require_all_given)


def flip_a_bit(of_rank: int) -> None:
    """Let one rank's memory change one bit of a weight between its first update and the next."""
    apply = StageRuntime.apply

    def applying(self: StageRuntime, *arguments: Any) -> list[float]:
        losses = apply(self, *arguments)
        if dist.get_rank() == of_rank and self.updates == 1:
            parameter = next(iter(self.stash.parameters.values()))
            parameter.detach().view(torch.int32).view(-1)[3] ^= 1
        return losses

    StageRuntime.apply = applying  # type: ignore[method-assign]


@pytest.mark.parametrize("sync_mode", ["bsp", "asp"])
def test_a_replica_whose_weights_went_astray_is_named(sync_mode: str, tmp_path: Path) -> None:
    spec = ClusterSpec(
        machines=["cpu"],
        pipeline=PipelineSpec(sync_mode=sync_mode, minibatches_per_step=3 if sync_mode == "bsp" else None),
        run=RunSpec(steps=30, stall_timeout=20.0, compare_replicas=2),
    )
    job = harness.job_of(spec, [2, 4], replicas=[1, 3])
    errors = harness.failures(job, toy.model(tied=False), toy.Data(), tmp_path, partial(flip_a_bit, 2))
    said = {str(error).splitlines()[0] for error in errors if "the weights of rank" in str(error)}
    assert said == {"stage 1: after 2 updates the weights of rank 2 are not those of the other replicas"}


def test_where_no_replica_is_right_for_certain_all_are_named() -> None:
    tables = [alike.table({"a": torch.tensor([value])}, replica, 2) for replica, value in enumerate((1.0, 2.0))]
    assert alike.odd_ones(tables[0] + tables[1]) == [0, 1]
    assert alike.odd_ones(tables[0] + tables[0].flip(0)) == []


class Idle(nn.Module):
    """A layer without parameters."""

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden.tanh()


class Partly(nn.Module):
    """A layer that never uses some of its parameters; others are frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused, self.frozen = (nn.Linear(toy.WIDTH, toy.WIDTH) for _ in range(3))
        self.frozen.requires_grad_(False)

    def forward(self, hidden: Tensor) -> Tensor:
        return F.gelu(self.used(hidden)) + self.frozen(hidden)


@pytest.mark.parametrize("counts", [[1, 1, 1], [1, 2, 1], [2, 2, 2]], ids=str)
@pytest.mark.parametrize("module", [Idle, Partly])
@pytest.mark.parametrize("sync_mode", ["asp", "bsp"])
def test_parameters_without_gradients_stay_as_they_are(
    sync_mode: str, module: type[nn.Module], counts: list[int], tmp_path: Path
) -> None:
    """A gradient of zero would decay them, and move them by the momentum they have."""
    plain = toy.model(blocks=2)
    middle = Layer("middle", module, ("hidden",), ("hidden",))
    model = Model((*plain.layers[:2], middle, *plain.layers[2:]), tied=plain.tied)
    spec = ClusterSpec(
        machines=["cpu"],
        pipeline=PipelineSpec(sync_mode=sync_mode, minibatches_per_step=3 if sync_mode == "bsp" else None),
        optimizer=OptimizerSpec(lr=1e-2, weight_decay=0.5, clip_grad_norm=0.5),
        run=RunSpec(steps=5, stall_timeout=20.0),
    )
    job = harness.job_of(spec, [2, 1, 2], replicas=counts)
    one_process = {"asp": reference.asp, "bsp": reference.bsp}[sync_mode]
    weights = harness.train(job, model, toy.Data(), tmp_path)
    assert_same(weights, one_process(spec, model, toy.Data(), job.plan))
    if module is Partly:
        start = reference.Whole(model, toy.Data(), spec.run.seed, "fp32").owned()
        moved = {name for name in weights if "middle" in name and not torch.equal(weights[name], start[name])}
        assert moved == {"middle.used.weight", "middle.used.bias"}
