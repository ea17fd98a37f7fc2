"""The layers of one stage: forward, backward, and recomputation of a chosen share of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from worker import buffers, deferred, eager, trace
from worker.data.base import TensorSpec
from worker.deferred import Deferred, Later
from worker.errors import ModelError
from worker.flow import Cut, outputs_of
from worker.models.base import Layer
from worker.offload import Offloaded
from worker.precision import LOSS_SCALE, arithmetic, rounded
from worker.recompute import recomputed
from worker.rng import seed_layer
from worker.stash import Give, Version, WeightStash


@dataclass
class Graph:
    """One minibatch between its forward and its backward in one stage; what the forward gives is added at its end."""

    minibatch: int
    version: Version
    inputs: Mapping[str, Tensor]
    later: Later
    outputs: Mapping[str, Tensor] = field(default_factory=dict)
    loss: Tensor | None = None

    @property
    def factor(self) -> float:
        """What the gradients of this minibatch are multiplied by."""
        return float(self.inputs[LOSS_SCALE]) if LOSS_SCALE in self.inputs else 1.0


def covered(layers: int, ratio: float) -> int:
    """How many of a stage's layers a ``recompute_ratio`` or an ``offload_ratio`` covers: rounded down."""
    return math.floor(layers * ratio + 1e-9)


