"""Seconds and bytes of each layer, measured with the runtime's own stages.

Every layer is a stage by itself, so what is timed is what a run does: forward on a weight version, backward in one
piece and in two, recomputation, collecting gradients, the update. A pass runs all layers forward and all backward, as a
minibatch does, so that each meets the caches as it would in a run. A stage of all layers is timed too: what it takes
less than its layers one by one is what cutting them apart costs, and is taken off each.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median, quantiles

import torch
from torch import Tensor

from worker import eager
from worker import optimizer as optim
from worker.build import Builder
from worker.data.base import Source
from worker.feed import Feeder
from worker.models.base import Model
from worker.profiler.memory import Footprints, kept_bytes, resident
from worker.runtime import LOSS_WEIGHTS, Feed
from worker.spec.cluster import ClusterSpec
from worker.spec.job import Job, Placement, Plan
from worker.spec.profile import LayerProfile
from worker.stage import Graph, Stage
from worker.trace import Stopwatch

WARMUP = 2
Report = Callable[[str], None]


@dataclass(frozen=True)
class Measured:
    """The layers; what a rank holds besides them, in bytes; and bytes a second of copying weights."""

    layers: list[LayerProfile]
    base_bytes: int
    copy_rate: float


@dataclass
class _Times:
    """Seconds of each layer over the passes, by kind of action."""

    seconds: dict[tuple[int, str], list[float]] = field(default_factory=dict)

    def add(self, layer: int, kind: str, seconds: float) -> None:
        self.seconds.setdefault((layer, kind), []).append(seconds)

    def of(self, layer: int, kind: str) -> float:
        return median(self.seconds.get((layer, kind), [0.0]))

    def total(self, kind: str) -> float:
        """Over all layers."""
        return sum(median(values) for (_, each), values in self.seconds.items() if each == kind)

    def spread(self, layer: int) -> float:
        """Half the interquartile range of forward and backward, over their median."""
        passes = zip(self.seconds[layer, "forward"], self.seconds[layer, "backward"], strict=True)
        sums = [forward + backward for forward, backward in passes]
        if len(sums) < 2 or not median(sums):
            return 0.0
        first, _, third = quantiles(sums, n=4, method="inclusive")
        return (third - first) / 2 / median(sums)


class Bench:
    """A model as a row of stages in this process, and passes over them.

    Args:
        partition: layers of each stage.
        split: leave weight gradients to an action of their own.
    """

    def __init__(
        self, spec: ClusterSpec, model: Model, source: Source, device: torch.device, partition: list[int], split: bool
    ) -> None:
        schedule = {"schedule": "zb-h1" if split else "1f1b", "sync_mode": "bsp", "minibatches_per_step": 1}
        pipeline = spec.pipeline.model_copy(update={**schedule, "replicas": 1, "in_flight": "auto"})
        stages = len(partition)
        plan = Plan(
            partition=partition,
            recompute_ratio=[0.0] * stages,
            reason="to be measured",
            replicas=[1] * stages,
            chunks=stages,
        )
        place = Placement(rank=0, stage=0, host="localhost", device=str(device), threads=torch.get_num_threads())
        job = Job(run="profile", spec=spec.model_copy(update={"pipeline": pipeline}), plan=plan, ranks=[place])
        builder = Builder(job, model, source.signature, 0, device)
        self.device = device
        self.stages: list[Stage] = [builder._stage(topology) for topology in builder.topologies]
        self._ties = [topology.borrowed for topology in builder.topologies]
        outer = optim.outer(builder.flow)
        self._optimizers = [optim.build(spec.optimizer, stage.stash.parameters, outer) for stage in self.stages]
        self._feed = Feeder(source, 1, device, Stopwatch())
        self._number = 0
        self.times = _Times()

    def run(self, recompute: bool = False) -> None:
        """One pass: all stages forward, all backward, all updated."""
        for stage in self.stages:
            stage.first_recomputed = 0 if recompute else len(stage.layers)
        feed, number = self._feed(self._number), self._number
        self._number += 1
        graphs = [self._forward(index, number, values, feed) for index, values in self._values(feed)]
        self._backward(graphs, feed.targets[LOSS_WEIGHTS])
        self._update()

    def _values(self, feed: Feed) -> Iterator[tuple[int, Mapping[str, Tensor]]]:
        """Each stage with what comes in; the graph that the caller makes of it gives the next one's."""
        self._last: Mapping[str, Tensor] = feed.inputs
        for index in range(len(self.stages)):
            yield index, self._last

    def _forward(self, index: int, number: int, values: Mapping[str, Tensor], feed: Feed) -> Graph:
        stage = self.stages[index]
        for tie in self._ties[index]:
            owner = next(each for each in self.stages if tie.owner in each.stash.parameters)
            stage.stash.borrow(tie.borrower, owner.stash.lent(tie.owner, None).detach().clone())
        inputs = {name: value.detach() for name, value in values.items()}
        targets = feed.targets if stage.outgoing is None else {}
        with self._timed(index, "forward"):
            graph = stage.forward(number, inputs, targets)
        self._last = graph.outputs
        return graph

    def _backward(self, graphs: Sequence[Graph], weights: Tensor) -> None:
        gradients: Mapping[str, Tensor] = {}
        for index in reversed(range(len(graphs))):
            stage, graph = self.stages[index], graphs[index]
            is_last = stage.outgoing is None
            wanted = {} if is_last else {n: gradients[n] for n in sorted(stage.outgoing.differentiable)}  # type: ignore[union-attr]
            with self._timed(index, "backward"):
                gradients = stage.backward(graph, wanted, weights if is_last else None)
            with self._timed(index, "finish"):
                stage.finish(graph)

    def _update(self) -> None:
        for index, (stage, rule) in enumerate(zip(self.stages, self._optimizers, strict=True)):
            with self._timed(index, "update"):
                if rule is not None:
                    stage.stash.before_update()
                    for name, parameter in stage.stash.parameters.items():
                        parameter.grad = stage.stash.gradients.get(name) if parameter.requires_grad else None
                    eager.step(rule)
                    rule.zero_grad()
                stage.stash.gradients.clear()
                stage.stash.after_update()

    @contextmanager
    def _timed(self, index: int, kind: str) -> Iterator[None]:
        self._synchronize()
        started = time.perf_counter()
        yield
        self._synchronize()
        self.times.add(index, kind, time.perf_counter() - started)

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def bytes_of(self, index: int) -> tuple[int, int, int]:
        """Of one stage: parameters it owns or borrows, their gradients, optimizer state."""
        stash, rule = self.stages[index].stash, self._optimizers[index]
        leaves = stash.current.leaves.values()
        parameters = sum(leaf.nbytes for leaf in leaves)
        gradients = sum(leaf.nbytes for leaf in leaves if leaf.requires_grad)
        states = rule.state.values() if rule is not None else ()
        state = sum(value.nbytes for each in states for value in each.values() if isinstance(value, Tensor))
        return parameters, gradients, state


