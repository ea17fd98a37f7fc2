"""StageRuntime: executes a schedule's Actions on one stage.

The same loop serves every schedule. What an action needs from other ranks follows from the action alone, so receives
are posted ahead of time from the same list that is executed.

Tied parameters: the first stage that holds one owns it. The owner's weights travel to the borrowing stages with the
first minibatch that uses them, so that both ends of a minibatch see the same version; the borrowers' gradients travel
back at the update, where the owner adds them in layer order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import tee

import torch
from torch import Tensor

from worker import optimizer as optim
from worker import topology as topo
from worker.communication import Communicator, Expected, Inbox
from worker.errors import NonFiniteLoss
from worker.metrics import StepClock, Update
from worker.schedule import Action, Kind
from worker.spec.cluster import OptimizerSpec
from worker.stage import Graph, Stage
from worker.topology import Topology

LOSS_WEIGHTS = "loss weights"
"""Travels with the targets: for each loss term one over the number of real targets in the minibatch's step."""


@dataclass(frozen=True)
class Feed:
    """What the first stage puts into the pipeline for one minibatch; ``targets`` include LOSS_WEIGHTS."""

    inputs: Mapping[str, Tensor]
    targets: Mapping[str, Tensor]


@dataclass(frozen=True)
class UpdateRule:
    """How a stage's parameters are updated.

    ``all_parameters`` names the parameters of the whole model in order where clipping is over all stages, else None.
    """

    spec: OptimizerSpec
    updates: int
    all_parameters: tuple[str, ...] | None


