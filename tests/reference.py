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
from worker.spec.job import Plan

Weights = dict[str, Tensor]


class Whole:
    """The whole model with its parameters by full name; tied ones have a leaf of their own."""

    def __init__(self, model: Model, source: Source, seed: int, precision: str) -> None:
        self.model, self.precision = model, precision
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
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.precision == "bf16", cache_enabled=False):
                result = module(*(values[name] for name in layer.inputs))
            outputs = result if isinstance(result, tuple) else (result,)
            if self.precision == "bf16" and index < len(self.modules) - 1:
                outputs = tuple(value.bfloat16() for value in outputs)
            values.update(zip(layer.outputs, outputs, strict=True))
        return (values[self.model.layers[-1].outputs[0]] * weights).sum()

    def slip(self, newest: Weights, lent: Weights) -> None:
        """Change parameters under the graph of the last loss, without autograd's notice; borrowed ones stay as lent."""
        for name, parameter in self.parameters.items():
            parameter.data.copy_(lent[self.model.tied[name]] if name in self.model.tied else newest[name])

    def take_gradients(self) -> Weights:
        """The gradients of the last backward by full name, borrowed parameters' apart; they are gone afterwards."""
        taken = {name: p.grad for name, p in self.parameters.items() if p.grad is not None}
        for parameter in self.parameters.values():
            parameter.grad = None
        return taken

    def with_borrowed(self, gradients: Weights) -> Weights:
        """Gradients by owner; borrowers' are added in layer order."""
        total = {name: gradient for name, gradient in gradients.items() if name not in self.model.tied}
        for borrower, owner in self.flow.tied.items():
            total[owner] = total[owner] + gradients[borrower]
        return total


def _counts(source: Source, numbers: range) -> Tensor:
    counts = [source.minibatch(number).counts for number in numbers]
    return torch.tensor([1 / max(1, sum(term)) for term in zip(*counts, strict=True)], dtype=torch.float32)


def _clip(gradients: Weights, limit: float | None) -> None:
    norm = sum(float(gradient.norm()) ** 2 for gradient in gradients.values()) ** 0.5
    if limit is not None and norm > limit:
        for gradient in gradients.values():
            gradient.mul_(limit / norm)


def _step(optim: torch.optim.Optimizer | None, parameters: Weights, gradients: Weights, rate: float) -> None:
    if optim is None:  # a stage without parameters
        return
    for name, parameter in parameters.items():
        parameter.grad = gradients.get(name)
    optimizer.set_learning_rate(optim, rate)
    optim.step()


def _summed(parts: list[tuple[int, Weights]], whole: Whole, plan: Plan) -> Weights:
    """Gradients of several minibatches as the replicas of each stage add them up: first each its own, then in turn."""
    total = {}
    for name in parts[0][1]:
        replicas = plan.replicas[_stage_of(name, whole, plan)]
        own: list[Tensor | None] = [None] * replicas
        for number, gradients in parts:
            so_far = own[number % replicas]
            own[number % replicas] = gradients[name] if so_far is None else so_far + gradients[name]
        given = [gradient for gradient in own if gradient is not None]
        total[name] = sum(given[1:], given[0])
    return total


def _stage_of(name: str, whole: Whole, plan: Plan) -> int:
    return next(stage for stage in range(plan.stages) if whole.flow.holders[name] in plan.layers_of(stage))


def bsp(spec: ClusterSpec, model: Model, source: Source, plan: Plan) -> Weights:
    """Weights after ``spec.run.steps`` steps of gradient accumulation; ``plan`` matters for the order of sums only."""
    whole = Whole(model, source, spec.run.seed, spec.precision)
    optim = optimizer.build(spec.optimizer, whole.owned(), optimizer.outer(whole.flow))
    per_step = spec.pipeline.minibatches_per_step
    for step in range(spec.run.steps):
        whole.set({name: parameter.detach().clone() for name, parameter in whole.owned().items()})
        numbers, parts = range(step * per_step, (step + 1) * per_step), []
        for number in numbers:
            whole.loss(source, number, _counts(source, numbers)).backward()
            parts.append((number, whole.take_gradients()))
        gradients = whole.with_borrowed(_summed(parts, whole, plan))
        _clip(gradients, spec.optimizer.clip_grad_norm)
        _step(optim, whole.owned(), gradients, optimizer.learning_rate(spec.optimizer, step, spec.run.steps))
    return {name: parameter.detach() for name, parameter in whole.owned().items()}


