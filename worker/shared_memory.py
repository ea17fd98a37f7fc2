"""Tensors between ranks of one machine through memory that both map: one copy by the sender, none by the receiver.

A slot is anonymous memory whose descriptor goes to the other rank once; a local socket then says what has been put into
which. Loopback would cost two copies in the kernel, and a thread that competes with the computing one. A tensor of a
few bytes goes over the socket itself.
"""

from __future__ import annotations

import ctypes
import os
import select
import socket
import struct
import time
import weakref
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from worker.slots import Slot

MESSAGE = struct.Struct("<QQQ")
"""Wire tag, slot, and the slot's size in bytes. The descriptor of a slot goes with the first message about it."""
SMALL = 64
"""Bytes up to which a tensor follows its message: loss weights, scales and headers, with every minibatch."""
NO_SLOT = 2**64 - 1
"""In place of a slot, before a small tensor; the size is the tensor's."""
MOST = 32
"""Messages in one packet. To wake the other rank costs more than all else, so those that can wait share a packet."""
ROOM = socket.CMSG_SPACE(MOST * struct.calcsize("i"))
"""Bytes beside it for the descriptors of so many slots."""
GRAIN = 1 << 16


class Letter(NamedTuple):
    """A small tensor that has come with its message."""

    content: bytearray

    def read(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """The tensor."""
        return (
            torch.frombuffer(self.content, dtype=dtype).view(shape) if self.content else torch.empty(shape, dtype=dtype)
        )


def _letter(tensor: Tensor, tag: int) -> bytes:
    whole = tensor.contiguous()
    return MESSAGE.pack(tag, NO_SLOT, whole.nbytes) + ctypes.string_at(whole.data_ptr(), whole.nbytes)


class Neighbour:
    """One other rank of this machine, at the other end of ``line``, which need not be waited for to read."""

    def __init__(self, line: socket.socket, timeout: float) -> None:
        line.setblocking(False)
        self.line = line
        self._timeout = timeout
        self._slots: dict[int, list[Slot]] = {}
        self._made = 0
        self._said: list[bytes] = []
        self._given: list[int] = []
        self._theirs: dict[int, Slot] = {}
        self._arrived: dict[int, Slot | Letter] = {}

    def put(self, tensor: Tensor, tag: int) -> None:
        """Copy ``tensor`` over; ``flush`` says so. Raises ConnectionError, TimeoutError."""
        if tensor.nbytes <= SMALL:
            self._said.append(_letter(tensor, tag))
        else:
            slot = self._free_slot(-(-tensor.nbytes // GRAIN) * GRAIN)
            slot.write(tensor)
            self._said.append(MESSAGE.pack(tag, slot.number, slot.size))
        if len(self._said) == MOST:
            self.flush()

    def _free_slot(self, size: int) -> Slot:
        slots = self._slots.setdefault(size, [])
        for slot in slots:
            if slot.is_free:
                return slot
        slots.append(self._make(size))
        return slots[-1]

    def _make(self, size: int) -> Slot:
        descriptor = os.memfd_create("vpipe", os.MFD_CLOEXEC)
        try:
            os.ftruncate(descriptor, size + 1)
            slot = Slot(self._made, size, descriptor)
        except BaseException:
            os.close(descriptor)
            raise
        self._given.append(descriptor)
        self._made += 1
        return slot

    def flush(self) -> None:
        """Say what has been put. Raises ConnectionError, TimeoutError."""
        if not self._said:
            return
        packet, descriptors = b"".join(self._said), self._given
        self._said, self._given = [], []
        try:
            self._send(packet, descriptors)
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def _send(self, packet: bytes, descriptors: list[int]) -> None:
        while True:
            try:
                if descriptors:
                    socket.send_fds(self.line, [packet], descriptors)
                else:
                    self.line.send(packet)
                return
            except BlockingIOError:
                room = select.poll()
                room.register(self.line.fileno(), select.POLLOUT)
                if not room.poll(self._timeout * 1000):
                    raise TimeoutError("timed out") from None

    def read(self, until: int | None = None) -> bool:
        """Take in all that has been announced, or as far as ``until``. False once the other side has closed."""
        while until is None or until not in self._arrived:
            try:
                packet, more, _, _ = self.line.recvmsg(MOST * (MESSAGE.size + SMALL), ROOM)
            except BlockingIOError:
                return True
            except ConnectionError:
                return False
            if not packet:
                return False
            self._take_in(packet, iter(memoryview(more[0][2]).cast("i") if more else ()))
        return True

    def _take_in(self, packet: bytes, descriptors: Iterator[int]) -> None:
        end = 0
        while end < len(packet):
            tag, number, size = MESSAGE.unpack_from(packet, end)
            end += MESSAGE.size
            if number == NO_SLOT:
                self._arrived[tag] = Letter(bytearray(packet[end : end + size]))
                end += size
                continue
            if number not in self._theirs:
                descriptor = next(descriptors)
                self._theirs[number] = Slot(number, size, descriptor)
                os.close(descriptor)
            self._arrived[tag] = self._theirs[number]

    def take(self, tag: int) -> Slot | Letter | None:
        """What has arrived as ``tag``, if it has."""
        return self._arrived.pop(tag, None)


class SharedMemory:
    """The other ranks of this machine, as one of them sees them.

    Args:
        lines: a connected socket to each, by rank.
        timeout: seconds until sending or receiving is given up.
    """

    def __init__(self, lines: Mapping[int, socket.socket], timeout: float) -> None:
        self._timeout = timeout
        self._neighbours = {rank: Neighbour(line, timeout) for rank, line in lines.items()}
        self._untold: set[Neighbour] = set()
        self._open = {line.fileno(): self._neighbours[rank] for rank, line in lines.items()}
        weakref.finalize(self, _close, list(lines.values()))
        self._poll = select.poll()
        for descriptor in self._open:
            self._poll.register(descriptor, select.POLLIN)

    def __contains__(self, rank: int) -> bool:
        """Whether ``rank`` can be reached this way."""
        return rank in self._neighbours

    def put(self, tensor: Tensor, destination: int, tag: int) -> None:
        """Copy ``tensor`` over; it may be written to afterwards. Raises ConnectionError, TimeoutError."""
        neighbour = self._neighbours[destination]
        self._untold.add(neighbour)
        neighbour.put(tensor, tag)

    def flush(self) -> None:
        """Tell all ranks what has been put for them. Raises ConnectionError, TimeoutError."""
        while self._untold:
            self._untold.pop().flush()

    def ready(self, source: int, tag: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor | None:
        """The tensor that ``source`` sends as ``tag``, if it is there already."""
        neighbour = self._neighbours[source]
        slot = neighbour.take(tag)
        if slot is None and neighbour.read(tag):
            slot = neighbour.take(tag)
        return None if slot is None else slot.read(shape, dtype)

    def receive(self, source: int, tag: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """The tensor that ``source`` sends as ``tag``. Raises ConnectionError, TimeoutError."""
        neighbour = self._neighbours[source]
        deadline = time.monotonic() + self._timeout
        while (slot := neighbour.take(tag)) is None:
            if neighbour not in self._open.values():
                raise ConnectionError("closed by the other side")
            # Whoever waits takes in everything: a sender is never held up by a rank that waits for a third.
            ready = self._poll.poll(max(0.0, deadline - time.monotonic()) * 1000)
            if not ready:
                raise TimeoutError("timed out")
            for descriptor, _ in ready:
                other = self._open[descriptor]
                if not other.read(tag if other is neighbour else None):
                    self._poll.unregister(descriptor)
                    del self._open[descriptor]
        return slot.read(shape, dtype)


def _close(lines: list[socket.socket]) -> None:
    for line in lines:
        line.close()
