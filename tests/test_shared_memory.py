"""Memory shared between ranks of one machine: what is in use is never written to, what is free is used again."""

from __future__ import annotations

import gc
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from worker.door import GREETING, Door
from worker.shared_memory import MOST, SMALL, SharedMemory

TIMEOUT = 5.0


def send(sender: SharedMemory, tensor: torch.Tensor, destination: int, tag: int) -> None:
    sender.put(tensor, destination, tag)
    sender.flush()


def pair(timeout: float = TIMEOUT) -> tuple[SharedMemory, SharedMemory]:
    """Two ranks that can reach each other; both in this process, which changes nothing for them."""
    lines = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    return SharedMemory({1: lines[0]}, timeout), SharedMemory({0: lines[1]}, timeout)


@pytest.fixture
def doors() -> Iterator[list[Door]]:
    made = [Door() for _ in range(3)]
    yield made
    for door in made:
        door.close()


def meet(doors: list[Door], rank: int, cards: list[bytes]) -> SharedMemory:
    return SharedMemory(doors[rank].meet(rank, cards, TIMEOUT), TIMEOUT)


def floats(value: float) -> torch.Tensor:
    return torch.full((1000,), value, dtype=torch.float32)


def test_a_tensor_in_use_is_not_written_to() -> None:
    sender, receiver = pair()
    received = []
    for number in range(10):
        send(sender, floats(number), 1, number)
        received.append(receiver.receive(0, number, (1000,), torch.float32))
    assert [tensor[0].item() for tensor in received] == list(range(10))


@pytest.mark.parametrize("count", [1, 3, MOST + 3])
def test_what_is_put_is_told_at_once_when_that_is_asked_for(count: int) -> None:
    sender, receiver = pair()
    for number in range(count):
        sender.put(floats(number), 1, number)
    what = (0, count - 1, (1000,), torch.float32)
    assert receiver.ready(*what) is None
    sender.flush()
    last = receiver.receive(*what)
    found = [receiver.receive(0, number, (1000,), torch.float32) for number in range(count - 1)]
    assert [tensor[0].item() for tensor in [*found, last]] == list(range(count))


@pytest.mark.parametrize("elements", [0, 1, SMALL // 8, SMALL // 8 + 1])
@pytest.mark.parametrize("dtype", [torch.int64, torch.bool])
def test_tensors_around_the_size_that_fits_a_message_arrive(elements: int, dtype: torch.dtype) -> None:
    sender, receiver = pair()
    large = elements * torch.int64.itemsize > SMALL
    tensors = [torch.arange(2 * elements).remainder(number + 2).to(dtype)[::2] for number in range(MOST + 1)]
    for number, tensor in enumerate(tensors):
        sender.put(tensor, 1, number)
    sender.flush()
    for number, tensor in enumerate(tensors):
        received = receiver.receive(0, number, (elements,), dtype)
        assert torch.equal(received, tensor) and received.dtype == dtype
    assert bool(sender._neighbours[1]._slots) == (large and dtype == torch.int64)


def test_memory_is_used_again_once_nobody_reads_it() -> None:
    sender, receiver = pair()
    addresses = set()
    for number in range(50):
        send(sender, floats(number), 1, number)
        tensor = receiver.receive(0, number, (1000,), torch.float32)
        addresses.add(tensor.data_ptr())
        view = tensor[10:].view(-1)  # keeps the memory as long as it lives
        del tensor
        assert view[0].item() == number
        del view
    assert len(addresses) == 1


def test_a_tensor_outlives_its_sender() -> None:
    sender, receiver = pair()
    send(sender, floats(3), 1, 0)
    received = receiver.receive(0, 0, (1000,), torch.float32)
    del sender
    assert received.eq(3).all()


def test_a_tensor_outlives_its_receiver() -> None:
    sender, receiver = pair()
    send(sender, floats(3), 1, 0)
    received = receiver.receive(0, 0, (1000,), torch.float32)
    del sender, receiver
    gc.collect()
    assert received.sum().item() == 3000


def test_what_was_sent_before_the_end_still_arrives() -> None:
    sender, receiver = pair()
    send(sender, floats(3), 1, 0)
    del sender
    assert receiver.receive(0, 0, (1000,), torch.float32).eq(3).all()
    with pytest.raises(ConnectionError):
        receiver.receive(0, 1, (1000,), torch.float32)


def test_a_sender_waits_for_a_slow_reader_up_to_its_limit() -> None:
    sender, receiver = pair(timeout=0.2)
    tensor, sent = torch.ones(1), 0
    with pytest.raises(TimeoutError):
        while sent < 10**5:
            send(sender, tensor, 1, sent)
            sent += 1
    assert sent > 100
    assert receiver.receive(0, sent - 1, (1,), torch.float32).item() == 1.0


def test_a_rank_that_waits_for_one_takes_in_what_others_send() -> None:
    """Else a sender with a full line would wait for a rank that waits for a third, which waits for the sender."""
    third, first = (socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(2))
    receiver = SharedMemory({1: third[0], 2: first[0]}, TIMEOUT)
    flood, slow = SharedMemory({0: first[1]}, TIMEOUT), SharedMemory({0: third[1]}, TIMEOUT)

    def speak() -> None:
        for number in range(400):  # a line holds 278
            send(flood, torch.ones(1), 0, number)
        send(slow, floats(7), 0, 0)

    thread = threading.Thread(target=speak, daemon=True)
    thread.start()
    assert receiver.receive(1, 0, (1000,), torch.float32)[0].item() == 7
    thread.join()


def test_ranks_of_one_machine_find_each_other(doors: list[Door]) -> None:
    cards = [door.card for door in doors]
    cards.append(bytes(32) + bytes(16))  # a rank of another machine
    with ThreadPoolExecutor() as pool:
        met = list(pool.map(lambda rank: meet(doors, rank, cards), range(3)))
    assert [[other in memory for other in range(4)] for memory in met] == [
        [False, True, True, False],
        [True, False, True, False],
        [True, True, False, False],
    ]


def test_who_does_not_know_the_secret_is_turned_away(doors: list[Door]) -> None:
    cards = [door.card for door in doors[:2]]
    address = doors[0]._listener.getsockname()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as stranger:
        stranger.connect(address)
        stranger.sendall(GREETING.pack(1, bytes(16)))
        with ThreadPoolExecutor() as pool:
            met = list(pool.map(lambda rank: meet(doors, rank, cards), range(2)))
        send(met[1], floats(5), 0, 0)
        assert met[0].receive(1, 0, (1000,), torch.float32)[0].item() == 5
        stranger.settimeout(TIMEOUT)
        assert stranger.recv(1) == b""


def test_a_rank_that_does_not_come_is_not_waited_for_for_ever(doors: list[Door]) -> None:
    with pytest.raises(TimeoutError):
        doors[0].meet(0, [door.card for door in doors], 0.2)