class StageReplay:
    """One stage under ASP: all its weight versions, and the gradients of the minibatches since the last update."""

    def __init__(self, stage: int, spec: ClusterSpec, whole: Whole, plan: Plan) -> None:
        self.stage, self.stages = stage, plan.stages
        self.replicas = plan.replicas[stage]
        before = sum(plan.replicas[:stage])
        self.warmup = (sum(plan.replicas) - 1 - before) // self.replicas
        self.spec, self.whole = spec, whole
        self.per_update = spec.pipeline.minibatches_per_step or self.replicas
        names = [name for name in whole.owned() if _stage_of(name, whole, plan) == stage]
        self.newest = {name: nn.Parameter(whole.parameters[name].detach().clone()) for name in names}
        self.optim = optimizer.build(spec.optimizer, self.newest, optimizer.outer(whole.flow))
        self.replica_ratio = self.replicas / plan.replicas[0]
        self.history = [_copy(self.newest)]
        self.waiting: list[tuple[int, Weights]] = []

    @property
    def delay(self) -> int:
        """Updates that come between a forward's weights and its own update, in the steady state."""
        last = self.spec.run.steps * (self.spec.pipeline.minibatches_per_step or 1)
        return max(number // self.per_update - self.version(number) for number in range(last))

    def version(self, number: int) -> int:
        """Updates in the weights that the schedule gives to ``number`` here."""
        if self.spec.pipeline.schedule == "2bw":
            return max(0, number // self.per_update - 1)
        drains, number = divmod(number, self.between_drains)
        return drains * -(-self.between_drains // self.per_update) + self.version_since_drain(number)

    @property
    def between_drains(self) -> int:
        """Minibatches after which the pipeline stands empty, for a checkpoint."""
        return (self.spec.checkpoint.every_steps or self.spec.run.steps) * (
            self.spec.pipeline.minibatches_per_step or 1
        )

    def version_since_drain(self, number: int) -> int:
        """Updates since the pipeline last stood empty, ``number`` minibatches ago."""
        depth = self.spec.pipeline.in_flight
        if self.spec.pipeline.schedule == "none":
            return number // self.per_update
        if depth == "auto":
            warmup = self.warmup
        elif depth <= self.stages or self.stages == 1:
            warmup = min(depth - 1, self.stages - 1 - self.stage)
        else:  # the surplus is spread evenly over the cuts, rounded up
            warmup = -(-(depth - 1) * (self.stages - 1 - self.stage) // (self.stages - 1))
        done = max(0, number // self.replicas - warmup)
        return done if self.spec.pipeline.minibatches_per_step is None else done // self.per_update

    def update(self, number: int, gradients: Weights) -> None:
        """Take in the gradients of one minibatch; update after as many as the schedule says, or at the end.

        Where a step is one minibatch, replicas' gradients are averaged; else the loss has been weighed for the step.
        """
        self.waiting.append((number, gradients))
        per_step = self.spec.pipeline.minibatches_per_step
        drains = (number + 1) % self.between_drains == 0
        if len(self.waiting) < self.per_update and number < self.spec.run.steps * (per_step or 1) - 1 and not drains:
            return
        # Replicas sum in their own order, which behind a drain need not be that of the minibatches.
        first, *others = [each for _, each in sorted(self.waiting, key=lambda each: each[0] % self.replicas)]
        total = {name: sum((each[name] for each in others), gradient) for name, gradient in first.items()}
        share = 1 if per_step else len(self.waiting)
        mean = self.whole.with_borrowed({name: gradient / share for name, gradient in total.items()})
        mean = {name: mean[name] for name in self.newest if name in mean}
        self.waiting = []
        _clip(mean, self.spec.optimizer.clip_grad_norm)
        step, steps = number // (per_step or 1), self.spec.run.steps
        rate = optimizer.learning_rate(self.spec.optimizer, step, steps, self.replica_ratio, self.delay)
        _step(self.optim, self.newest, mean, rate)
        self.history.append(_copy(self.newest))


def asp(spec: ClusterSpec, model: Model, source: Source, plan: Plan) -> Weights:
    """Weights after ``spec.run.steps`` steps of a stream, each minibatch on the versions that its schedule says.

    Under ``accumulate`` the weights change under the graph, as they do in the runtime: its backward meets the newest.
    """
    whole = Whole(model, source, spec.run.seed, spec.precision)
    stages = [StageReplay(stage, spec, whole, plan) for stage in range(plan.stages)]
    per_step = spec.pipeline.minibatches_per_step or 1
    for number in range(spec.run.steps * per_step):
        versions = {n: v for stage in stages for n, v in stage.history[stage.version(number)].items()}
        whole.set(versions)
        first = number // per_step * per_step
        loss = whole.loss(source, number, _counts(source, range(first, first + per_step)))
        if spec.pipeline.schedule == "accumulate":
            whole.slip({name: value for stage in stages for name, value in _copy(stage.newest).items()}, versions)
        loss.backward()
        gradients = whole.take_gradients()
        for stage in stages:
            stage.update(number, gradients)
    return {name: parameter.detach() for stage in stages for name, parameter in stage.newest.items()}


def _copy(parameters: dict[str, nn.Parameter]) -> Weights:
    return {name: parameter.detach().clone() for name, parameter in parameters.items()}
