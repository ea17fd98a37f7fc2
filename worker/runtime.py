"""StageRuntime: what each Action does in one stage, and which tensors it takes from and gives to other ranks.

Tied parameters: the first stage that holds one owns it. The owner's weights travel to the borrowing stages with the
first minibatch that uses them, so that both ends of a minibatch see the same version; the borrowers' gradients travel
back at the update, where the owner adds them in layer order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from worker import alike, eager, trace
from worker import optimizer as optim
from worker import topology as topo
from worker.communication import Communicator, Expected
from worker.data.base import TensorSpec
from worker.errors import DataError, ModelError, NonFiniteLoss, RankError
from worker.precision import LOSS_SCALE, LossScaler
from worker.replicas import ReplicaGroup
from worker.schedule import Action, Kind
from worker.stage import Graph, Stage
from worker.stash import Give
from worker.topology import Tie, Topology

LOSS_WEIGHTS = "loss weights"
"""Travels with the targets: for each loss term one over the number of real targets in the minibatch's step."""

NAN_HINT = "lower optimizer.lr, add warmup_steps or clip_grad_norm; run.on_nan=skip leaves such updates out"
"""What helps where a loss or a gradient is not finite."""

LOSSES = "losses"
"""Ride along when gradients are summed over replicas."""


class UpdateOf(NamedTuple):
    """An update of one stage: its last minibatch, and how many minibatches and steps it is over.

    Under ASP with one minibatch per step, replicas update together: as many steps at once as there are replicas.
    """

    minibatch: int
    minibatches: int
    steps: int


class Feed(NamedTuple):
    """What the first stage puts into the pipeline for one minibatch; ``targets`` include LOSS_WEIGHTS."""

    inputs: Mapping[str, Tensor]
    targets: Mapping[str, Tensor]


