"""Executor: runs a schedule's Actions on the stages of one rank.

The same loop serves every schedule. What an action needs from other ranks follows from the action alone, so receives
are posted ahead of time from the same list that is executed. The updates of all stages of the rank are one action.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby, tee

import torch
from torch import Tensor

from worker import optimizer as optim
from worker.communication import Communicator, Expected, Inbox
from worker.metrics import StepClock, Update
from worker.runtime import StageRuntime
from worker.schedule import Action, Kind
from worker.spec.cluster import OptimizerSpec


@dataclass(frozen=True)
class UpdateRule:
    """How parameters are updated, over ``updates`` updates.

    ``all_parameters`` names the parameters of the whole model in order where clipping is over all stages, else None.
    """

    spec: OptimizerSpec
    updates: int
    all_parameters: tuple[str, ...] | None


class Executor:
    """One rank: its stages by number, and what they share."""

    def __init__(
        self, stages: Mapping[int, StageRuntime], communicator: Communicator, rule: UpdateRule, clock: StepClock
    ) -> None:
        self.stages = stages
        self._communicator = communicator
        self._rule = rule
        self._clock = clock

    def run(self, actions: Iterable[Action]) -> None:
        """Execute ``actions`` to the end, and wait until everything sent has left.

        Raises PeerLost, StallError, NonFiniteLoss.
        """
        to_run, to_expect = tee(_with_joint_updates(actions))
        inbox = Inbox(self._communicator, map(self._expected, to_expect))
        for joint in to_run:
            self._clock.start()
            if joint[0].kind is Kind.UPDATE:  # before waiting: the owner may be another stage of this very rank
                self._return_borrowed(joint)
            update = self._execute(joint, inbox.take())
            self._clock.stop(joint[0].kind)
            if update is not None:
                self._clock.end_step(update)
        self._communicator.finish()

    def parameters(self) -> dict[str, Tensor]:
        """The parameters that this rank owns, by full name."""
        return {name: p for runtime in self.stages.values() for name, p in runtime.stash.parameters.items()}

    def _expected(self, joint: list[Action]) -> list[Expected]:
        return [expected for action in joint for expected in self.stages[action.stage].expected(action)]

    def _return_borrowed(self, joint: list[Action]) -> None:
        for action in joint:
            self.stages[action.stage].return_borrowed(action.minibatch)

    def _execute(self, joint: list[Action], received: dict[str, Tensor]) -> Update | None:
        action = joint[0]
        if action.kind is Kind.UPDATE:
            return self._update(joint, received)
        runtime = self.stages[action.stage]
        execute: dict[Kind, Callable[[int, Mapping[str, Tensor]], None]] = {
            Kind.FORWARD: runtime.forward,
            Kind.BACKWARD: runtime.backward,
            Kind.INPUT_GRAD: runtime.input_gradient,
            Kind.WEIGHT_GRAD: runtime.weight_gradient,
        }
        execute[action.kind](action.minibatch, received)
        return None

    def _update(self, joint: list[Action], received: dict[str, Tensor]) -> Update:
        runtimes = [self.stages[action.stage] for action in joint]
        gathered = [runtime.gather_gradients(received) for runtime in runtimes]
        gradients = {name: gradient for each in gathered for name, gradient in each.items()}
        norm = self._clip(gradients)
        rate = optim.learning_rate(self._rule.spec, runtimes[0].updates, self._rule.updates)
        losses = [loss for runtime, own in zip(runtimes, gathered, strict=True) for loss in runtime.apply(own, rate)]
        return Update(losses, rate, norm)

    def _clip(self, gradients: Mapping[str, Tensor]) -> float | None:
        """Clip in place as the rule says; the norm before it, None where there is no limit."""
        limit, everywhere = self._rule.spec.clip_grad_norm, self._rule.all_parameters
        if limit is None:
            return None
        squares = {name: float(torch.linalg.vector_norm(gradient)) ** 2 for name, gradient in gradients.items()}
        names = everywhere or list(self.parameters())
        if everywhere is not None:
            mine = torch.tensor([squares.get(name, 0.0) for name in everywhere], dtype=torch.float64)
            # Every number is one rank's own and the others add zero, so the sum is exact whatever the order of ranks.
            total = self._communicator.sum_over_ranks(mine, "the gradient norm")
            squares = dict(zip(everywhere, total.tolist(), strict=True))
        norm = math.sqrt(sum(squares[name] for name in names if name in squares))
        if norm > limit:
            for gradient in gradients.values():
                gradient.mul_(limit / norm)
        return norm


def _with_joint_updates(actions: Iterable[Action]) -> Iterator[list[Action]]:
    """Each action alone, but the updates of several stages that follow each other together."""
    for _, group in groupby(enumerate(actions), lambda pair: "U" if pair[1].kind is Kind.UPDATE else pair[0]):
        yield [action for _, action in group]
