"""Made-up minibatches for any task: pure functions of their number. What is to be predicted can be learned a little."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray

from worker.data.base import IGNORED, Minibatch, Signature
from worker.data.order import MADE_UP, random_words
from worker.data.tokenizer import CLS, MASK, SPECIAL_TOKENS
from worker.spec.data import SyntheticSpec
from worker.spec.model import Task


class Synthetic:
    """Endless made-up minibatches; a Source. Texts count upwards; pictures are as bright as their class."""

    def __init__(self, spec: SyntheticSpec, task: Task, seed: int, signature: Signature) -> None:
        self.signature = signature
        self.skipped = 0
        self._spec, self._task, self._seed = spec, task, seed
        guesses = spec.classes if task == "images" else spec.vocab_size - len(SPECIAL_TOKENS)
        self.baseline_loss = math.log(guesses)

    def minibatch(self, number: int) -> Minibatch:
        """Minibatch ``number`` >= 0: the same tensors whenever and wherever it is asked for."""
        if self._task == "images":
            return self._pictures(number)
        text = self._text(number, self._spec.sequence_length + 1)
        if self._task == "causal-lm":
            return _minibatch({"input_ids": text[:, :-1]}, {"labels": text[:, 1:]})
        if self._task == "translation":
            begin = np.full_like(text[:, :1], CLS)
            source = text[:, :-1]
            target = np.concatenate([begin, source[:, :-1]], axis=1)
            mask = np.ones_like(source, dtype=bool)
            return _minibatch({"source_ids": source, "source_mask": mask, "target_ids": target}, {"labels": source})
        return self._masked(number, text[:, :-1])

    def _text(self, number: int, length: int) -> NDArray[np.int64]:
        words = self._spec.vocab_size - len(SPECIAL_TOKENS)
        first = random_words(self._seed, MADE_UP, number, 0, self._spec.minibatch_size) % np.uint64(words)
        return (first.astype(np.int64)[:, None] + np.arange(length)) % words + len(SPECIAL_TOKENS)

    def _masked(self, number: int, ids: NDArray[np.int64]) -> Minibatch:
        size, length = ids.shape
        draws = random_words(self._seed, MADE_UP, number, 1, size * length).reshape(size, length)
        hidden = draws < np.uint64(int(self._spec.mask_probability * 2**64))
        hidden[:, 0] = True
        inputs = {"input_ids": np.where(hidden, MASK, ids), "segment_ids": np.zeros_like(ids)}
        targets = {"labels": np.where(hidden, ids, IGNORED)}
        if self._task == "masked-lm-pairs":
            targets["order_labels"] = ids[:, -1] % 2
        return _minibatch({**inputs, "attention_mask": np.ones_like(ids, dtype=bool)}, targets)

    def _pictures(self, number: int) -> Minibatch:
        spec, size = self._spec, self._spec.image_size
        labels = (random_words(self._seed, MADE_UP, number, 0, spec.minibatch_size) % np.uint64(spec.classes)).astype(
            np.int64
        )
        noise = random_words(self._seed, MADE_UP, number, 1, 3 * size * size).astype(np.float64) / 2**64 - 0.5
        brightness = 2 * labels / (spec.classes - 1) - 1
        pixels = noise.reshape(1, 3, size, size) + brightness[:, None, None, None]
        return _minibatch({"pixels": pixels.astype(np.float32)}, {"labels": labels})


def _minibatch(inputs: dict[str, NDArray[np.generic]], targets: dict[str, NDArray[np.int64]]) -> Minibatch:
    return Minibatch(
        {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in inputs.items()},
        {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in targets.items()},
        tuple(int((array != IGNORED).sum()) for array in targets.values()),
    )