class Stage:
    """Runs the layers of one stage.

    Args:
        first_layer: index of the stage's first layer in the whole model; random numbers are keyed by it.
        layers: the stage's layers, with their materialised modules in ``modules``.
        incoming: the cut before the stage; ``outgoing``: the one behind it, None for the last stage.
        recompute_ratio: share of the layers, from the end, that keep only their input and run again in the backward.
            Layer by layer, so that one layer's activations at a time return, and with the weights and random numbers
            of the first time (activation checkpointing, Chen et al. 2016).
        offload_ratio: share of the layers, before those, whose activations wait in host memory: ``worker.offload``.
        split_backward: leave the gradients of weight matrices to ``finish``.
        dtype: of what layers give each other, see ``worker.precision``.
    """

    def __init__(
        self,
        first_layer: int,
        layers: Sequence[Layer],
        modules: Sequence[nn.Module],
        stash: WeightStash,
        incoming: Cut,
        outgoing: Cut | None,
        recompute_ratio: float,
        offload_ratio: float,
        split_backward: bool,
        dtype: torch.dtype | None,
        seed: int,
        device: torch.device,
    ) -> None:
        self.first_layer = first_layer
        self.layers = layers
        self.modules = modules
        self.stash = stash
        self.incoming = incoming
        self.outgoing = outgoing
        self.first_recomputed = len(layers) - covered(len(layers), recompute_ratio)
        self.first_offloaded = self.first_recomputed - covered(len(layers), offload_ratio)
        self._split = split_backward
        self._dtype = dtype
        self._seed = seed
        self.device = device

    def forward(
        self, minibatch: int, inputs: Mapping[str, Tensor], targets: Mapping[str, Tensor], version: int | None = None
    ) -> Graph:
        """Run all layers on ``inputs`` (and, in the last stage, ``targets``).

        ``version``: of the weights, as a number of updates; None for the current ones.
        """
        leaves = {
            name: value.requires_grad_() if name in self.incoming.differentiable else value
            for name, value in inputs.items()
        }
        graph = Graph(minibatch, self.stash.acquire(version), leaves, [])
        values = {**leaves, **targets}
        for position, layer in enumerate(self.layers):
            results = self._layer(position, graph, [values[name] for name in layer.inputs])
            values.update(zip(layer.outputs, results, strict=True))
        if self.outgoing is None:
            graph.loss = values[self.layers[-1].outputs[0]]
        else:
            graph.outputs = {name: values[name] for name in self.outgoing.specs}
            self._check(minibatch, graph.outputs, self.outgoing)
        return graph

    @torch.no_grad()
    def evaluate(
        self, inputs: Mapping[str, Tensor], targets: Mapping[str, Tensor], ask: str = ""
    ) -> tuple[dict[str, Tensor], Tensor | None]:
        """Run all layers with the current weights and keep nothing.

        Returns all values by name, and what the last stage's last layer answers to its method called ``ask``; None
        where it has no such method.
        """
        self.stash.install(self.stash.current)
        values = {**inputs, **targets}
        answer: Tensor | None = None
        with arithmetic(self._dtype, self.device):
            for layer, module in zip(self.layers, self.modules, strict=True):
                given = [values[name] for name in layer.inputs]
                if self.outgoing is None and layer is self.layers[-1]:
                    values[layer.outputs[0]] = outputs_of(layer, module(*given))[0]
                    method = getattr(module, ask, None) if ask else None
                    answer = method(*given) if callable(method) else None
                else:
                    outputs = (rounded(value, self._dtype) for value in outputs_of(layer, module(*given)))
                    values.update(zip(layer.outputs, outputs, strict=True))
        return values, answer

    @torch.no_grad()
    def first_bad(self, graph: Graph, targets: Mapping[str, Tensor]) -> str:
        """Where the first number that is not finite came from, found by running the layers once more."""
        values = {**graph.inputs, **targets}
        if bad := [name for name, value in graph.inputs.items() if not _is_finite(value)]:
            return f"{bad[0]} came so from an earlier stage"
        for position, layer in enumerate(self.layers):
            given = (values[name] for name in layer.inputs)
            results = self._run(position, graph.minibatch, graph.version, [], *given)
            if not all(map(_is_finite, results)):
                return f"layer {layer.name} made it"
            values.update(zip(layer.outputs, results, strict=True))
        return "no layer made it again"

    def backward(self, graph: Graph, gradients: Mapping[str, Tensor], loss_weights: Tensor | None) -> dict[str, Tensor]:
        """Run the graph backward; parameters' gradients are collected in the stash, now or by ``finish``.

        Args:
            gradients: of the outputs, by name. ``loss_weights``: in the last stage instead, float32 (terms,).
        Returns:
            The gradients of the differentiable inputs, by name; zeros where nothing depends on one.
        """
        if graph.loss is not None:
            roots = [(graph.loss, loss_weights)]
        else:
            roots = [(graph.outputs[name], gradient) for name, gradient in gradients.items()]
        roots = [(root, seed) for root, seed in roots if root.requires_grad]
        if roots:
            tensors, seeds = zip(*roots, strict=True)
            self.stash.hand_out(graph.version, graph.factor)
            eager.backward(tensors, seeds)
        self.stash.collect(graph.version, graph.factor)
        leaves = [(name, leaf) for name, leaf in graph.inputs.items() if name in self.incoming.differentiable]
        return {name: torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for name, leaf in leaves}

    def finish(self, graph: Graph, give: Give | None = None) -> None:
        """Compute the gradients that the backward left for later, and let go of the graph's weights.

        ``give``: takes each parameter's sum so far as soon as this minibatch has nothing more to add to it.
        """
        if graph.later:
            done = None
            if give is not None:
                self._give_whole(graph, give)
                done = self.stash.collector(graph.version, graph.factor, give)
            self.stash.hand_out(graph.version, graph.factor)
            deferred.run(graph.later, done)
            self.stash.collect(graph.version, graph.factor)
        self.stash.release(graph.version)

    def _give_whole(self, graph: Graph, give: Give) -> None:
        """Give on what no product of ``graph`` is still to be added to."""
        unfinished = {id(product.weight) for product in graph.later}
        whole = [name for name, leaf in graph.version.leaves.items() if id(leaf) not in unfinished]
        for name in whole:
            if name in self.stash.gradients:
                give(name, self.stash.gradients[name])

    def _check(self, minibatch: int, outputs: Mapping[str, Tensor], cut: Cut) -> None:
        """The next stage makes room for what the meta device foretold, and the backend accepts any other in silence."""
        for name, spec in cut.specs.items():
            if not spec.admits(outputs[name], cut.varies):
                giver = next(layer.name for layer in reversed(self.layers) if name in layer.outputs)
                raise ModelError(
                    f"layer {giver} gives {name} of minibatch {minibatch} as {TensorSpec.of(outputs[name])}; "
                    f"run without values it gave {spec}",
                    "let shapes and dtypes depend on nothing but those of the layer's inputs",
                )

    def _layer(self, position: int, graph: Graph, given: Sequence[Tensor]) -> tuple[Tensor, ...]:
        where = position, graph.minibatch, graph.version, graph.later
        if position < self.first_offloaded:
            return self._run(*where, *given)
        run = partial(self._run, *where)
        if position < self.first_recomputed:
            return self._offloading(run, graph, *given)
        again = partial(self._run_again, run, position, graph.minibatch)
        return recomputed(self.layers[position].name, run, again, *given)

    def _offloading(self, run: Callable[..., tuple[Tensor, ...]], graph: Graph, *args: Tensor) -> tuple[Tensor, ...]:
        """``run``, with what it saves for the backward in host memory, but for what the graph or others hold anyway."""
        with Offloaded([*graph.version.leaves.values(), *graph.inputs.values()]):
            return run(*args)

    def _run_again(
        self, run: Callable[..., tuple[Tensor, ...]], position: int, minibatch: int, *args: Tensor
    ) -> tuple[Tensor, ...]:
        """``run`` as recomputation, in which running statistics stay as they are."""
        with buffers.kept(self.modules[position]), trace.span("recompute", self.layers[position].name, minibatch):
            return run(*args)

    def _run(self, position: int, minibatch: int, version: Version, later: Later, *args: Tensor) -> tuple[Tensor, ...]:
        """One layer with the weights of ``version`` and the random numbers of ``minibatch``, now or again later."""
        self.stash.install(version)
        seed_layer(self._seed, minibatch, self.first_layer + position, self.device)
        layer, module = self.layers[position], self.modules[position]
        if not self._split and self._dtype is None:
            return outputs_of(layer, module(*args))
        with arithmetic(self._dtype, self.device), Deferred(later) if self._split else trace.NOTHING:
            outputs = outputs_of(layer, module(*args))
        if self.outgoing is None and position == len(self.layers) - 1:
            return outputs  # the loss stays float32
        return tuple(rounded(value, self._dtype) for value in outputs)


def _is_finite(value: Tensor) -> bool:
    return not value.is_floating_point() or bool(torch.isfinite(value).all())
