"""Pairs of sentences: the source with its end, the target behind a begin, and as labels the target with its end."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer

from worker.data.bad_records import BadRecords
from worker.data.base import IGNORED, Minibatch, Signature, entropy
from worker.data.corpus import Corpus
from worker.data.order import Order
from worker.data.store import TokenisedCorpus
from worker.data.tokenizer import CLS, PAD, SEP
from worker.errors import DataError
from worker.spec.data import ParallelSpec

BEGIN, END = CLS, SEP


class Translation:
    """Endless minibatches of pairs; a Source.

    Args:
        corpus: documents 2i and 2i + 1 are the sides of line i + 1 of ``files``.

    Raises:
        DataError: a side is empty or too long, and such pairs are not to be left out; or no pair remains.
    """

    def __init__(
        self, corpus: TokenisedCorpus, files: Corpus, spec: ParallelSpec, seed: int, signature: Signature
    ) -> None:
        self._tokens, self._bounds, self._length = corpus.tokens, corpus.bounds, spec.sequence_length
        self._tokenizer = corpus.tokenizer
        bad = BadRecords(spec.on_bad_record)
        lengths = np.diff(corpus.bounds)
        for document in np.flatnonzero((lengths == 0) | (lengths >= self._length)):
            where = f"{files.files[document % 2]}:{document // 2 + 1}"
            long = f"has {lengths[document]} tokens and its end; data.sequence_length is {self._length}"
            bad.found(where, long if lengths[document] else "the line is empty")
        fits: NDArray[np.bool_] = np.logical_and(lengths > 0, lengths < self._length).reshape(-1, 2).min(axis=1)
        self._pairs = np.flatnonzero(fits)
        if not len(self._pairs):
            raise DataError(f"{files.files[0]} and {files.files[1].name} have no pair of lines that could be used")
        self.skipped = len(fits) - len(self._pairs)
        self.signature = signature
        self.baseline_loss = entropy(corpus.counts)
        self._order = Order(seed, len(self), spec.minibatch_size)

    def __len__(self) -> int:
        """Examples per epoch."""
        return len(self._pairs)

    def minibatch(self, number: int) -> Minibatch:
        """Minibatch ``number`` >= 0: the same tensors whenever and wherever it is asked for."""
        rows = self._order.rows(number)
        source = np.full((len(rows), self._length), PAD, dtype=np.int64)
        mask, target = np.zeros(source.shape, dtype=bool), np.full_like(source, PAD)
        labels = np.full_like(source, IGNORED)
        for row, (example, _) in enumerate(rows):
            one, other = (self._document(2 * self._pairs[example] + side) for side in (0, 1))
            source[row, : len(one)], source[row, len(one)] = one, END
            mask[row, : len(one) + 1] = True
            target[row, 0], target[row, 1 : len(other) + 1] = BEGIN, other
            labels[row, : len(other)], labels[row, len(other)] = other, END
        inputs = {"source_ids": source, "source_mask": mask, "target_ids": target}
        return Minibatch(
            {name: torch.from_numpy(array) for name, array in inputs.items()},
            {"labels": torch.from_numpy(labels)},
            (int((labels != IGNORED).sum()),),
        )

    def sentence(self, tokens: Sequence[int]) -> str:
        """The text of a sentence's tokens, up to its end."""
        ended = itertools.takewhile(lambda token: token != END, tokens)
        return str(self._decoder.decode([token for token in ended if token >= 0], skip_special_tokens=True))

    @cached_property
    def _decoder(self) -> Tokenizer:
        return Tokenizer.from_str(self._tokenizer)

    def _document(self, number: int) -> NDArray[np.integer]:
        return self._tokens[self._bounds[number] : self._bounds[number + 1]]