class StageRuntime:
    """One rank's part of the pipeline.

    Args:
        feed: gives the minibatches by number; None on all stages but the first.
        owners_actions: for each stage that lends a tied parameter to this one, the Actions of that stage.
    """

    def __init__(
        self,
        topology: Topology,
        stage: Stage,
        communicator: Communicator,
        rule: UpdateRule,
        clock: StepClock,
        feed: Callable[[int], Feed] | None,
        owners_actions: Mapping[int, Iterable[Action]],
    ) -> None:
        self.topology = topology
        self.stage = stage
        self.stash = stage.stash
        self.optimizer = optim.build(rule.spec, self.stash.parameters)
        self._communicator = communicator
        self._rule = rule
        self._clock = clock
        self._feed = feed
        self._fresh = {tie.borrower: topo.first_uses(owners_actions[tie.owner_stage]) for tie in topology.borrowed}
        self._graphs: dict[int, Graph] = {}
        self._loss_weights: dict[int, Tensor] = {}
        self._losses: list[float] = []
        self._done = 0
        self._version_lent: int | None = None

    def run(self, actions: Iterable[Action]) -> None:
        """Execute ``actions`` to the end, and wait until everything sent has left.

        Raises PeerLost, StallError, NonFiniteLoss.
        """
        execute: dict[Kind, Callable[[int, dict[str, Tensor]], Update | None]]
        execute = {Kind.FORWARD: self._forward, Kind.BACKWARD: self._backward, Kind.UPDATE: self._update}
        to_run, to_expect = tee(actions)
        inbox = Inbox(self._communicator, self._expected(to_expect))
        for action in to_run:
            self._clock.start()
            update = execute[action.kind](action.minibatch, inbox.take())
            self._clock.stop(action.kind)
            if update is not None:
                self._clock.end_step(update)
        self._communicator.finish()

    def _expected(self, actions: Iterable[Action]) -> Iterator[list[Expected]]:
        following = {name: next(uses, None) for name, uses in self._fresh.items()}
        for action in actions:
            fresh = {}
            if action.kind is Kind.FORWARD:
                fresh = {name: action.minibatch == minibatch for name, minibatch in following.items()}
            yield self.topology.expected(action, fresh)
            for name, is_fresh in fresh.items():
                if is_fresh:
                    following[name] = next(self._fresh[name], None)

    def _forward(self, minibatch: int, received: dict[str, Tensor]) -> None:
        inputs, targets = self._inputs(minibatch, received)
        for tie in self.topology.borrowed:
            if (what := topo.weight(tie.borrower)) in received:
                self.stash.borrow(tie.borrower, received[what])
        self._lend(minibatch)
        graph = self._graphs[minibatch] = self.stage.forward(minibatch, inputs, targets)
        if graph.loss is not None:
            self._loss_weights[minibatch] = targets[LOSS_WEIGHTS]
            self._count_loss(minibatch, graph.loss)
        for name, tensor in graph.outputs.items():
            self._send(tensor, self.topology.stage + 1, topo.activation(name, self.topology.stage + 1), minibatch)

    def _backward(self, minibatch: int, received: dict[str, Tensor]) -> None:
        graph = self._graphs.pop(minibatch)
        outgoing = self.topology.outgoing
        names = sorted(outgoing.differentiable) if outgoing else []
        gradients = {name: received[topo.gradient(name, self.topology.stage)] for name in names}
        results = self.stage.backward(graph, gradients, self._loss_weights.pop(minibatch, None))
        for name, tensor in results.items():
            self._send(tensor, self.topology.stage - 1, topo.gradient(name, self.topology.stage - 1), minibatch)

    def _update(self, minibatch: int, received: dict[str, Tensor]) -> Update:
        gradients = self._total_gradients(minibatch, received)
        norm = self._clip(gradients)
        rate = optim.learning_rate(self._rule.spec, self._done, self._rule.updates)
        if self.optimizer is not None:
            self.stash.before_update()
            for name, parameter in self.stash.parameters.items():
                parameter.grad = gradients.get(name)
            optim.set_learning_rate(self.optimizer, rate)
            self.optimizer.step()
            self.optimizer.zero_grad()
        self.stash.after_update()
        self._done += 1
        losses, self._losses = self._losses, []
        return Update(losses, rate, norm)

    def _inputs(self, minibatch: int, received: dict[str, Tensor]) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor]]:
        """Inputs and targets of a forward here: from the data, from the stage before, from the first stage."""
        topology = self.topology
        if topology.is_first:
            assert self._feed is not None
            feed = self._feed(minibatch)
            for name, tensor in feed.targets.items():
                if not topology.is_last:
                    self._send(tensor, topology.stages - 1, topo.target(name), minibatch)
            return feed.inputs, feed.targets
        inputs = {name: received[topo.activation(name, topology.stage)] for name in topology.incoming.specs}
        targets = {name: received[topo.target(name)] for name in topology.targets} if topology.is_last else {}
        return inputs, targets

    def _lend(self, minibatch: int) -> None:
        """Send owned weights to their borrowers when this minibatch is the first on a new version."""
        if not self.topology.lent or self._version_lent == self.stash.current.number:
            return
        self._version_lent = self.stash.current.number
        for tie in self.topology.lent:
            tensor = self.stash.current.leaves[tie.owner]
            self._send(tensor, tie.borrower_stage, topo.weight(tie.borrower), minibatch)

    def _count_loss(self, minibatch: int, sums: Tensor) -> None:
        losses = (sums.detach() * self._loss_weights[minibatch]).tolist()
        if not all(map(math.isfinite, losses)):
            raise NonFiniteLoss(
                f"stage {self.topology.stage}: loss {losses[0]} at minibatch {minibatch}, step {self._done + 1}",
                "lower optimizer.lr, add optimizer.warmup_steps or optimizer.clip_grad_norm",
            )
        self._losses = [a + b for a, b in zip(self._losses, losses, strict=True)] if self._losses else losses

    def _total_gradients(self, minibatch: int, received: dict[str, Tensor]) -> dict[str, Tensor]:
        """Gradients of the owned parameters, those of their borrowers added in layer order; the others are sent off."""
        gradients = self.stash.gradients
        for tie in self.topology.borrowed:
            share = gradients.pop(tie.borrower, None)
            share = torch.zeros(tie.spec.shape, dtype=tie.spec.dtype) if share is None else share
            self._send(share, tie.owner_stage, topo.weight_gradient(tie.borrower), minibatch)
        for borrower, owner in self.stash.tied.items():
            share = received.get(topo.weight_gradient(borrower), gradients.pop(borrower, None))
            if share is not None:
                gradients[owner] = gradients[owner].add_(share) if owner in gradients else share
        return gradients

    def _clip(self, gradients: Mapping[str, Tensor]) -> float | None:
        """Clip in place as the rule says; the norm before it, None where there is no limit."""
        limit, everywhere = self._rule.spec.clip_grad_norm, self._rule.all_parameters
        if limit is None:
            return None
        names = [name for name in self.stash.parameters if name in gradients]
        squares = dict(zip(names, optim.squared_norms([gradients[name] for name in names]), strict=True))
        if everywhere is not None:
            mine = torch.tensor([squares.get(name, 0.0) for name in everywhere], dtype=torch.float64)
            # Every number is one rank's own and the others add zero, so the sum is exact whatever the order of ranks.
            total = self._communicator.sum_over_ranks(mine, "the gradient norm")
            squares = dict(zip(everywhere, total.tolist(), strict=True))
        norm = math.sqrt(sum(squares.values()))
        optim.clip(gradients.values(), norm, limit)
        return norm

    def _send(self, tensor: Tensor, stage: int, what: str, minibatch: int) -> None:
        self._communicator.send(tensor, self.topology.to(stage, what, minibatch))
