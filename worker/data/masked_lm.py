"""Masked-language-model examples as in BERT (Devlin et al. 2019), optionally with sentence order (Lan et al. 2020).

An example is a window of one document, cut in two at random: ``[CLS] A [SEP] B [SEP]``. A window is as long as fits, so
only documents shorter than that are padded; the last window of a document reaches back into the one before. With
``model.sentence_order`` the passages of half of the examples are swapped; for ``bert-nsp`` half of the second passages
come from elsewhere.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from worker.data.base import IGNORED, Minibatch, Signature, entropy
from worker.data.order import EXAMPLE, Order, random_words
from worker.data.store import TokenisedCorpus
from worker.data.tokenizer import CLS, MASK, PAD, SEP, SPECIAL_TOKENS
from worker.errors import DataError
from worker.spec.cluster import DataSpec

FRAME = 3
"""Tokens of a sequence that are no text: [CLS], [SEP], [SEP]."""

Pairs = Literal["order", "next"]
"""Second loss: are the passages in order, or does the second one follow the first."""


class MaskedLM:
    """Endless minibatches of masked text; a Source.

    Args:
        corpus: what to read.
        spec: sizes and the share of tokens to predict.
        pairs: also swap passages, or exchange second ones, and give ``order_labels``: 1 where that was done.
        seed: fixes order, cuts and masks.
        signature: what minibatches look like.

    Raises:
        DataError: the corpus is shorter than one sequence.
    """

    def __init__(
        self, corpus: TokenisedCorpus, spec: DataSpec, pairs: Pairs | None, seed: int, signature: Signature
    ) -> None:
        room = spec.sequence_length - FRAME
        if len(corpus.tokens) < room:
            raise DataError(
                f"the corpus has {len(corpus.tokens)} tokens; one sequence of {spec.sequence_length} needs {room}",
                "add text, or lower data.sequence_length",
            )
        self._starts, self._lengths = _windows(corpus.bounds, room)
        if not len(self):
            raise DataError(
                f"no document has two tokens, of {len(corpus.bounds) - 1}", "join short texts into one file"
            )
        self.signature = signature
        self.baseline_loss = entropy(corpus.counts)
        self.skipped = corpus.skipped
        self._tokens = corpus.tokens
        self._words = len(corpus.counts) - len(SPECIAL_TOKENS)
        self._spec = spec
        self._pairs = pairs
        self._seed = seed
        self._order = Order(seed, len(self), spec.minibatch_size)

    def __len__(self) -> int:
        """Examples per epoch."""
        return len(self._starts)

    def minibatch(self, number: int) -> Minibatch:
        """Minibatch ``number`` >= 0: the same tensors whenever and wherever it is asked for."""
        size, length = self._spec.minibatch_size, self._spec.sequence_length
        ids = np.full((size, length), PAD, dtype=np.int64)
        segments = np.zeros((size, length), dtype=np.int64)
        swapped = np.zeros(size, dtype=np.int64)
        lengths = np.zeros(size, dtype=np.int64)
        draws = np.empty((size, 3, length), dtype=np.uint64)
        for row, (example, epoch) in enumerate(self._order.rows(number)):
            bits = random_words(self._seed, EXAMPLE, example, epoch, 3 * length + 3)
            draws[row] = bits[2:-1].reshape(3, length)
            window = self._window(example)
            cut = _cut(len(window), int(bits[0]))
            swapped[row] = self._pairs is not None and bits[1] >> np.uint64(63)
            first, second = window[:cut], window[cut:]
            if swapped[row] and self._pairs == "order":
                first, second = second, first
            elif swapped[row]:
                other = self._window(int(bits[-1]) % len(self))
                second = other[-len(second) :]
            lengths[row] = len(first) + len(second)
            _lay_out(ids[row], segments[row], first, second)
        real = np.arange(length) < (lengths + FRAME)[:, None]
        labels = self._mask(ids, real, lengths, draws)
        if self._spec.variable:
            longest = int(lengths.max()) + FRAME
            ids, segments, labels = (array[:, :longest].copy() for array in (ids, segments, labels))
            real = real[:, :longest].copy()
        return self._assemble(ids, segments, real, labels, swapped)

    def _window(self, example: int) -> NDArray[np.integer]:
        start = self._starts[example]
        return self._tokens[start : start + self._lengths[example]]

    def _mask(
        self,
        ids: NDArray[np.int64],
        real: NDArray[np.bool_],
        lengths: NDArray[np.int64],
        draws: NDArray[np.uint64],
    ) -> NDArray[np.int64]:
        """Choose what to predict, hide it in ``ids`` in place, and return the labels; all of shape (b, s).

        Of the chosen tokens 80 % become [MASK], 10 % a random token, and 10 % stay.
        """
        which, how, random = draws[:, 0], draws[:, 1], draws[:, 2] % np.uint64(self._words) + np.uint64(MASK + 1)
        text = real & (ids != CLS) & (ids != SEP)
        rank = np.where(text, which, np.iinfo(np.uint64).max)
        wanted = np.maximum(1, np.rint(lengths * self._spec.mask_probability).astype(np.int64))
        limit = np.take_along_axis(np.sort(rank, axis=1), wanted[:, None] - 1, axis=1)
        chosen = text & (rank <= limit)
        labels = np.where(chosen, ids, IGNORED)
        tenth = how // np.uint64(2**64 // 10)
        ids[chosen & (tenth < 8)] = MASK
        ids[chosen & (tenth == 8)] = random[chosen & (tenth == 8)]
        return labels

    def _assemble(
        self,
        ids: NDArray[np.int64],
        segments: NDArray[np.int64],
        real: NDArray[np.bool_],
        labels: NDArray[np.int64],
        swapped: NDArray[np.int64],
    ) -> Minibatch:
        inputs = {"input_ids": ids, "segment_ids": segments, "attention_mask": real}
        targets = {"labels": labels}
        counts = [int((labels != IGNORED).sum())]
        if self._pairs:
            targets["order_labels"] = swapped
            counts.append(len(swapped))
        return Minibatch(
            {name: torch.from_numpy(array) for name, array in inputs.items()},
            {name: torch.from_numpy(array) for name, array in targets.items()},
            tuple(counts),
        )


def _cut(length: int, bits: int) -> int:
    """Where the second passage begins: anywhere in the middle half of the window."""
    quarter = length // 4
    return max(1, quarter + bits % (length - 2 * quarter))


def _lay_out(
    ids: NDArray[np.int64], segments: NDArray[np.int64], first: NDArray[np.integer], second: NDArray[np.integer]
) -> None:
    """Fill one row of ``ids`` and ``segments``."""
    middle, end = len(first) + 1, len(first) + len(second) + 2
    ids[0], ids[middle], ids[end] = CLS, SEP, SEP
    ids[1:middle] = first
    ids[middle + 1 : end] = second
    segments[middle + 1 : end + 1] = 1


def _windows(bounds: NDArray[np.int64], room: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Start and length of every window; documents of fewer than two tokens have none."""
    lengths = np.diff(bounds)
    documents = np.flatnonzero(lengths >= 2)
    starts, lengths = bounds[documents], lengths[documents]
    windows = -(-lengths // room)
    place = np.arange(windows.sum()) - np.repeat(np.cumsum(windows) - windows, windows)
    latest = np.repeat(np.maximum(lengths - room, 0), windows)
    return np.repeat(starts, windows) + np.minimum(place * room, latest), np.repeat(np.minimum(lengths, room), windows)
