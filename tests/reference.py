"""What pipelined training must equal: the same training written down plainly, in one process, without the runtime.

``bsp`` is ordinary gradient accumulation. ``asp`` replays a pipeline: it keeps a copy of every weight version
and gives each minibatch, in each stage, the version that the formula says. Only building blocks are shared with the
runtime: layers and their initial values, the optimizer, the learning rate, and the keys of random numbers.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from worker import models, optimizer
from worker.data.base import Source
from worker.flow import trace
from worker.models.base import Model
from worker.rng import seed_layer
from worker.spec.cluster import ClusterSpec

Weights = dict[str, Tensor]


class Whole:
    """The whole model with its parameters by full name; tied ones have a leaf of their own."""

    def __init__(self, model: Model, source: Source, seed: int) -> None:
        self.model = model
        self.flow = trace(model, source.signature)
        self.modules = [module.to_empty(device="cpu").train() for module in self.flow.modules]
        self.seed = seed
        for layer, module in zip(model.layers, self.modules, strict=True):
            models.initialise(layer.name, module, seed)
        self.parameters = {
            f"{layer.name}.{name}": parameter
            for layer, module in zip(model.layers, self.modules, strict=True)
            for name, parameter in module.named_parameters()
        }

    def owned(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.parameters.items() if name not in self.model.tied}

    def set(self, weights: Weights) -> None:
        """Give every parameter the value of ``weights``, and every borrowed one that of its owner."""
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(weights[self.model.tied.get(name, name)])
                parameter.grad = None

    def loss(self, source: Source, number: int, weights: Tensor) -> Tensor:
        minibatch = source.minibatch(number)
        values = {**minibatch.inputs, **minibatch.targets}
        for index, (layer, module) in enumerate(zip(self.model.layers, self.modules, strict=True)):
            seed_layer(self.seed, number, index, torch.device("cpu"))
            result = module(*(values[name] for name in layer.inputs))
            values.update(zip(layer.outputs, result if isinstance(result, tuple) else (result,), strict=True))
        return (values[self.model.layers[-1].outputs[0]] * weights).sum()

    def gradients(self) -> Weights:
        """Gradients by owner; borrowers' are added in layer order."""
        total = {name: p.grad.clone() for name, p in self.owned().items() if p.grad is not None}
        for borrower, owner in self.flow.tied.items():
            total[owner] = total[owner] + self.parameters[borrower].grad
        return total


def _counts(source: Source, numbers: range) -> Tensor:
    counts = [source.minibatch(number).counts for number in numbers]
    return torch.tensor([1 / max(1, sum(term)) for term in zip(*counts, strict=True)], dtype=torch.float32)


def _clip(gradients: Weights, limit: float | None) -> None:
    norm = sum(float(gradient.norm()) ** 2 for gradient in gradients.values()) ** 0.5
    if limit is not None and norm > limit:
        for gradient in gradients.values():
            gradient.mul_(limit / norm)


def _step(optim: torch.optim.Optimizer, parameters: Weights, gradients: Weights, rate: float) -> None:
    for name, parameter in parameters.items():
        parameter.grad = gradients.get(name)
    optimizer.set_learning_rate(optim, rate)
    optim.step()


def bsp(spec: ClusterSpec, model: Model, source: Source) -> Weights:
    """Weights after ``spec.run.steps`` steps of gradient accumulation."""
    whole = Whole(model, source, spec.run.seed)
    optim = optimizer.build(spec.optimizer, whole.owned())
    per_step = spec.pipeline.minibatches_per_step
    for step in range(spec.run.steps):
        whole.set({name: parameter.detach().clone() for name, parameter in whole.owned().items()})
        numbers = range(step * per_step, (step + 1) * per_step)
        for number in numbers:
            whole.loss(source, number, _counts(source, numbers)).backward()
        gradients = whole.gradients()
        _clip(gradients, spec.optimizer.clip_grad_norm)
        _step(optim, whole.owned(), gradients, optimizer.learning_rate(spec.optimizer, step, spec.run.steps))
    return {name: parameter.detach() for name, parameter in whole.owned().items()}


def asp(spec: ClusterSpec, model: Model, source: Source, partition: list[int]) -> Weights:
    """Weights after ``spec.run.steps`` minibatches through a 1F1B stream with weight stashing."""
    whole = Whole(model, source, spec.run.seed)
    stages = len(partition)
    ends = [sum(partition[: stage + 1]) for stage in range(stages)]
    stage_of = {name: next(s for s in range(stages) if layer < ends[s]) for name, layer in whole.flow.holders.items()}
    newest = [
        {name: nn.Parameter(p.detach().clone()) for name, p in whole.owned().items() if stage_of[name] == stage}
        for stage in range(stages)
    ]
    history = [[_copy(parameters)] for parameters in newest]
    optims = [optimizer.build(spec.optimizer, parameters) for parameters in newest]
    for number in range(spec.run.steps):
        versions = [history[stage][max(0, number - (stages - 1 - stage))] for stage in range(stages)]
        whole.set({name: value for version in versions for name, value in version.items()})
        whole.loss(source, number, _counts(source, range(number, number + 1))).backward()
        gradients = whole.gradients()
        for stage in range(stages):
            own = {name: gradients[name] for name in newest[stage] if name in gradients}
            _clip(own, spec.optimizer.clip_grad_norm)
            rate = optimizer.learning_rate(spec.optimizer, number, spec.run.steps)
            _step(optims[stage], newest[stage], own, rate)
            history[stage].append(_copy(newest[stage]))
    return {name: parameter.detach() for parameters in newest for name, parameter in parameters.items()}


def _copy(parameters: dict[str, nn.Parameter]) -> Weights:
    return {name: parameter.detach().clone() for name, parameter in parameters.items()}
