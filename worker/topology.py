"""Who sends what to whom: the messages of every action, as addresses that both sides compute alike."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from worker import replicas
from worker.communication import Address, Expected
from worker.data.base import TensorSpec
from worker.flow import Cut
from worker.schedule import Action, Kind
from worker.spec.job import Plan

Needed = tuple[int, str, TensorSpec]
"""From which stage what comes, and its shape and dtype."""


@dataclass(frozen=True)
class Tie:
    """A parameter that one stage borrows from another."""

    borrower: str
    owner: str
    borrower_stage: int
    owner_stage: int
    spec: TensorSpec


def activation(name: str, stage: int) -> str:
    """What carries ``name`` forward into ``stage``."""
    return f"activation {name} into stage {stage}"


def gradient(name: str, stage: int) -> str:
    """What carries the gradient of ``name`` back into ``stage``."""
    return f"gradient of {name} into stage {stage}"


def target(name: str) -> str:
    """What carries a target from the first stage to the last."""
    return f"target {name}"


def weight(borrower: str) -> str:
    """What carries an owner's weights to the parameter ``borrower``."""
    return f"weight {borrower}"


EVALUATED = "minibatch evaluated"
"""What tells the first stage that a minibatch of an evaluation has come to its end."""


def weight_gradient(borrower: str) -> str:
    """What carries the gradient of the parameter ``borrower`` to its owner."""
    return f"gradient of weight {borrower}"


@dataclass(frozen=True)
class Topology:
    """The neighbours of one stage, as one of its ranks sees them.

    ``cuts[s]`` stands before stage s. ``targets`` go straight from the first stage to the last. A tied weight goes from
    the owner's replica that has the minibatch to the borrower's that has it; every replica of an owner gets the summed
    gradient from one replica of the borrower.
    """

    plan: Plan
    stage: int
    rank: int
    cuts: tuple[Cut, ...]
    targets: Mapping[str, TensorSpec]
    ties: tuple[Tie, ...]

    @cached_property
    def stages(self) -> int:
        """Number of stages."""
        return len(self.cuts)

    @cached_property
    def is_first(self) -> bool:
        """Whether this stage reads the data."""
        return self.stage == 0

    @cached_property
    def is_last(self) -> bool:
        """Whether this stage computes the loss."""
        return self.stage == self.stages - 1

    @cached_property
    def incoming(self) -> Cut:
        """The cut before this stage."""
        return self.cuts[self.stage]

    @cached_property
    def outgoing(self) -> Cut | None:
        """The cut behind this stage."""
        return None if self.is_last else self.cuts[self.stage + 1]

    @cached_property
    def lent(self) -> list[Tie]:
        """Ties whose owner is here."""
        return [tie for tie in self.ties if tie.owner_stage == self.stage]

    @cached_property
    def borrowed(self) -> list[Tie]:
        """Ties whose borrower is here."""
        return [tie for tie in self.ties if tie.borrower_stage == self.stage]

    def names(self) -> list[str]:
        """Everything that travels anywhere, in the same order on every rank."""
        names = [*self._sums(), EVALUATED]
        for stage in range(1, self.stages):
            names += [activation(name, stage) for name in self.cuts[stage].specs]
            names += [gradient(name, stage - 1) for name in sorted(self.cuts[stage].differentiable)]
        names += [target(name) for name in self.targets]
        return names + [describe(tie.borrower) for tie in self.ties for describe in (weight, weight_gradient)]

    def varying(self) -> list[str]:
        """What travels with another shape from minibatch to minibatch, where sequences are of variable length."""
        fixed = {describe(tie.borrower) for tie in self.ties for describe in (weight, weight_gradient)}
        fixed |= {*self._sums(), EVALUATED}
        return [name for name in self.names() if name not in fixed]

    def _sums(self) -> list[str]:
        """What replicas of any stage send each other."""
        stages = (stage for stage in range(self.stages) if len(self.plan.ranks_of(stage)) > 1)
        return [name for stage in stages for name in replicas.names(stage)]

    def passed(self, minibatch: int) -> Address:
        """The address of the word that a minibatch of an evaluation has come to its end."""
        source, destination = (self._rank_of(stage, minibatch) for stage in (self.stages - 1, 0))
        return Address(EVALUATED, source, destination, minibatch)

    def expected(self, action: Action, fresh: Collection[str]) -> list[Expected]:
        """What ``action`` needs from other ranks; ``fresh``: borrowed weights with a new version for it."""
        if action.kind is Kind.WEIGHT_GRAD:
            return []
        if action.kind is Kind.UPDATE:
            return [self._shared_gradient(tie, action.minibatch) for tie in self.lent]
        needed = self._for_backward
        if action.kind is Kind.FORWARD:
            borrowed = [(t.owner_stage, weight(t.borrower), t.spec) for t in self.borrowed if t.borrower in fresh]
            needed = [*self._for_forward, *borrowed]
        minibatch = action.minibatch
        return [
            Expected(Address(what, self._rank_of(stage, minibatch), self.rank, minibatch), spec)
            for stage, what, spec in needed
        ]

    def to(self, stage: int, what: str, minibatch: int) -> Address:
        """The address of a message about ``minibatch`` from here to ``stage``."""
        return Address(what, self.rank, self._rank_of(stage, minibatch), minibatch)

    def to_owners(self, tie: Tie, minibatch: int) -> list[Address]:
        """The addresses of a borrowed parameter's gradient: the owner's replicas that this replica serves."""
        owners, mine = self.plan.ranks_of(tie.owner_stage), self.plan.ranks_of(self.stage)
        served = [owner for index, owner in enumerate(owners) if mine[index % len(mine)] == self.rank]
        return [Address(weight_gradient(tie.borrower), self.rank, owner, minibatch) for owner in served]

    @cached_property
    def _ranks(self) -> list[range]:
        """Those of every stage: asked for with every message."""
        return [self.plan.ranks_of(stage) for stage in range(self.stages)]

    def _rank_of(self, stage: int, minibatch: int) -> int:
        ranks = self._ranks[stage]
        return ranks[minibatch % len(ranks)]

    def _shared_gradient(self, tie: Tie, minibatch: int) -> Expected:
        borrowers = self.plan.ranks_of(tie.borrower_stage)
        source = borrowers[self.plan.ranks_of(self.stage).index(self.rank) % len(borrowers)]
        return Expected(Address(weight_gradient(tie.borrower), source, self.rank, minibatch), tie.spec)

    @cached_property
    def _for_forward(self) -> list[Needed]:
        """But for borrowed weights."""
        if self.is_first:
            return []
        before = [(self.stage - 1, activation(name, self.stage), spec) for name, spec in self.incoming.specs.items()]
        return before + [(0, target(name), spec) for name, spec in self.targets.items() if self.is_last]

    @cached_property
    def _for_backward(self) -> list[Needed]:
        if self.outgoing is None:
            return []
        specs, names = self.outgoing.specs, sorted(self.outgoing.differentiable)
        return [(self.stage + 1, gradient(name, self.stage), specs[name]) for name in names]


def first_uses(owner: Iterable[tuple[int, int]], borrowers: int) -> Iterator[int]:
    """The minibatches with which a borrower's replica meets a version of the owner's weights for the first time.

    Args:
        owner: minibatch and version of all forwards of the owner's stage, in the order of minibatches.
        borrowers: replicas of the borrowing stage, which take minibatches in turn.
    """
    last: dict[int, int] = {}
    for minibatch, version in owner:
        if last.get(minibatch % borrowers) != version:
            last[minibatch % borrowers] = version
            yield minibatch