class StageRuntime:
    """One stage of the pipeline, as the rank that holds it runs it.

    Args:
        optimizer: of the stage's own parameters; None where it has none.
        feed: gives the minibatches by number; None on all stages but the first.
        scaler: keeps the factor of gradients under fp16, else None.
        replicas: None where the stage has one rank only.
        versions: for a stage, minibatch and weight version of all its forwards, as ``schedule.job.stage_versions``.
    """

    def __init__(
        self,
        topology: Topology,
        stage: Stage,
        communicator: Communicator,
        optimizer: torch.optim.Optimizer | None,
        feed: Callable[[int], Feed] | None,
        scaler: LossScaler | None,
        replicas: ReplicaGroup | None,
        versions: Callable[[int], Iterable[tuple[int, int]]],
    ) -> None:
        self.topology = topology
        self.stage = stage
        self.stash = stage.stash
        self.optimizer = optimizer
        self.skips_nan = False
        """Whether a loss that is not finite is said and left out, instead of ending the run."""
        self.compares_every: int | None = None
        """Updates between two comparisons of the weights with those of the other replicas."""
        self.updates = 0
        """Updates done so far."""
        self._communicator = communicator
        self._feed = feed
        self._scaler = scaler
        self._replicas = replicas
        self._first_uses = {tie.borrower: _FirstUses(topology, tie, versions) for tie in topology.borrowed}
        self._loans = {tie.borrower: _FirstUses(topology, tie, versions) for tie in topology.lent}
        self._graphs: dict[int, Graph] = {}
        self._loss_weights: dict[int, Tensor] = {}
        self._losses: list[float] = []

    @property
    def is_drained(self) -> bool:
        """Whether no minibatch is in flight here and every gradient has gone into an update."""
        return not self._graphs and not self.stash.gradients

    @property
    def in_flight(self) -> int:
        """Minibatches that were run forward and not yet wholly backward."""
        return len(self._graphs)

    def version_of(self, action: Action) -> int | None:
        """Updates that went into the weights of ``action``; of an update, those before it."""
        if graph := self._graphs.get(action.minibatch):
            return graph.version.number
        return self.stash.current.number if action.version is None else action.version

    def expected(self, action: Action) -> list[Expected]:
        """What ``action`` needs from other ranks. To be asked once for each action, in their order."""
        fresh: list[str] = []
        if action.kind is Kind.FORWARD:
            fresh = [borrower for borrower, uses in self._first_uses.items() if uses.reached(action.minibatch)]
        return self.topology.expected(action, fresh)

    def forward(self, action: Action, received: Mapping[str, Tensor]) -> None:
        """F: run the layers, send the outputs on."""
        minibatch = action.minibatch
        inputs, targets = self._inputs(minibatch, received)
        for tie in self.topology.borrowed:
            if (what := topo.weight(tie.borrower)) in received:
                self.stash.borrow(tie.borrower, received[what])
        self._lend(action)
        graph = self._graphs[minibatch] = self.stage.forward(minibatch, inputs, targets, action.version)
        if graph.loss is not None:
            self._loss_weights[minibatch] = targets[LOSS_WEIGHTS]
            self._check_loss(graph.loss, targets[LOSS_WEIGHTS])
            self._count_loss(graph, graph.loss, targets)
        after = self.topology.stage + 1
        self._send({topo.activation(name, after): tensor for name, tensor in graph.outputs.items()}, after, minibatch)

    def input_gradient(self, action: Action, received: Mapping[str, Tensor]) -> None:
        """I: run backward, send the gradients of the inputs back."""
        self._backward(action, received, None)

    def _backward(self, action: Action, received: Mapping[str, Tensor], give: Give | None) -> None:
        minibatch = action.minibatch
        outgoing, stage = self.topology.outgoing, self.topology.stage
        names = sorted(outgoing.differentiable) if outgoing else []
        gradients = {name: received[topo.gradient(name, stage)] for name in names}
        graph, weights = self._graphs[minibatch], self._loss_weights.pop(minibatch, None)
        if weights is not None and graph.factor != 1.0:
            weights = weights * graph.factor
        with self.stash.collecting(graph.version, graph.factor, give) if give else trace.NOTHING:
            results = self.stage.backward(graph, gradients, weights)
        self._send({topo.gradient(name, stage - 1): tensor for name, tensor in results.items()}, stage - 1, minibatch)

    def weight_gradient(self, action: Action, update: Action | None) -> None:
        """W: compute what I has left, and end the minibatch's graph.

        ``update``: the one that follows directly, so that what is summed over replicas can leave on the way.
        """
        self.stage.finish(self._graphs.pop(action.minibatch), self._giving(update))

    def backward(self, action: Action, received: Mapping[str, Tensor], update: Action | None) -> None:
        """B: I and W at once; ``update`` as in ``weight_gradient``."""
        self._backward(action, received, self._giving(update))
        self.weight_gradient(action, None)

    def _giving(self, update: Action | None) -> Give | None:
        """What takes a gradient that is whole, on its way into ``update``; None where nobody needs it early."""
        if self._replicas is None or update is None:
            return None
        return partial(self._replicas.give, minibatch=update.minibatch)

    def sum_over_replicas(self, update: UpdateOf) -> None:
        """U, first: add up gradients and losses over the stage's replicas.

        Loss weights make a sum over a step its mean; where a step is one minibatch, the mean over replicas is left.
        """
        if self._replicas is None:
            return
        more = {LOSSES: torch.tensor(self._losses)} if self._losses else {}
        if self.compares_every and self.updates % self.compares_every == 0:
            ranks = self._replicas.ranks
            more[alike.CHECKSUMS] = alike.table(self.stash.parameters, ranks.index(self.topology.rank), len(ranks))
        sums = self._replicas.sum({**self.stash.gradients, **more}, update.minibatch)
        if alike.CHECKSUMS in sums:
            self._compare(sums.pop(alike.CHECKSUMS))
        if update.steps > 1:
            for tensor in sums.values():
                tensor.div_(update.steps)
        self._losses = sums.pop(LOSSES).tolist() if LOSSES in sums else []
        self.stash.gradients = sums

    def _compare(self, checksums: Tensor) -> None:
        if odd := alike.odd_ones(checksums):
            assert self._replicas is not None
            ranks = ", ".join(str(self._replicas.ranks[replica]) for replica in odd)
            others = "each other's" if len(odd) == len(checksums) else "those of the other replicas"
            after = f"stage {self.topology.stage}: after {self.updates} updates"
            raise RankError(  # which another attempt may heal
                f"{after} the weights of rank {ranks} are not {others}",
                "no number should differ: suspect the memory or the processor of one of their machines",
            )

    def return_borrowed(self, minibatch: int) -> None:
        """U, then: send the gradients of borrowed parameters to their owners."""
        for tie in self.topology.borrowed:
            share = self.stash.gradients.pop(tie.borrower, None)
            share = torch.zeros(tie.spec.shape, dtype=tie.spec.dtype) if share is None else share
            for address in self.topology.to_owners(tie, minibatch):
                self._communicator.send(share, address)

    def gather_gradients(self, received: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """U, then: the gradients of the owned parameters, with those of their borrowers added in layer order."""
        gradients = self.stash.gradients
        for borrower, owner in self.stash.tied.items():
            share = received.get(topo.weight_gradient(borrower), gradients.pop(borrower, None))
            if share is not None:
                gradients[owner] = gradients[owner].add_(share) if owner in gradients else share
        return gradients

    def apply(self, gradients: Mapping[str, Tensor], rate: float, is_finite: bool = True) -> list[float]:
        """U, last: update the parameters, unless a gradient overflowed.

        Returns the mean loss by term since the last update, on the last stage.
        """
        if self.optimizer is not None and is_finite:
            self.stash.before_update()
            for name, parameter in self.stash.parameters.items():
                parameter.grad = gradients.get(name) if parameter.requires_grad else None
            optim.set_learning_rate(self.optimizer, rate)
            eager.step(self.optimizer)
            for parameter in self.stash.parameters.values():
                parameter.grad = None
        self.stash.after_update()
        self.updates += 1
        losses, self._losses = self._losses, []
        return losses

    def _inputs(
        self, minibatch: int, received: Mapping[str, Tensor]
    ) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor]]:
        """Inputs and targets of a forward here: from the data, from the stage before, from the first stage."""
        topology = self.topology
        if topology.is_first:
            assert self._feed is not None
            feed = self._feed(minibatch)
            counts, terms = len(feed.targets[LOSS_WEIGHTS]), topology.targets[LOSS_WEIGHTS].shape[0]
            if counts != terms:
                raise DataError(f"minibatch {minibatch} counts the targets of {counts} losses; the model has {terms}")
            if not topology.is_last:
                for name, tensor in feed.targets.items():  # they are needed no sooner than what comes of this forward
                    address = topology.to(topology.stages - 1, topo.target(name), minibatch)
                    self._communicator.send(tensor, address, later=True)
            if self._scaler is not None:
                factor = torch.tensor([self._scaler.factor], device=self.stage.device)
                return {**feed.inputs, LOSS_SCALE: factor}, feed.targets
            return feed.inputs, feed.targets
        inputs = {name: received[topo.activation(name, topology.stage)] for name in topology.incoming.specs}
        targets = {name: received[topo.target(name)] for name in topology.targets} if topology.is_last else {}
        return inputs, targets

    def _lend(self, action: Action) -> None:
        """Send owned weights to the borrowers that meet them with this minibatch for the first time."""
        for tie in self.topology.lent:
            if self._loans[tie.borrower].reached(action.minibatch):
                tensor = self.stash.lent(tie.owner, action.version)
                self._send({topo.weight(tie.borrower): tensor}, tie.borrower_stage, action.minibatch)

    def _check_loss(self, sums: Tensor, weights: Tensor) -> None:
        """A loss must have one sum for each term, and something to train."""
        layer = self.stage.layers[-1].name
        if sums.shape != weights.shape or sums.dtype != weights.dtype:
            raise ModelError(
                f"layer {layer} gives a loss of {TensorSpec.of(sums)}, not {TensorSpec.of(weights)}",
                "the last layer gives, in float32, one sum over its targets for each name in Model.losses",
            )
        if not sums.requires_grad:
            raise ModelError(
                f"the loss of layer {layer} depends on no parameter, in its stage or before it",
                "nothing could be trained: look for integer tensors and for detach() on the way to the loss",
            )

    def _count_loss(self, graph: Graph, sums: Tensor, targets: Mapping[str, Tensor]) -> None:
        weights = self._loss_weights[graph.minibatch].tolist()
        losses = [loss * weight for loss, weight in zip(sums.tolist(), weights, strict=True)]
        if odd := [loss for loss in losses if not math.isfinite(loss)]:
            what = f"stage {self.topology.stage}: loss {odd[0]} at minibatch {graph.minibatch}"
            what += f", step {self.updates + 1}: {self.stage.first_bad(graph, targets)}"
            if not self.skips_nan:
                raise NonFiniteLoss(what, NAN_HINT)
            print(f"{what}; its update is left out", flush=True)
            return
        self._losses = [a + b for a, b in zip(self._losses, losses, strict=True)] if self._losses else losses

    def _send(self, tensors: Mapping[str, Tensor], stage: int, minibatch: int) -> None:
        """To one stage, which is told of all of them at once."""
        for left, (what, tensor) in zip(range(len(tensors) - 1, -1, -1), tensors.items(), strict=True):
            self._communicator.send(tensor, self.topology.to(stage, what, minibatch), later=left > 0)


class _FirstUses:
    """Minibatches of this rank with which a borrower meets a new version of an owner's weights, asked for in order."""

    def __init__(self, topology: Topology, tie: Tie, versions: Callable[[int], Iterable[tuple[int, int]]]) -> None:
        borrowers = len(topology.plan.ranks_of(tie.borrower_stage))
        uses = topo.first_uses(versions(tie.owner_stage), borrowers)
        self._uses = (use for use in uses if topology.plan.rank_of(topology.stage, use) == topology.rank)
        self._next = next(self._uses, None)

    def reached(self, minibatch: int) -> bool:
        """Whether ``minibatch`` is the next of them."""
        if minibatch != self._next:
            return False
        self._next = next(self._uses, None)
        return True
