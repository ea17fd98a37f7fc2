"""Tensors between ranks, by tensor tag: receives are posted ahead, sends are not waited for until their end is certain.

A tensor tag numbers what travels (which tensor, which direction). On the wire it is joined by the minibatch, so a
message can only ever be received as what it is: one that came out of order is not taken for another, it is missed and
named. Gloo itself accepts a wrong length or dtype in silence; so ``train`` agrees on all shapes before the first step.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from worker import trace
from worker.data.base import TensorSpec
from worker.door import Door
from worker.shared_memory import SharedMemory
from worker.trace import Stopwatch
from worker.waits import Explained, Wait


class Address(NamedTuple):
    """What travels between which ranks: the same value on both sides."""

    what: str
    source: int
    destination: int
    minibatch: int

    def __str__(self) -> str:
        return f"{self.what} of minibatch {self.minibatch}, rank {self.source} -> rank {self.destination}"


class Expected(NamedTuple):
    """A tensor that another rank will send."""

    address: Address
    spec: TensorSpec


Pending = Callable[[], Tensor]
"""Waits for a tensor from another stage and gives it, once. Raises StallError, PeerLost."""


class Communicator:
    """Point-to-point messages of one rank over the default process group.

    Args:
        names: everything that may travel, in the same order on every rank: a name's position is its tensor tag.
        varying: those of them whose shape is another from minibatch to minibatch; a header tells it.
        timeout: seconds until a wait raises StallError.
        waiting: runs while this rank waits for others.
        window: minibatches until a send is waited for. At least as many as the schedule admits at once: then it has
            arrived long since. A wait any sooner could be for a rank that waits for this one.
    """

    def __init__(
        self,
        names: Sequence[str],
        device: torch.device,
        timeout: float,
        waiting: Stopwatch,
        window: int,
        varying: Sequence[str] = (),
    ) -> None:
        self._tags = {name: tag for tag, name in enumerate([*names, *map(_header, varying)])}
        self._varying = frozenset(varying)
        self._device = device
        self._timeout = timeout
        self._sends: deque[tuple[dist.Work, Tensor, Address]] = deque()
        self._waiting = waiting
        self._window = window
        self._newest = 0
        self._local: dict[Address, Tensor] = {}
        self._shared: SharedMemory | None = None

    def connect(self) -> None:
        """Meet the ranks of this machine, to share memory with them. All ranks do this at once, before they send."""
        if self._shared is not None or self._device.type != "cpu":
            return
        what = "the other ranks' addresses"
        with closing(Door()) as door, Wait(what, self._waiting, "sum"):
            card = torch.frombuffer(bytearray(door.card), dtype=torch.uint8)
            cards = [torch.empty_like(card) for _ in range(dist.get_world_size())]
            dist.all_gather(cards, card)
            lines = door.meet(dist.get_rank(), [bytes(each.tolist()) for each in cards], self._timeout)
            self._shared = SharedMemory(lines, self._timeout)

    def post(self, expected: Expected) -> Pending:
        """Start to receive."""
        address = expected.address
        if address.source == address.destination:
            return partial(self._local.pop, address)  # there when it is needed, by the order of the actions
        if address.what in self._varying:
            return partial(self._announced, self._post(_header_of(expected)), expected)
        return self._post(expected)

    def _post(self, expected: Expected) -> Pending:
        address = expected.address
        if self._shared is not None and address.source in self._shared:
            return partial(self._taken, self._shared, expected)
        buffer = torch.empty(expected.spec.shape, dtype=expected.spec.dtype, device=self._device)
        with Explained(address):
            work = dist.irecv(buffer, address.source, tag=self._wire_tag(address))
        assert work is not None
        return partial(self._received, work, buffer, address)

    def _received(self, work: dist.Work, buffer: Tensor, address: Address) -> Tensor:
        self.wait(work, address)
        return buffer

    def _announced(self, header: Pending, expected: Expected) -> Tensor:
        """A tensor whose shape comes ahead of it."""
        shape = tuple(header().tolist())
        return self._post(expected._replace(spec=replace(expected.spec, shape=shape)))()

    def _taken(self, shared: SharedMemory, expected: Expected) -> Tensor:
        """A tensor from a rank of this machine."""
        address, spec = expected
        what = (address.source, self._wire_tag(address), spec.shape, spec.dtype)
        if not trace.is_on() and (tensor := shared.ready(*what)) is not None:
            return tensor  # nobody waited, so nobody need be told
        with Wait(address, self._waiting, "receive", address.minibatch):
            shared.flush()
            return shared.receive(*what)

    def send(self, tensor: Tensor, address: Address, later: bool = False) -> None:
        """Start to send ``tensor``, which must not be written to until the destination has it.

        ``later``: it may leave with the next one, or when this rank waits. To wake another rank is dear.
        """
        if address.source == address.destination:
            self._local[address] = tensor.detach().clone()
            return
        if address.what in self._varying:
            self._send(torch.tensor(tensor.shape), address._replace(what=_header(address.what)), later=True)
        self._send(tensor, address, later)

    def _flush(self) -> None:
        if self._shared is not None:
            self._shared.flush()

    def _send(self, tensor: Tensor, address: Address, later: bool) -> None:
        if self._shared is not None and address.destination in self._shared:
            with Explained(address, "send", address.minibatch):
                self._shared.put(tensor, address.destination, self._wire_tag(address))
                if not later:
                    self._shared.flush()
            return
        tensor = tensor.detach().contiguous()
        with Explained(address, "send", address.minibatch):
            work = dist.isend(tensor, address.destination, tag=self._wire_tag(address))
            self._flush()
        assert work is not None
        self._sends.append((work, tensor, address))
        self._newest = max(self._newest, address.minibatch)
        while self._sends[0][2].minibatch <= self._newest - self._window:
            self._finish_oldest()

    def finish(self) -> None:
        """Wait until every send has left."""
        with Explained("the other ranks of this machine"):
            self._flush()
        while self._sends:
            self._finish_oldest()

    def sum_over_ranks(self, tensor: Tensor, what: str) -> Tensor:
        """The element-wise sum over all ranks, in place."""
        with Wait(what, self._waiting, "sum"):
            self._flush()
            dist.all_reduce(tensor)
        return tensor

    def wait(self, work: dist.Work, address: Address, kind: str = "receive") -> None:
        """Wait for one operation; ``kind`` is what it is called in a trace.

        Raises StallError after the timeout and PeerLost when the connection breaks, naming what was waited for.
        """
        with Wait(address, self._waiting, kind, address.minibatch):
            self._flush()
            work.wait(timedelta(seconds=self._timeout))

    def _finish_oldest(self) -> None:
        work, _, address = self._sends.popleft()
        self.wait(work, address, "send wait")

    def _wire_tag(self, address: Address) -> int:
        return (address.minibatch * len(self._tags) + self._tags[address.what]) % 2**31


def _header(what: str) -> str:
    return f"shape of {what}"


def _header_of(expected: Expected) -> Expected:
    address = expected.address._replace(what=_header(expected.address.what))
    return Expected(address, TensorSpec((len(expected.spec.shape),), torch.int64))


class Inbox:
    """Receives of a rank in the order of its actions, posted a few actions ahead.

    Args:
        expected: for each action, what it needs from other ranks.
        ahead: how many actions beyond the present one are posted; each may hold a buffer.
    """

    def __init__(self, communicator: Communicator, expected: Iterator[list[Expected]], ahead: int = 4) -> None:
        self._communicator = communicator
        self._expected = expected
        self._ahead = ahead
        self._posted: deque[list[tuple[str, Pending]]] = deque()

    def take(self) -> dict[str, Tensor]:
        """What the next action needs, by name, once all of it is there."""
        while len(self._posted) <= self._ahead and (batch := next(self._expected, None)) is not None:
            self._posted.append([(each.address.what, self._communicator.post(each)) for each in batch])
        return {what: pending() for what, pending in self._posted.popleft()}
