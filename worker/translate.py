"""Translations of an evaluation's sentences, and how near they are to those of the data: BLEU.

Greedy: at each place the likeliest token, until the sentence ends or is as long as any may be. The minibatches go
through the pipeline once for each place, whole; nothing of a place is kept for the next. So what is computed is what
one process would, and every model that only looks back can do it. It costs as many evaluations as there are places.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from worker.build import Builder
from worker.data.base import Minibatch, Source, TensorSpec
from worker.data.tokenizer import PAD
from worker.data.translation import BEGIN, END
from worker.errors import DataError, ModelError
from worker.executor import Executor
from worker.feed import read
from worker.passage import Passage
from worker.rendezvous import Rendezvous
from worker.runtime import StageRuntime

TARGET = "target_ids"
"""The input that holds what has been translated so far."""


class Translator(Passage):
    """One rank's part of the translations.

    Args:
        source: what to translate; None on all ranks but those of the first stage.

    Raises:
        DataError: it has no sentences, or the sacrebleu package is missing. ModelError: the model does not translate.
    """

    def __init__(self, builder: Builder, executor: Executor, source: Source | None, rendezvous: Rendezvous) -> None:
        super().__init__(builder, executor)
        self._source, self._rendezvous = source, rendezvous
        shape = builder.signature.inputs[TARGET].shape if TARGET in builder.signature.inputs else (0, 0)
        self._length = shape[1]
        self.answer = TensorSpec(shape[:1], torch.int64)
        self._place = 0
        self._texts: dict[int, _Text] = {}
        self._check()

    def bleu(self, step: int, first: int, count: int) -> tuple[float | None, int]:
        """Translate ``count`` minibatches; all ranks call this together, when tied weights are where they are needed.

        ``first`` and those below it are the numbers with which the minibatches were evaluated.
        Returns BLEU on rank 0, None on others, and the next number that is free.
        """
        # A minibatch goes the same way each time, so that its first stage still knows it.
        stride = math.lcm(*self.plan.replicas) * count
        self._texts = {}
        left = list(range(count))
        for place in range(self._length):
            self._place, base = place, first - (place + 1) * stride
            self.run(f"translation, token {place + 1}", step, {index: base - index for index in left})
            ended = [index for index, text in self._texts.items() if text.ended.all()]
            all_ended = self._rendezvous.exchange(f"translated {base}", json.dumps(ended))
            left = sorted(set(left).difference(*map(json.loads, all_ended)))
            if not left:
                break
        self._rendezvous.give(f"translations {first}", json.dumps(self._sentences()))
        end = first - (self._length + 1) * stride
        if self.builder.rank != 0:
            return None, end
        return score([json.loads(each) for each in self._rendezvous.collect(f"translations {first}")]), end

    def take(self, index: int) -> Minibatch:
        """A minibatch of the source, its translations as far as they are."""
        if index not in self._texts:
            assert self._source is not None
            self._texts[index] = _Text(read(self._source, index))
        text = self._texts[index]
        return replace(text.minibatch, inputs={**text.minibatch.inputs, TARGET: text.target})

    def end(
        self, index: int, runtime: StageRuntime, inputs: Mapping[str, Tensor], targets: Mapping[str, Tensor]
    ) -> Tensor:
        """The likeliest tokens at the place that is being translated."""
        _, guesses = runtime.stage.evaluate(inputs, targets, "guesses")
        assert guesses is not None
        return guesses[:, self._place].contiguous()

    def answered(self, index: int, answer: Tensor) -> None:
        """Write down the next token of each sentence."""
        self._texts[index].add(self._place, answer.cpu())

    def _check(self) -> None:
        if not self._length:
            hint = "docs/your-own-model.md says what translation takes"
            raise DataError(f"evaluate.bleu needs data with the input {TARGET}", hint)
        for runtime in self.executor.stages.values():
            head = runtime.stage.modules[-1]
            if runtime.topology.is_last and not hasattr(head, "guesses"):
                raise ModelError(
                    f"evaluate.bleu needs a last layer with a method guesses; {type(head).__name__} has none",
                    "let guesses(...) take what forward takes, and give the likeliest token at every place: (b, s)",
                )
        if self._source is None:
            return
        if not hasattr(self._source, "sentence"):
            raise DataError(
                f"evaluate.bleu needs sentences; a {type(self._source).__name__} gives tokens only",
                "give the source a method sentence(tokens) that returns their text",
            )
        _package()

    def _sentences(self) -> list[tuple[int, list[str], list[str]]]:
        """Of each minibatch that began here: its index, the translations, and those of the data."""
        source: Any = self._source
        return [
            (
                index,
                [source.sentence(row) for row in text.words.tolist()],
                [source.sentence(row) for row in text.minibatch.targets["labels"].tolist()],
            )
            for index, text in self._texts.items()
        ]


class _Text:
    """A minibatch of sentences while it is being translated."""

    def __init__(self, minibatch: Minibatch) -> None:
        self.minibatch = minibatch
        self.target = torch.full_like(minibatch.inputs[TARGET], PAD)
        self.target[:, 0] = BEGIN
        self.words = torch.full_like(self.target, END)
        self.ended = torch.zeros(len(self.target), dtype=torch.bool)

    def add(self, place: int, tokens: Tensor) -> None:
        """What stands at ``place``; nothing behind a sentence's end."""
        self.ended |= tokens == END
        self.words[:, place] = torch.where(self.ended, END, tokens)
        if place + 1 < self.target.shape[1]:
            self.target[:, place + 1] = torch.where(self.ended, PAD, tokens)


def score(ranks: list[list[tuple[int, list[str], list[str]]]]) -> float:
    """BLEU from 0 to 100 as sacrebleu computes it by default, over all sentences in the order of minibatches."""
    minibatches = sorted(each for rank in ranks for each in rank)
    found = [sentence for _, sentences, _ in minibatches for sentence in sentences]
    wanted = [sentence for _, _, sentences in minibatches for sentence in sentences]
    return float(_package().corpus_bleu(found, [wanted]).score)


def _package() -> Any:
    try:
        import sacrebleu
    except ImportError as error:
        raise DataError(f"evaluate.bleu needs the sacrebleu package ({error})", "pip install 'vpipe[bleu]'") from None
    return sacrebleu