def measure(
    spec: ClusterSpec, model: Model, source: Source, device: torch.device, repeats: int, turn: Report = lambda _: None
) -> Measured:
    """Every layer of ``model``.

    Args:
        repeats: passes whose median counts, after two that warm up.
        turn: called with what comes next, before each part; where several processes measure side by side it waits
            until all are there.
    """
    count = len(model.layers)
    before = resident()
    turn("layer by layer")
    bench = Bench(spec, model, source, device, [1] * count, split=False)
    plain = _passes(bench, repeats)
    sizes = [bench.bytes_of(index) for index in range(count)]
    peak = resident()
    footprints = Footprints.of(bench, device)
    kept = kept_bytes(bench)
    held = sum(map(sum, sizes)) + sum(kept) + max(footprints.workspaces, default=0)
    copy_rate = _copy_rate(bench)
    turn("recomputation")
    again = _passes(bench, repeats, recompute=True)
    outputs = [_cut_bytes(stage) for stage in bench.stages]
    del bench
    turn("backward in two parts")
    parts = _passes(Bench(spec, model, source, device, [1] * count, split=True), repeats)
    turn("all layers in one stage")
    whole = _passes(Bench(spec, model, source, device, [count], split=False), repeats)
    layers = [
        _layer(
            model.layers[index].name,
            index,
            plain,
            again,
            parts,
            whole,
            sizes[index],
            kept[index],
            outputs[index],
            footprints.workspaces[index],
        )
        for index in range(count)
    ]
    return Measured(layers, max(before, peak - held), copy_rate)


def _passes(bench: Bench, repeats: int, recompute: bool = False) -> _Times:
    for _ in range(WARMUP):
        bench.run(recompute)
    bench.times = _Times()
    for _ in range(repeats):
        bench.run(recompute)
    return bench.times


def _layer(
    name: str,
    index: int,
    plain: _Times,
    again: _Times,
    parts: _Times,
    whole: _Times,
    sizes: tuple[int, int, int],
    kept: int,
    output: int,
    workspace: int,
) -> LayerProfile:
    scale = {kind: _scale(whole.total(kind), plain.total(kind)) for kind in ("forward", "backward", "update")}
    backward = (plain.of(index, "backward") + plain.of(index, "finish")) * scale["backward"]
    first, second = parts.of(index, "backward"), parts.of(index, "finish")
    share = second / (first + second) if first + second else 0.0
    forward = plain.of(index, "forward") * scale["forward"]
    extra = again.of(index, "backward") - plain.of(index, "backward")
    parameters, gradients, state = sizes
    return LayerProfile(
        name=name,
        forward=forward,
        input_grad=backward * (1 - share),
        weight_grad=backward * share,
        # Never less than half a forward, whatever the noise: the layer does run again.
        recompute=max(extra, plain.of(index, "forward") / 2) * scale["forward"],
        update=plain.of(index, "update") * scale["update"] if parameters else 0.0,
        spread=plain.spread(index),
        activation_bytes=kept,
        output_bytes=output,
        workspace_bytes=workspace,
        parameter_bytes=parameters,
        gradient_bytes=gradients,
        optimizer_bytes=state,
    )


def _scale(whole: float, apart: float) -> float:
    """How much less layers take in one stage; measurements that disagree more than that are noise."""
    return min(1.0, max(0.6, whole / apart)) if apart else 1.0


def _cut_bytes(stage: Stage) -> int:
    if stage.outgoing is None:
        return 0
    total = 0
    for spec in stage.outgoing.specs.values():
        count = 1
        for side in spec.shape:
            count *= side
        total += count * spec.dtype.itemsize
    return total


def _copy_rate(bench: Bench) -> float:
    """Bytes per second of copying the largest parameters, as a new weight version is made."""
    tensors = [p.data for stage in bench.stages for p in stage.stash.parameters.values()]
    tensors = sorted(tensors, key=lambda tensor: -tensor.nbytes)[:16]
    copies = [tensor.clone() for tensor in tensors]
    times: list[float] = []
    for _ in range(5):
        bench._synchronize()
        started = time.perf_counter()
        for tensor, copy in zip(tensors, copies, strict=True):
            copy.copy_(tensor)
        bench._synchronize()
        times.append(time.perf_counter() - started)
    size = sum(tensor.nbytes for tensor in tensors)
    return max(1.0, size / max(median(times), 1e-9))
