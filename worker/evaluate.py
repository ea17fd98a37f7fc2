"""Evaluation: minibatches forward through the pipeline alone, with the weights as they are, and what comes of it.

Nothing is dropped. What each minibatch gives is summed up in the order of minibatches, so that the numbers are those of
one process to the last bit, however the model is cut.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from worker.build import Builder
from worker.data.base import Minibatch, Source
from worker.executor import Executor
from worker.feed import read
from worker.passage import Passage
from worker.rendezvous import Rendezvous
from worker.runtime import LOSS_WEIGHTS, StageRuntime
from worker.spec.files import RunFiles, append_event
from worker.spec.records import Evaluation
from worker.translate import Translator

Found = tuple[int, list[float], list[float], list[float]]
"""Of a minibatch: its index, the sums of its losses, its counts, its scores."""


class Losses(Passage):
    """What the labels cost, and how many of them were guessed."""

    def __init__(self, builder: Builder, executor: Executor, source: Source | None) -> None:
        super().__init__(builder, executor)
        self._source = source
        self._found: list[Found] = []

    def of(self, step: int, numbers: Mapping[int, int]) -> list[Found]:
        """What is found of the minibatches that end here."""
        self._found = []
        self.run("evaluation", step, numbers, lends=True)
        return self._found

    def take(self, index: int) -> Minibatch:
        """A minibatch of the source."""
        assert self._source is not None
        return read(self._source, index)

    def end(
        self, index: int, runtime: StageRuntime, inputs: Mapping[str, Tensor], targets: Mapping[str, Tensor]
    ) -> Tensor:
        """Note what comes of it; the answer is that it has come so far."""
        values, scores = runtime.stage.evaluate(inputs, targets, "scores")
        loss = values[runtime.stage.layers[-1].outputs[0]]
        counted = [] if scores is None else scores.tolist()
        self._found.append((index, loss.tolist(), targets[LOSS_WEIGHTS].tolist(), counted))
        return torch.zeros(self.answer.shape, dtype=self.answer.dtype, device=runtime.stage.device)


class Evaluator:
    """Evaluates one rank's part of a job, together with all others; between steps, when the pipeline is empty.

    Args:
        source: what to evaluate on; None on all ranks but those of the first stage.

    Raises:
        DataError, ModelError: BLEU is asked for, of what cannot translate or without the package.
    """

    def __init__(self, builder: Builder, executor: Executor, source: Source | None, rendezvous: Rendezvous) -> None:
        self._builder, self._executor, self._rendezvous = builder, executor, rendezvous
        self._spec = builder.job.spec.evaluate
        self._losses = Losses(builder, executor, source)
        self._translator = Translator(builder, executor, source, rendezvous) if self._spec.bleu else None
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
        first, count = self._next, self._spec.minibatches
        self._next -= count
        with self._without_dropout():
            found = self._losses.of(step, {index: first - index for index in range(count)})
            bleu = None
            if self._translator:
                bleu, self._next = self._translator.bleu(step, first, count)
        topic = f"evaluation {step} {first}"
        self._rendezvous.give(topic, json.dumps(found))
        if self._builder.rank != 0:
            return None
        return self._summed_up(step, [json.loads(each) for each in self._rendezvous.collect(topic)], bleu)

    def report(self, step: int, files: RunFiles, attempt: int) -> Evaluation | None:
        """``run``, and say on rank 0 what came of it: in the log, and as an event of the run."""
        found = self.run(step)
        if found is not None:
            print(f"evaluation at {found}", flush=True)
            event = {"time": time.time(), "event": "evaluation", "attempt": attempt, **found.model_dump()}
            append_event(files.events, event)
        return found

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

    def _summed_up(self, step: int, ranks: list[list[Found]], bleu: float | None) -> Evaluation:
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
            bleu=bleu,
            held_out=self._spec.held_out,
        )


def _added(rows: list[list[float]]) -> list[float]:
    """The sum of all rows, added one after the other."""
    total = [0.0] * len(rows[0])
    for row in rows:
        total = [a + b for a, b in zip(total, row, strict=True)]
    return total
