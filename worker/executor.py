"""Executor: runs a schedule's Actions on the stages of one rank.

The same loop serves every schedule. What an action needs from other ranks follows from the action alone, so receives
are posted ahead of time from the same list that is executed. The updates of all stages of the rank are one action.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import chain, pairwise, tee

import torch
from torch import Tensor

from worker import optimizer as optim
from worker import progress, trace
from worker.communication import Communicator, Expected, Inbox
from worker.errors import NonFiniteLoss
from worker.metrics import StepClock, Update
from worker.precision import LossScaler, not_finite
from worker.runtime import NAN_HINT, StageRuntime, UpdateOf
from worker.schedule import Action, Kind
from worker.spec.cluster import OptimizerSpec

NAMES = {kind: kind.name.lower().replace("_", " ") for kind in Kind}
"""Of the kinds of Actions, for people."""


@dataclass(frozen=True)
class UpdateRule:
    """When and how parameters are updated, over ``steps`` steps of ``minibatches_per_step``.

    ``replicas`` are those of the rank's stages; ``is_flush`` says whether all stages update together (BSP).
    ``all_parameters`` names the parameters of the whole model in order; ``speaks`` says whether this rank is the one of
    its replicas that counts in sums over all ranks. ``replica_ratio`` is ``replicas`` over those of the first stage;
    ``delay`` is the stage's, in updates, where the learning rate asks for it. ``start`` is the step that the run was
    resumed at; the pipeline drains between updates after every multiple of ``drains_every``, in steps.
    ``skips_nan``: an update whose gradients are not finite is left out, instead of ending the run.
    """

    spec: OptimizerSpec
    steps: int
    minibatches_per_step: int
    replicas: int
    is_flush: bool
    all_parameters: tuple[str, ...]
    speaks: bool
    replica_ratio: float
    delay: int
    start: int = 0
    drains_every: Sequence[int] = ()
    skips_nan: bool = False

    def step_of(self, minibatch: int) -> int:
        """The step, from 0, that ``minibatch`` belongs to; under ASP every minibatch is a step."""
        return minibatch // self.minibatches_per_step

    def update_of(self, action: Action) -> UpdateOf:
        """What the update ``action`` covers."""
        minibatch = action.minibatch
        if self.minibatches_per_step > 1 or self.is_flush:
            return UpdateOf(minibatch, minibatch % self.minibatches_per_step + 1, 1)
        if self.replicas == 1:
            return UpdateOf(minibatch, 1, 1)
        drained = max((minibatch // every * every for every in self.drains_every), default=0)
        replicas = (minibatch - max(self.start, drained)) % self.replicas + 1
        return UpdateOf(minibatch, replicas, replicas)


class Executor:
    """One rank: its stages by number, and what they share; under fp16 also the loss scale."""

    def __init__(
        self,
        stages: Mapping[int, StageRuntime],
        communicator: Communicator,
        rule: UpdateRule,
        clock: StepClock,
        scaler: LossScaler | None,
    ) -> None:
        self.stages = stages
        self.scaler = scaler
        self.communicator = self._communicator = communicator
        self._rule = rule
        self._clock = clock

    def run(self, actions: Iterable[Action]) -> None:
        """Execute ``actions`` to the end, and wait until everything sent has left.

        Raises PeerLost, StallError, NonFiniteLoss.
        """
        self._communicator.connect()
        to_run, to_expect = tee(_with_joint_updates(actions))
        inbox = Inbox(self._communicator, map(self._expected, to_expect))
        for joint, following in pairwise(chain(to_run, [[]])):
            first = joint[0]
            step = self._rule.step_of(first.minibatch) + 1
            progress.at(step, _named(first))
            trace.begin(step, first.stage)
            self._clock.start()
            with self._span(first):
                update = self._execute(joint, following, inbox)
            self._clock.stop(first.kind)
            if first.kind is Kind.FORWARD:  # after it a rank holds most
                self._clock.holds(*self._held())
            if update is not None:
                self._clock.end_step(update)
        self._communicator.finish()

    def parameters(self) -> dict[str, Tensor]:
        """The parameters that this rank owns, by full name."""
        return {name: p for runtime in self.stages.values() for name, p in runtime.stash.parameters.items()}

    def _held(self) -> tuple[int, int]:
        """Minibatches in flight in all stages together, and versions of the weights of the one that has most."""
        runtimes = self.stages.values()
        return sum([runtime.in_flight for runtime in runtimes]), max([runtime.stash.held for runtime in runtimes])

    def _expected(self, joint: list[Action]) -> list[Expected]:
        return [expected for action in joint for expected in self.stages[action.stage].expected(action)]

    def _span(self, action: Action) -> AbstractContextManager[None]:
        if not trace.is_on():
            return trace.NOTHING
        return trace.span(NAMES[action.kind], "", action.minibatch, self.stages[action.stage].version_of(action))

    def _execute(self, joint: list[Action], following: list[Action], inbox: Inbox) -> Update | None:
        action = joint[0]
        if action.kind is Kind.UPDATE:
            return self._update(joint, inbox)
        received, runtime = inbox.take(), self.stages[action.stage]
        update = following[0] if following and following[0].kind is Kind.UPDATE else None
        if action.kind is Kind.FORWARD:
            runtime.forward(action, received)
        elif action.kind is Kind.BACKWARD:
            runtime.backward(action, received, update)
        elif action.kind is Kind.INPUT_GRAD:
            runtime.input_gradient(action, received)
        else:
            runtime.weight_gradient(action, update)
        return None

    def _update(self, joint: list[Action], inbox: Inbox) -> Update:
        update = self._rule.update_of(joint[0])
        runtimes = [self.stages[action.stage] for action in joint]
        for runtime in runtimes:  # they give to others before they wait for what they take from them
            runtime.sum_over_replicas(update)
            runtime.return_borrowed(update.minibatch)
        received = inbox.take()
        gathered = [runtime.gather_gradients(received) for runtime in runtimes]
        gradients = {name: gradient for each in gathered for name, gradient in each.items()}
        is_checked = self.scaler is not None or self._rule.skips_nan
        is_finite = not is_checked or self._all_finite(gradients)
        norm = self._clip(gradients) if is_finite else None
        if not is_checked and (norm is None or not math.isfinite(norm)):
            self._refuse_not_finite(joint, update, gathered)
        step = self._rule.step_of(update.minibatch)
        rate = optim.learning_rate(self._rule.spec, step, self._rule.steps, self._rule.replica_ratio, self._rule.delay)
        losses = [
            loss
            for runtime, own in zip(runtimes, gathered, strict=True)
            for loss in runtime.apply(own, rate, is_finite)
        ]
        return Update(step + 1, update.minibatches, losses, rate, norm)

    def _all_finite(self, gradients: Mapping[str, Tensor]) -> bool:
        """Whether no gradient overflowed: anywhere under BSP, where all stages must agree; on this rank under ASP."""
        bad = int(not_finite(gradients) is not None)
        if self._rule.is_flush:
            flag = torch.tensor([float(bad)], dtype=torch.float64)
            bad = int(self._communicator.sum_over_ranks(flag, "whether gradients overflowed"))
        if self.scaler is not None:
            self.scaler.seen(not bad)
        return not bad

    def _refuse_not_finite(
        self, joint: list[Action], update: UpdateOf, gathered: Sequence[Mapping[str, Tensor]]
    ) -> None:
        """End the run: a loss may be finite where its gradient is not. Raises NonFiniteLoss."""
        for action, gradients in zip(joint, gathered, strict=True):
            if (name := not_finite(gradients)) is not None:
                first, last = update.minibatch - update.minibatches + 1, update.minibatch
                which = f"minibatch {last}" if first == last else f"minibatches {first} to {last}"
                where = f"stage {action.stage}: the gradient of {name} is not finite"
                what = f"{where} after {which}, step {self._rule.step_of(last) + 1}; its loss was"
                raise NonFiniteLoss(what, NAN_HINT)

    def _clip(self, gradients: Mapping[str, Tensor]) -> float | None:
        """Clip in place as the rule says; the norm before it, None where there is no limit."""
        limit = self._rule.spec.clip_grad_norm
        if limit is None:
            return None
        squares = {name: float(torch.linalg.vector_norm(gradient)) ** 2 for name, gradient in gradients.items()}
        in_order = [squares.get(name, 0.0) for name in self._rule.all_parameters]
        if self._rule.is_flush:
            # Every number is one rank's own and the others add zero, so the sum is exact whatever the order of ranks.
            mine = torch.tensor(in_order if self._rule.speaks else [0.0] * len(in_order), dtype=torch.float64)
            in_order = self._communicator.sum_over_ranks(mine, "the gradient norm").tolist()
        norm = math.sqrt(sum(in_order))
        if norm > limit:
            for gradient in gradients.values():
                gradient.mul_(limit / norm)
        return norm


def _named(action: Action) -> str:
    return f"{NAMES[action.kind]} of minibatch {action.minibatch} in stage {action.stage}"


def _with_joint_updates(actions: Iterable[Action]) -> Iterator[list[Action]]:
    """Each action alone, but the updates of several stages after the same minibatch together."""
    joint: list[Action] = []
    for action in actions:
        is_update = action.kind is Kind.UPDATE
        if joint and not (is_update and action.minibatch == joint[0].minibatch):
            yield joint
            joint = []
        if is_update:
            joint.append(action)
        else:
            yield [action]
    if joint:
        yield joint
