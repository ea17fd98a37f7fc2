"""Reads minibatches ahead in the background, so that the first stage computes while the next ones are read."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator

from worker.data.base import Minibatch, Signature, Source


class Prefetched:
    """A Source that reads ``numbers`` ahead of ``source``, at most ``ahead`` minibatches.

    A number that does not come as foretold is read at once, so what it gives never depends on what was foretold. What
    goes wrong while reading ahead is raised when that minibatch is asked for. ``close`` ends the thread.
    """

    def __init__(self, source: Source, numbers: Iterable[int], ahead: int) -> None:
        self._source = source
        self.signature: Signature = source.signature
        self.baseline_loss = source.baseline_loss
        self._read: queue.Queue[tuple[int, Minibatch | Exception]] = queue.Queue(maxsize=ahead)
        self._next: tuple[int, Minibatch | Exception] | None = None
        self._lock = threading.Lock()  # sources need not be safe for two threads
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(iter(numbers),), name="prefetch", daemon=True)
        self._thread.start()

    def minibatch(self, number: int) -> Minibatch:
        """Minibatch ``number``; raises what the source raises."""
        while self._thread.is_alive() or not self._read.empty():
            if self._next is None:
                try:
                    self._next = self._read.get(timeout=0.1)
                except queue.Empty:
                    continue
            if self._next[0] > number:
                break
            found, self._next = self._next, None
            if found[0] == number:
                if isinstance(found[1], Exception):
                    raise found[1]
                return found[1]
        return self._get(number)

    def close(self) -> None:
        """End the thread; a minibatch that is being read is finished first."""
        self._stopped.set()
        self._thread.join(timeout=10.0)

    def _get(self, number: int) -> Minibatch:
        with self._lock:
            return self._source.minibatch(number)

    def _run(self, numbers: Iterator[int]) -> None:
        for number in numbers:
            try:
                found: Minibatch | Exception = self._get(number)
            except Exception as error:
                found = error
            while not self._stopped.is_set():
                try:
                    self._read.put((number, found), timeout=0.1)
                    break
                except queue.Full:
                    continue
            if self._stopped.is_set() or isinstance(found, Exception):
                return


def numbers(start: int, end: int, per_step: int, replica: int, replicas: int) -> range:
    """The minibatches that one replica of the first stage reads, from ``start``, a step's first, to ``end``.

    Where a step has several minibatches each replica reads all of them, to weigh its own; else it reads its own.
    """
    if per_step > 1 or replicas == 1:
        return range(start, end)
    return range(start + (replica - start) % replicas, end, replicas)
