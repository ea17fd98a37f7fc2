"""Evaluation: minibatches forward through the pipeline alone, with the weights as they are, and what comes of it.

No graph is kept and nothing is dropped. The first stage admits a few minibatches at once and waits for word from the
last before the next. What each minibatch gives is summed up in the order of minibatches, so that the numbers are those
of one process to the last bit, however the model is cut.
"""

from __future__ import annotations

import json
import math
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from worker import progress
from worker import topology as topo
from worker.build import Builder
from worker.communication import Expected, Inbox, Pending
from worker.data.base import Minibatch, Source, TensorSpec
from worker.errors import DataError
from worker.executor import Executor
from worker.feed import read
from worker.precision import LOSS_SCALE
from worker.rendezvous import Rendezvous
from worker.runtime import LOSS_WEIGHTS, StageRuntime
from worker.schedule import Action, Kind
from worker.spec.files import RunFiles, append_event
from worker.spec.records import Evaluation

ACK = TensorSpec((1,), torch.int64)


class Evaluator:
    """Evaluates one rank's part of a job, together with all others; between steps, when the pipeline is empty.

    Args:
        source: what to evaluate on; None on all ranks but those of the first stage.
    """

    def __init__(self, builder: Builder, executor: Executor, source: Source | None, rendezvous: Rendezvous) -> None:
        self._builder, self._executor, self._source, self._rendezvous = builder, executor, source, rendezvous
        self._plan, self._spec = builder.job.plan, builder.job.spec.evaluate
        self._next = -1
        """Minibatches of evaluations are numbered downwards from here: no message of training bears such a number."""

    def is_due(self, step: int) -> bool:
        """Whether the run is to be evaluated after ``step`` steps."""
        every = None if self._spec.only else self._spec.every_steps
        return every is not None and (step % every == 0 or step == self._builder.job.spec.run.steps)

    def run(self, step: int) -> Evaluation | None:
        """Evaluate; all ranks call this together. What came of it on rank 0, None on others.

        Raises:
            DataError, PeerLost, StallError: as in training.
        """
        numbers = range(self._next, self._next - self._spec.minibatches, -1)
        self._next = numbers.stop
        with self._without_dropout():
            found = self._forward(step, numbers)
        topic = f"evaluation {step} {numbers.start}"
        self._rendezvous.give(topic, json.dumps(found))
        if self._builder.rank != 0:
            return None
        return self._summed_up(step, [json.loads(each) for each in self._rendezvous.collect(topic)])

    def report(self, step: int, files: RunFiles, attempt: int) -> Evaluation | None:
        """``run``, and say on rank 0 what came of it: in the log, and as an event of the run."""
        found = self.run(step)
        if found is not None:
            print(f"evaluation at {found}", flush=True)
            event = {"time": time.time(), "event": "evaluation", "attempt": attempt, **found.model_dump()}
            append_event(files.events, event)
        return found

    def _forward(self, step: int, numbers: range) -> list[tuple[int, list[float], list[float], list[float]]]:
        """Of each minibatch that ends here: its index, the sums of its losses, its counts, its scores."""
        communicator = self._executor.communicator
        communicator.connect()
        actions = [
            (index, Action(stage, Kind.FORWARD, number))
            for index, number in enumerate(numbers)
            for stage in sorted(self._executor.stages)
            if self._plan.rank_of(stage, number) == self._builder.rank
        ]
        inbox = Inbox(communicator, iter([self._expected(index, action) for index, action in actions]))
        gate = _Gate(self._builder, self._executor)
        found = []
        for index, action in actions:
            progress.at(step, f"evaluation, minibatch {index}")
            runtime = self._executor.stages[action.stage]
            inputs, targets = self._take(runtime, index, action.minibatch, inbox.take(), gate)
            self._lend(runtime, index, action.minibatch)
            values, scores = runtime.stage.evaluate(inputs, targets)
            if runtime.topology.is_last:
                loss = values[runtime.stage.layers[-1].outputs[0]]
                found.append((index, loss.tolist(), targets[LOSS_WEIGHTS].tolist(), scores))
                gate.passed(runtime, action.minibatch)
            else:
                self._send_on(runtime, values, action.minibatch)
        gate.close()
        communicator.finish()
        return found

    def _expected(self, index: int, action: Action) -> list[Expected]:
        """Borrowed weights come with the first minibatch that each borrower has."""
        topology = self._executor.stages[action.stage].topology
        is_first = index < len(self._plan.ranks_of(action.stage))
        return topology.expected(action, [tie.borrower for tie in topology.borrowed] if is_first else [])

    def _take(
        self, runtime: StageRuntime, index: int, number: int, received: Mapping[str, Tensor], gate: _Gate
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        topology = runtime.topology
        for tie in topology.borrowed:
            if (what := topo.weight(tie.borrower)) in received:
                runtime.stash.borrow(tie.borrower, received[what])
        if not topology.is_first:
            inputs = {name: received[topo.activation(name, topology.stage)] for name in topology.incoming.specs}
            return inputs, ({n: received[topo.target(n)] for n in topology.targets} if topology.is_last else {})
        assert self._source is not None
        gate.enter(runtime, number)
        minibatch = read(self._source, index)
        inputs, targets = self._placed(minibatch.inputs), self._placed(minibatch.targets)
        targets[LOSS_WEIGHTS] = self._counts(minibatch)
        for name, tensor in targets.items():
            if not topology.is_last:
                self._executor.communicator.send(tensor, topology.to(topology.stages - 1, topo.target(name), number))
        scale = {LOSS_SCALE: torch.ones(1, device=self._builder.device)} if self._executor.scaler else {}
        return {**inputs, **scale}, targets

    def _lend(self, runtime: StageRuntime, index: int, number: int) -> None:
        for tie in runtime.topology.lent:
            if index < len(self._plan.ranks_of(tie.borrower_stage)):
                address = runtime.topology.to(tie.borrower_stage, topo.weight(tie.borrower), number)
                self._executor.communicator.send(runtime.stash.lent(tie.owner, None), address)

    def _send_on(self, runtime: StageRuntime, values: Mapping[str, Tensor], number: int) -> None:
        after = runtime.topology.stage + 1
        assert runtime.topology.outgoing is not None
        for name in runtime.topology.outgoing.specs:
            address = runtime.topology.to(after, topo.activation(name, after), number)
            self._executor.communicator.send(values[name], address)

    def _counts(self, minibatch: Minibatch) -> Tensor:
        terms = len(self._builder.model.losses)
        if len(minibatch.counts) != terms:
            raise DataError(f"the data count the targets of {len(minibatch.counts)} losses; the model has {terms}")
        return torch.tensor(minibatch.counts, dtype=torch.float32, device=self._builder.device)

    def _placed(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: tensor.to(self._builder.device) for name, tensor in tensors.items()}

    @contextmanager
    def _without_dropout(self) -> Iterator[None]:
        """Afterwards everything is as it was, borrowed weights too."""
        runtimes = self._executor.stages.values()
        modules = [module for runtime in runtimes for module in runtime.stage.modules]
        on_loan = [(runtime.stash, runtime.stash.on_loan) for runtime in runtimes]
        for module in modules:
            module.eval()
        try:
            yield
        finally:
            for module in modules:
                module.train()
            for stash, loans in on_loan:
                for name, value in loans.items():
                    stash.borrow(name, value)

    def _summed_up(self, step: int, ranks: list[list[tuple[int, list[float], list[float], list[float]]]]) -> Evaluation:
        minibatches = sorted(each for rank in ranks for each in rank)
        losses, counts, scores = (_added([each[part] for each in minibatches]) for part in (1, 2, 3))  # type: ignore[misc]
        means = [total / max(1.0, count) for total, count in zip(losses, counts, strict=True)]
        is_text = self._builder.job.spec.task != "images"
        hits: list[float | None] = [hit / max(1.0, counts[0]) for hit in scores]
        hits = hits or [None, None]
        return Evaluation(
            step=step,
            minibatches=len(minibatches),
            targets=int(counts[0]),
            loss=means[0],
            losses=dict(zip(self._builder.model.losses, means, strict=True)),
            perplexity=math.exp(min(means[0], 700.0)) if is_text else None,
            accuracy=hits[0],
            top5=hits[1],
            held_out=self._spec.held_out,
        )


class _Gate:
    """Lets a rank of the first stage admit so many minibatches at once, and no more before some have passed through."""

    def __init__(self, builder: Builder, executor: Executor) -> None:
        self._executor = executor
        self._most = builder.job.plan.stages + 1
        self._inside: deque[Pending] = deque()

    def enter(self, runtime: StageRuntime, number: int) -> None:
        topology = runtime.topology
        if topology.is_last:
            return
        if len(self._inside) == self._most:
            self._inside.popleft().wait()
        self._inside.append(self._executor.communicator.post(Expected(topology.passed(number), ACK)))

    def passed(self, runtime: StageRuntime, number: int) -> None:
        if not runtime.topology.is_first:
            address = runtime.topology.passed(number)
            self._executor.communicator.send(torch.zeros(1, dtype=torch.int64, device=runtime.stage.device), address)

    def close(self) -> None:
        while self._inside:
            self._inside.popleft().wait()


def _added(rows: list[list[float]]) -> list[float]:
    """The sum of all rows, added one after the other."""
    total = [0.0] * len(rows[0])
    for row in rows:
        total = [a + b for a, b in zip(total, row, strict=True)]
    return total
