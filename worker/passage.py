"""Minibatches forward through the pipeline alone, with the weights as they are; each is answered from its end.

No graph is kept. The first stage admits a few minibatches at once, and before the next it waits for the answer to the
oldest. What is sent, what is made of it at the end, and what the answer is for are a subclass's to say.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

import torch
from torch import Tensor

from worker import progress
from worker import topology as topo
from worker.build import Builder
from worker.communication import Expected, Inbox, Pending
from worker.data.base import Minibatch, TensorSpec
from worker.errors import DataError
from worker.executor import Executor
from worker.precision import LOSS_SCALE
from worker.runtime import LOSS_WEIGHTS, StageRuntime
from worker.schedule import Action, Kind


class Passage:
    """One rank's part in it; all ranks run theirs together, between steps, when the pipeline is empty.

    Minibatches are asked for by their index in the evaluation. On their way they bear negative numbers: no message of
    training has such a one.
    """

    answer = TensorSpec((1,), torch.int64)
    """What comes back to the first stage."""

    def __init__(self, builder: Builder, executor: Executor) -> None:
        self.builder, self.executor, self.plan = builder, executor, builder.job.plan

    def take(self, index: int) -> Minibatch:
        """In the first stage: a minibatch to send. Raises DataError."""
        raise NotImplementedError

    def end(
        self, index: int, runtime: StageRuntime, inputs: Mapping[str, Tensor], targets: Mapping[str, Tensor]
    ) -> Tensor:
        """In the last stage: what comes of a minibatch; returns the answer."""
        raise NotImplementedError

    def answered(self, index: int, answer: Tensor) -> None:
        """In the first stage: the answer has come."""

    def run(self, what: str, step: int, numbers: Mapping[int, int], lends: bool = False) -> None:
        """Send the minibatches whose indices ``numbers`` has, each under its number.

        Args:
            what: what this is, for those who watch a rank. ``lends``: tied weights travel too, to each borrower with
                the first minibatch that it has.
        """
        self.executor.communicator.connect()
        actions = [
            (index, Action(stage, Kind.FORWARD, number))
            for index, number in numbers.items()
            for stage in sorted(self.executor.stages)
            if self.plan.rank_of(stage, number) == self.builder.rank
        ]
        expected = [self._expected(index, action, lends) for index, action in actions]
        inbox = Inbox(self.executor.communicator, iter(expected))
        gate = _Gate(self)
        for index, action in actions:
            progress.at(step, f"{what}, minibatch {index}", self.builder.job.spec.run.stall_timeout)
            runtime = self.executor.stages[action.stage]
            if runtime.topology.is_first:
                gate.enter(runtime, index, action.minibatch)
            inputs, targets = self._given(runtime, index, action.minibatch, inbox.take())
            if lends:
                self._lend(runtime, index, action.minibatch)
            if runtime.topology.is_last:
                gate.leave(runtime, index, action.minibatch, self.end(index, runtime, inputs, targets))
            else:
                self._send_on(runtime, runtime.stage.evaluate(inputs, targets)[0], action.minibatch)
        gate.close()
        self.executor.communicator.finish()

    def _expected(self, index: int, action: Action, lends: bool) -> list[Expected]:
        topology = self.executor.stages[action.stage].topology
        is_first = lends and index < len(self.plan.ranks_of(action.stage))
        return topology.expected(action, [tie.borrower for tie in topology.borrowed] if is_first else [])

    def _given(
        self, runtime: StageRuntime, index: int, number: int, received: Mapping[str, Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The stage's inputs, and in the last one the targets."""
        topology = runtime.topology
        for tie in topology.borrowed:
            if (what := topo.weight(tie.borrower)) in received:
                runtime.stash.borrow(tie.borrower, received[what])
        if topology.is_first:
            return self._begin(runtime, index, number)
        inputs = {name: received[topo.activation(name, topology.stage)] for name in topology.incoming.specs}
        return inputs, ({n: received[topo.target(n)] for n in topology.targets} if topology.is_last else {})

    def _begin(self, runtime: StageRuntime, index: int, number: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        topology, minibatch = runtime.topology, self.take(index)
        inputs, targets = self._placed(minibatch.inputs), self._placed(minibatch.targets)
        targets[LOSS_WEIGHTS] = self._counts(minibatch)
        if not topology.is_last:
            for name, tensor in targets.items():
                address = topology.to(topology.stages - 1, topo.target(name), number)
                self.executor.communicator.send(tensor, address, later=True)
        scale = {LOSS_SCALE: torch.ones(1, device=self.builder.device)} if self.executor.scaler else {}
        return {**inputs, **scale}, targets

    def _lend(self, runtime: StageRuntime, index: int, number: int) -> None:
        for tie in runtime.topology.lent:
            if index < len(self.plan.ranks_of(tie.borrower_stage)):
                address = runtime.topology.to(tie.borrower_stage, topo.weight(tie.borrower), number)
                self.executor.communicator.send(runtime.stash.lent(tie.owner, None), address)

    def _send_on(self, runtime: StageRuntime, values: Mapping[str, Tensor], number: int) -> None:
        after = runtime.topology.stage + 1
        assert runtime.topology.outgoing is not None
        for name in runtime.topology.outgoing.specs:
            address = runtime.topology.to(after, topo.activation(name, after), number)
            self.executor.communicator.send(values[name], address)

    def _counts(self, minibatch: Minibatch) -> Tensor:
        terms = len(self.builder.model.losses)
        if len(minibatch.counts) != terms:
            raise DataError(f"the data count the targets of {len(minibatch.counts)} losses; the model has {terms}")
        return torch.tensor(minibatch.counts, dtype=torch.float32, device=self.builder.device)

    def _placed(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: tensor.to(self.builder.device) for name, tensor in tensors.items()}


class _Gate:
    """Lets a rank of the first stage admit so many minibatches at once, and no more before some are answered."""

    def __init__(self, passage: Passage) -> None:
        self._passage = passage
        self._communicator = passage.executor.communicator
        self._most = passage.plan.stages + 1
        self._inside: deque[tuple[int, Pending]] = deque()

    def enter(self, runtime: StageRuntime, index: int, number: int) -> None:
        if runtime.topology.is_last:
            return
        if len(self._inside) == self._most:
            self._answer_oldest()
        expected = Expected(runtime.topology.passed(number), self._passage.answer)
        self._inside.append((index, self._communicator.post(expected)))

    def leave(self, runtime: StageRuntime, index: int, number: int, answer: Tensor) -> None:
        if runtime.topology.is_first:
            self._passage.answered(index, answer)
        else:
            self._communicator.send(answer, runtime.topology.passed(number))

    def close(self) -> None:
        while self._inside:
            self._answer_oldest()

    def _answer_oldest(self) -> None:
        index, pending = self._inside.popleft()
        self._passage.answered(index, pending())
