"""In which order examples are read: every one once an epoch, and a pure function of seed, epoch and place.

Example ``place`` of epoch ``epoch`` is the same whatever was read before, on whichever replica: so the position in the
data is one number, and a resumed run, or one with other replicas, reads neither too much nor too little.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

ORDER, EXAMPLE, PICTURE, MADE_UP = 0, 1, 2, 3
"""The streams of random numbers: an epoch's order, what happens to an example, to a picture, synthetic data."""


def random_words(seed: int, stream: int, example: int, epoch: int, count: int) -> NDArray[np.uint64]:
    """``count`` random words of 64 bits that belong to this seed, stream, example and epoch alone.

    Drawn from a Philox generator keyed by all of them. Only raw bits are taken: NumPy promises that those never change.
    """
    key = np.array([seed, stream], dtype=np.uint64)
    counter = np.array([0, example, epoch, 0], dtype=np.uint64)
    return np.random.Philox(key=key, counter=counter).random_raw(count)


class Order:
    """The order of ``examples`` > 0 examples, in minibatches of ``size``, without end."""

    def __init__(self, seed: int, examples: int, size: int) -> None:
        self._seed, self._examples, self._size = seed, examples, size
        self._order = lru_cache(maxsize=2)(self._epoch)

    def rows(self, minibatch: int) -> list[tuple[int, int]]:
        """Example and epoch of every row of a minibatch; one may reach into the next epoch."""
        places = range(minibatch * self._size, (minibatch + 1) * self._size)
        return [(int(self._order(epoch)[place]), epoch) for epoch, place in (divmod(p, self._examples) for p in places)]

    def _epoch(self, epoch: int) -> NDArray[np.int64]:
        return np.argsort(random_words(self._seed, ORDER, 0, epoch, self._examples), kind="stable")
